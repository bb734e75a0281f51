"""Other numbers of shards while clients push: every update is there once, and what fails is put right."""

import os
import signal
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ps
from ps import control
from ps.errors import WeirError
from ps.keys import bucket_of
from ps.resharding import even_ranges, plan

TABLES = {
    "count": ps.TableSpec(segments={"n": ps.SegmentSpec(dim=2, optimizer=ps.SGD(learning_rate=1.0))}),
    "gated": ps.TableSpec(
        segments={"n": ps.SegmentSpec(dim=2, optimizer=ps.SGD(learning_rate=1.0))}, admission=ps.ByCount(threshold=3)
    ),
}
KEYS = np.arange(1, 3001, dtype=np.uint64)
DOWN = np.full((len(KEYS), 2), -1, np.float32)


def spec_of(folder=None):
    durability = ps.Durability()
    if folder is not None:
        durability = ps.Durability(mode="journal", directory=str(folder), snapshot_after_bytes=200_000)
    return ps.ClusterSpec(tables=TABLES, num_buckets=32, durability=durability)


class Pushing:
    """A thread that pushes some keys at a time, and knows how often each was acknowledged."""

    def __init__(self, client):
        self.client, self.counts, self.failed = client, np.ones(len(KEYS), np.int64), None
        client.push("count", KEYS, DOWN, step=1).wait()  # all rows are there
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        rng, step = np.random.default_rng(3), 2
        try:
            while not self._stop.is_set():
                some = np.sort(rng.choice(len(KEYS), 500, replace=False))
                self.client.push("count", KEYS[some], DOWN[some], step=step).wait()
                self.counts[some] += 1
                step += 1
        except BaseException as error:
            self.failed = error

    def stop(self):
        self._stop.set()
        self._thread.join()
        if self.failed is not None:
            raise self.failed
        return self.counts


def check_counts(client, counts):
    assert (client.pull("count", KEYS) == counts[:, None]).all()


@pytest.mark.parametrize("placement", ["in-process", "process"])
def test_two_four_three_and_one_shards_under_load(placement):
    with ps.LocalCluster(spec_of(), shards=2, placement=placement) as cluster, cluster.connect() as client:
        client.push("gated", KEYS, DOWN, step=1).wait()
        pushing = Pushing(client)
        for shards in (4, 3, 1, 2):
            moves = list(cluster.reshard(shards))
            assert sum(len(move.buckets) for move in moves) > 0
            rows = [shard["tables"]["count"]["rows"] for shard in client.describe()]
            assert len(rows) == shards
            assert sum(rows) == int(client.get("count", ps.Size()))
            assert max(rows) < 1.3 * len(KEYS) / shards
        check_counts(client, pushing.stop())
        # What keys gathered towards their admission moved with them: this is the third time.
        client.push("gated", KEYS, DOWN, step=2).wait()
        assert not client.pull("gated", KEYS).any()
        client.push("gated", KEYS, DOWN, step=3).wait()
        assert client.pull("gated", KEYS).all()


def test_an_update_that_is_sent_again_to_the_new_owner_is_not_applied_again():
    with ps.LocalCluster(spec_of(), shards=1) as cluster, cluster.connect() as client:
        client.push("count", KEYS, DOWN, step=1).wait()
        list(cluster.reshard(2))
        host = cluster._hosts["in-process:1"]
        holding = host.shard.holding
        (known,) = holding.applied["count"]._clients
        moved = holding.owned
        assert not holding.applied["count"].fresh(known, 1, moved).any()


def test_a_shard_that_has_not_got_its_place_yet_has_lost_nothing():
    """Others hear of a new shard while it still compiles what its tables need."""
    with ps.LocalCluster(spec_of(), shards=2) as cluster, cluster.connect() as client:
        client.push("count", KEYS, DOWN, step=1).wait()
        cluster._start(1, fresh=True)
        transport = cluster._transport()
        directory = control.StatusDirectory(cluster.name, transport, cluster.addresses)
        routing = directory.propose()
        control.assign(transport, cluster.spec, routing, [0, 1])
        for _ in range(2):
            assert directory.routing().epoch == routing.epoch
        client.push("count", KEYS, DOWN, step=2).wait()
        owners = np.where(np.arange(32) < 8, 2, routing.owners).astype(np.int32)
        routing = directory.propose(owners)
        control.assign(transport, cluster.spec, routing, [0, 1])
        with pytest.raises(ps.RowsLostError, match="shard 2"):
            directory.routing()


