"""What a table reports is what its process has, from an empty table to millions of rows, in processes of their own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ps.storage.arena import Arena
from tests.ps.storage.test_memory import MIB, table_of

ROOT = Path(__file__).parents[3]


def grown(spec, counts, *, num_buckets=256):
    """{rows: (reported, resident)} bytes."""
    command = [sys.executable, "-m", "tests.ps.storage.growing", spec.model_dump_json(), str(num_buckets)]
    done = subprocess.run([*command, *map(str, counts)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {each["rows"]: (each["reported"], each["resident"]) for each in json.loads(done.stdout)}


def check(found):
    """At most 1 MiB empty, 8 MiB with 1,000 rows; from there on never more resident than 1.1 of what is reported."""
    assert max(found[0]) <= MIB
    assert max(found[1000]) <= 8 * MIB
    for rows, (reported, resident) in found.items():
        assert rows == 0 or resident <= 1.1 * reported, (rows, found)
    assert found[max(found)][1] >= 0.9 * found[max(found)][0], found


def test_resident_memory_is_what_is_reported():
    check(grown(table_of().spec, [0, 1000, 30_000, 100_000, 300_000, 10**6]))


def flags_at(words, place):
    """What the kernel says of the mapping with this word; "hg": huge pages were asked for."""
    start = words.ctypes.data + 4 * place
    ranges = re.findall(
        r"(?m)^([0-9a-f]+)-([0-9a-f]+) .*\n(?:[A-Z].*\n)*?VmFlags: (.*)$", Path("/proc/self/smaps").read_text()
    )
    return next(flags for low, high, flags in ranges if int(low, 16) <= start < int(high, 16)).split()


@pytest.mark.parametrize(("rows", "indexes"), [(64 << 20, 1 << 20), (1 << 20, 24 << 20), (1 << 20, 1 << 20)])
def test_what_is_expected_has_huge_pages_from_the_first_on(rows, indexes):
    arena = Arena()
    arena.expect(rows, indexes)
    assert ("hg" in flags_at(arena.words, 0)) == (rows > 1 << 20)
    assert ("hg" in flags_at(arena.words, len(arena.words) - 1)) == (indexes > 1 << 20)


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "dim"), [("fp32", 16), ("bf16", 8)])
@pytest.mark.parametrize("num_buckets", [256, 4096])
def test_resident_memory_of_larger_tables(codec, dim, num_buckets):
    segment = {"dim": dim, "codec": codec, "optimizer": "rowwise_adagrad"}
    spec = table_of().spec.model_validate({"segments": {"e": segment}})
    counts = [0, 1000, *range(250_000, 4_000_001, 250_000)]
    check(grown(spec, counts, num_buckets=num_buckets))
