"""The short form of `make chaos`: each fault once, and what must come of it."""

import subprocess

import numpy as np
import pytest

from tests.chaos import faults, moving, pair_faults
from tests.chaos.ledger import LedgerWriter, read_ledger
from tests.chaos.runner import run_chaos
from tests.chaos.verdict import TABLES, Expected, judge
from tests.chaos.workload import CYCLE, NUM_WIDE, step_of


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 24 MiB, to be filled; where none may be mounted, the size of files is limited instead."""
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(tmp_path)]
    is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    yield tmp_path
    if is_mounted:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_nothing_acknowledged_is_lost_or_doubled(small_disk, tmp_path_factory):
    chosen, ledgers = [*faults.FAULTS, faults.cut, faults.swallow], tmp_path_factory.mktemp("ledgers")
    verdict, done, differ, _ = run_chaos(small_disk, faults=chosen, seed=3, ledgers_folder=ledgers)
    assert verdict.is_good, verdict
    assert differ == [], "what fresh processes recover is not what was served"
    assert sum(done.values()) == len(chosen)
    assert verdict.acknowledged > 300
    assert verdict.checked_rows > 9000


def test_a_pair_loses_and_doubles_nothing(tmp_path):
    chosen = [pair_faults.cut_pair, pair_faults.damage_one]  # and at the end it kills the primary, and both
    verdict, done, differ, _ = run_chaos(tmp_path, mode="replicated", faults=chosen, num_shards=1, num_clients=1)
    assert verdict.is_good, verdict
    assert differ == [], "what standbys have, or fresh processes recover, is not what was served"
    assert sum(done.values()) == 2
    assert verdict.acknowledged > 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "chosen"),
    [
        ("replicated", pair_faults.FAULTS),
        ("replicated", moving.FAULTS),
        ("journal", [*moving.FAULTS, moving.kill_in_move, moving.lose_mover]),
    ],
    ids=["pairs", "pairs while buckets move", "while buckets move"],
)
def test_each_fault_once(tmp_path, mode, chosen):
    verdict, done, differ, _ = run_chaos(tmp_path, mode=mode, faults=chosen, seed=4, pause=0.01)
    assert verdict.is_good, verdict
    assert differ == []
    assert sum(done.values()) == len(chosen)


@pytest.fixture
def played(tmp_path):
    """What four cycles of a client give, all acknowledged, and a cluster that has just that."""
    writer = LedgerWriter(tmp_path / "client-0")
    for number in range(4 * CYCLE):
        writer.begin(number)
        writer.done(number)
    return tmp_path / "client-0"


def rows_of(expected):
    """What `read_all` would give of rows that had each update once."""
    found = {table: expected.bounds(table)[:, 0].astype(np.float32) for table in TABLES}
    found |= {"scaled": np.full(NUM_WIDE, 2.0 ** expected.exponent[0]), "added": np.full(NUM_WIDE, expected.addend[0])}
    return {
        table: [values, int((values != 0).sum()) if table in TABLES else NUM_WIDE] for table, values in found.items()
    }


def test_the_verdict_finds_what_is_lost_doubled_or_too_much(played):
    ledger = read_ledger(played)
    expected = Expected().add(0, ledger)

    def verdict_with(change):
        found = rows_of(expected)
        change(found)
        return judge(expected, found, [ledger])

    def add(table, place, amount):
        def change(found):
            found[table][0][place] += amount

        return change

    assert verdict_with(lambda found: None).is_good
    assert verdict_with(add("counts", 17, -1)).lost == 1
    assert verdict_with(add("counts", 17, 1)).doubled == 1
    assert verdict_with(add("added", 3, 1)).doubled == 1
    assert verdict_with(add("scaled", 3, 1)).doubled == 1
    assert verdict_with(lambda found: found.update(aged=[found["aged"][0], 99])).extra == 99
    gone = next(i for i, (least, most) in enumerate(expected.bounds("ones").tolist()) if most == 0)
    assert verdict_with(add("ones", gone, 1)).doubled == 1, "a deleted row that is back"


def test_updates_of_unknown_outcome_may_be_there_or_not(tmp_path):
    writer = LedgerWriter(tmp_path / "client-1")
    writer.begin(0)
    writer.failed(0, "no answer\nin time")
    writer.begin(2)
    (tmp_path / "client-1").open("a").write("done 2")  # the client was killed inside this line
    ledger = read_ledger(tmp_path / "client-1")
    assert (ledger.acknowledged, ledger.unknown, ledger.errors) == (set(), {0, 2}, ["no answer in time"])
    expected = Expected().add(1, ledger)
    assert expected.bounds("ones").tolist() == [[0, 1], [0, 1]]


def test_an_update_is_a_function_of_client_and_number():
    for number in range(3 * CYCLE):
        one, other = step_of(2, number), step_of(2, number)
        assert one.kind == other.kind
        assert {table: keys.tolist() for table, keys in one.adds.items()} == {
            table: keys.tolist() for table, keys in other.adds.items()
        }
