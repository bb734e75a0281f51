"""Damage to what was acknowledged, in the journal of a real shard: refused with file and place, never served."""

import shutil

import numpy as np
import pytest

import ps
from ps.errors import WeirError
from ps.journal.snapshot import read_pointer
from ps.opening import open_shard
from ps.placement import ShardProcess
from tests.chaos.disks import counting_files, flip
from tests.chaos.shards import Shards
from tests.chaos.workload import prepare, send, spec, step_of


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    """A folder with a snapshot and several segments."""
    folder = tmp_path_factory.mktemp("damage")
    with Shards(spec(folder, snapshot_after_bytes=64 << 10), 1) as shards:
        with ps.connect(shards.addresses[0], ps.ClientOptions(staleness=-1)) as client:
            prepare(client)
            for number in range(90):
                send(client, step_of(0, number), number)
        shards.kill(0)
        shards.restart(0)  # and with it a new segment
        with ps.connect(shards.addresses[0]) as client:
            send(client, step_of(1, 0), 0)
        shards.kill(0)
        assert read_pointer(shards.journals[0]) is not None
        return shards.journals[0]


@pytest.fixture
def copy(journal, tmp_path):
    return shutil.copytree(journal, tmp_path / "copy")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "LOCK"}


def refused(folder, path, place=""):
    """Refused by name of the file, and nothing in the folder is changed."""
    before = contents(folder)
    with pytest.raises(WeirError, match=f"{path.name}{place}"):
        open_shard(folder)
    assert contents(folder) == before


@pytest.mark.parametrize("seed", range(12))
def test_a_flipped_byte_anywhere(copy, seed):
    rng = np.random.default_rng(seed)
    files = counting_files(copy)
    path = files[seed % len(files)]
    flip(path, rng)
    refused(copy, path, " at byte")


def test_a_file_that_is_gone(copy):
    files = counting_files(copy)
    assert len(files) >= 3
    for path in files:
        kept = path.read_bytes()
        path.unlink()
        refused(copy, path)
        path.write_bytes(kept)
    open_shard(copy).journal.close()


def test_a_file_that_is_shorter(copy):
    rng = np.random.default_rng(1)
    for path in counting_files(copy):
        kept = path.read_bytes()
        for length in (len(kept) - 1, int(rng.integers(len(kept))), 0):
            path.write_bytes(kept[:length])
            refused(copy, path)
        path.write_bytes(kept)
    open_shard(copy).journal.close()


def test_the_shard_process_says_so_and_does_not_listen(copy, capfd):
    path = counting_files(copy)[0]
    flip(path, np.random.default_rng(5))
    shard = ShardProcess(journal=copy)
    with pytest.raises(ps.UnavailableError, match="ended with status 2"):
        shard.address  # noqa: B018
    assert f"{path.name} at byte" in capfd.readouterr().err