def test_rows_are_balanced_where_they_lie_unevenly():
    with ps.LocalCluster(spec_of(), shards=2) as cluster, cluster.connect() as client:
        of_first = KEYS[bucket_of(KEYS, 32) < 8]
        client.push("count", of_first, DOWN[: len(of_first)], step=1).wait()
        assert client.describe()[1]["tables"]["count"]["rows"] == 0
        list(cluster.reshard(2))
        rows = [shard["tables"]["count"]["rows"] for shard in client.describe()]
        assert min(rows) > 0.35 * len(of_first)
        assert list(cluster.reshard(2)) == []  # nothing is left to move


@pytest.mark.parametrize("victim", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_shard_that_dies_while_buckets_move_loses_nothing(tmp_path, victim):
    with (
        ps.LocalCluster(spec_of(tmp_path), shards=2, placement="process") as cluster,
        cluster.connect() as client,
    ):
        pushing = Pushing(client)
        steps = cluster.reshard(3, at_once=2)
        next(steps)
        os.kill(cluster.processes[victim].pid, signal.SIGKILL)
        for _ in range(60):
            try:
                list(steps)
                break
            except WeirError as error:
                print(time.monotonic(), error)
                time.sleep(0.5)
                steps = cluster.reshard(3, at_once=2)  # run again, until the shard is back
        else:
            pytest.fail("the shard did not come back")
        counts = pushing.stop()
        check_counts(client, counts)
        assert len(client.describe()) == 3
        for pid in [process.pid for process in cluster.processes]:
            os.kill(pid, signal.SIGKILL)
        check_counts(client, counts)


def test_workers_of_a_synchronous_group_go_on():
    with ps.LocalCluster(spec_of(), shards=2) as cluster:
        group = [
            cluster.connect(ps.ClientOptions(group=ps.GroupOptions(generation=1, rank=rank, world=2)))
            for rank in range(2)
        ]
        stop, steps = threading.Event(), [0, 0]
        barrier = threading.Barrier(2, action=lambda: moving.join(0) or steps.__setitem__(0, steps[0] + 1))

        def work(rank):
            while steps[0] < 60:
                number = steps[0]
                group[rank].push("count", KEYS, 2 * DOWN, step=number + 1).wait()  # the sum is divided by two
                barrier.wait()

        moving = threading.Thread(target=lambda: [list(cluster.reshard(shards)) for shards in (4, 3)])
        workers = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
        for thread in (moving, *workers):
            thread.start()
        for thread in (*workers, moving):
            thread.join(60)
            assert not thread.is_alive()
        stop.set()
        with cluster.connect() as client:
            assert (client.pull("count", KEYS) == 2 * steps[0]).all()
        for client in group:
            client.close()


@given(
    rows=st.lists(st.integers(0, 1000), min_size=8, max_size=64),
    before=st.integers(1, 8),
    after=st.integers(1, 8),
)
@settings(max_examples=200)
def test_a_plan_gives_every_shard_one_even_range(rows, before, after):
    rows = np.array(rows)
    owners = (np.arange(len(rows)) * before // len(rows)).astype(np.int32)
    goal = plan(rows, owners, after)
    assert set(goal.tolist()) == set(range(after))
    assert np.count_nonzero(np.diff(goal)) == after - 1  # contiguous
    starts = even_ranges(rows, after)
    parts = [int((rows[a:b] + 1).sum()) for a, b in pairwise(starts.tolist())]
    ideal = (rows + 1).sum() / after
    assert max(parts) <= ideal + (rows + 1).max() * 2 or min(np.diff(starts)) == 1
    again = plan(rows, goal, after)
    assert (again == goal).all()  # what is even stays
