"""A shard with a journal that is driven message by message, and remembers what it was after every update."""

import itertools
import threading
import time
from concurrent.futures import Future

import msgpack
import numpy as np

from ps.journal.journal import Journal
from ps.journal.lock import Lock
from ps.journal.recovery import recover
from ps.loading import Incoming
from ps.request import check_request
from ps.routing import Routing
from ps.shard import Shard
from ps.spec import ClusterSpec
from ps.storage.unique import unique_by_bucket
from tests.ps.driving import SGD, SWEPT, call, message, push, steps

NUM_BUCKETS = 4
KEPT = {
    "segments": {
        "linear": {"dim": 1, "optimizer": {"name": "sgd", "learning_rate": 0.5}},
        "embedding": {"dim": 2, "optimizer": {"name": "adagrad"}, "late": 3.0},
    },
    "admission": {"name": "count", "threshold": 2, "sketch_bytes": 4096},
    "eviction": {"max_age_seconds": 50},
}


def spec_of(folder, **options):
    """Three tables: plain, swept, and one with late segments, admission and eviction."""
    durability = {"mode": "journal", "directory": str(folder), "snapshot_after_bytes": 1 << 40, **options}
    tables = {"user": SGD, "item": SWEPT, "kept": KEPT}
    return ClusterSpec.model_validate({"tables": tables, "num_buckets": NUM_BUCKETS, "durability": durability})


def state_of(holding):
    """All that a shard holds, rows in their order."""
    state = {"place": (holding.routing.epoch, holding.shard, holding.owned.tolist())}
    for name, table in holding.tables.items():
        applied = holding.applied[name]
        state[name, "expired"] = sorted(applied.expired_ids())
        for bucket in range(NUM_BUCKETS):
            rows = [(keys.tolist(), images.tobytes()) for keys, images in table.read_images(bucket)]
            state[name, bucket] = rows, applied.entries(bucket), table.admission.save(bucket)
    return state


class Play:
    """states: by number of an update what the shard was after it."""

    def __init__(self, folder, spec=None, recovered=None):
        self.folder = folder
        self.shard = Shard(
            clock=steps(),
            slice_seconds=0.5,
            recovered=recovered,
            open_journal=lambda holding: Journal(folder, Lock(folder, takes_over=False), holding),
        )
        self.sequences, self.states = itertools.count(1), {}
        if recovered is None:
            answer = Future()
            routing = Routing(1, np.zeros(NUM_BUCKETS, np.int32), ("s:0",))
            self.shard.assign(spec or spec_of(folder), routing, 0, answer)
            self.run()
            answer.result(5)
        self.remember()

    @property
    def journal(self):
        return self.shard.journal

    def remember(self):
        """From now on, the state after every update."""
        journal, original = self.journal, self.journal.commit
        self.states[journal.next_number - 1] = state_of(self.shard.holding)

        def commit():
            yield from original()
            self.states[journal.next_number - 1] = state_of(self.shard.holding)

        journal.commit = commit

    def send(self, *calls, event_time=0, **fields):
        """The future of an update that is taken in."""
        answer = Future()
        made = message(*calls, sequence=next(self.sequences), **fields)
        made.event_time = event_time
        self.shard.receive(check_request(made, self.shard.holding.spec), answer)
        return answer

    def run(self):
        while self.shard.run_slice():
            pass

    def do(self, *calls, **fields):
        """The reply of an update, acknowledged."""
        answer = self.send(*calls, **fields)
        self.run()
        return answer.result(5)

    def settle(self):
        """All that was committed is written, and no snapshot is being made."""
        while self.journal.snapshot is not None:
            self.run()
            time.sleep(0.001)
        written = threading.Event()
        self.journal.after(written.set)
        assert written.wait(5)

    def restore(self):
        """The future of a restore to what the shard has."""
        records, answer = (
            [record for bucket in range(NUM_BUCKETS) for record in self.shard.holding.records_of(bucket)],
            Future(),
        )
        self.shard.restore(Incoming(records), answer)
        self.run()
        return answer

    def close(self):
        self.journal.close()


def recovered_state(folder):
    """(number of the last update, state) that a folder's journal says; the folder is let go."""
    found = recover(folder, Lock(folder, takes_over=False), now=0.0)
    if found is None:
        return None
    found.journal.close()
    return found.journal.next_number - 1, state_of(found.holding)


def random_calls(rng, step):
    """Calls of a message with one or two tables, of all kinds."""
    calls = []
    for table in rng.choice(["user", "item", "kept"], size=rng.integers(1, 3), replace=False).tolist():
        raw = rng.integers(1, 40, size=rng.integers(1, 12)).astype(np.uint64)
        keys = unique_by_bucket(raw * np.uint64(0x9E3779B97F4A7C15), NUM_BUCKETS)[0]
        width = {"user": 3, "item": 2, "kept": 3}[table]
        gradients = rng.normal(size=(len(keys), width)).astype(np.float32)
        if rng.random() < 0.1:
            gradients[0] = np.float32(3e38)  # the row would not be finite: refused
        rates = [float(rng.uniform(0.1, 1))] * (1 if table == "item" else 2)
        kind = rng.choice(["push", "push", "push", "push", "delete", "fill", "scale", "clear", "evict", "sweep"])
        if kind == "evict" and table == "kept":
            calls = [call("evict", table=table)]  # alone: others may come between its slices
            break
        if kind == "sweep" and table == "item":
            calls += [push(keys, gradients, table=table, width=width, learning_rates=rates)]
            calls += [call("sweep", table=table, learning_rates=rates)]
        elif kind == "delete":
            calls.append(call("delete", table=table, keys=keys))
        elif kind == "clear" and rng.random() < 0.2:
            calls.append(call("clear", table=table))
        elif kind in ("fill", "scale"):
            args = msgpack.packb({"fill": {"value": 0.25}, "scale": {"factor": 0.5}}[kind])
            calls.append(call(kind, table=table, keys=keys if rng.random() < 0.5 else None, args=args))
        else:
            calls.append(push(keys, gradients, table=table, width=width, learning_rates=rates))
    return calls
