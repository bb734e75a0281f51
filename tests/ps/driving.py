"""Drives shards in tests: specs, messages as the wire carries them, a clock that makes every slice one step long."""

import itertools
from concurrent.futures import Future

import numpy as np

from ps.cut import ALL_ROWS
from ps.keys import bucket_of
from ps.request import check_request
from ps.routing import Routing
from ps.shard import Shard
from ps.spec import ClusterSpec
from ps.storage.unique import unique_by_bucket
from ps.wire import weir_pb2 as pb
from ps.wire.arrays import decode_floats, encode_floats

NUM_BUCKETS = 16
# One layout for most tests, because each costs seconds to compile the first time. SGD, so results are exact.
SGD = {
    "segments": {
        "linear": {"dim": 1, "optimizer": {"name": "sgd", "learning_rate": 1.0}},
        "embedding": {
            "dim": 2,
            "optimizer": {"name": "sgd", "learning_rate": 1.0},
            "initializer": {"name": "uniform", "scale": 0.5},
        },
    }
}
SWEPT = {
    "segments": {
        "embedding": {"dim": 2, "optimizer": {"name": "adam", "learning_rate": 0.1, "sweep": True, "l2": 0.01}}
    }
}
SPEC = ClusterSpec.model_validate({"tables": {"user": SGD}, "num_buckets": NUM_BUCKETS})
TWO_TABLES = ClusterSpec.model_validate({"tables": {"user": SGD, "item": SWEPT}, "num_buckets": NUM_BUCKETS})


def keys_of(*numbers, num_buckets=NUM_BUCKETS):
    """Unique keys grouped by bucket, spread over buckets."""
    raw = np.array(list(numbers), np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return unique_by_bucket(raw, num_buckets)[0]


def keys_in(buckets, *, each=2, num_buckets=NUM_BUCKETS):
    """`each` keys in every one of the buckets."""
    candidates = keys_of(*range(1, 4000), num_buckets=num_buckets)
    found = bucket_of(candidates, num_buckets)
    return np.concatenate([candidates[found == bucket][:each] for bucket in buckets])


def call(psfunc, *, table="user", keys=None, payload=None, dtype=pb.FLOAT32, **fields):
    """One call of a message."""
    made = pb.Call(table=table, psfunc=psfunc, dtype=dtype, **fields)
    if keys is not None:
        made.keys = keys.astype("<u8").tobytes()
    if payload is not None:
        made.payload = encode_floats(payload, dtype)
    return made


def push(keys, value=1.0, *, table="user", width=3, **fields):
    """A push of the same gradient for every element, or of given rows."""
    rows = np.asarray(value, np.float32)
    return call("push", table=table, keys=keys, payload=np.broadcast_to(rows, (len(keys), width)), **fields)


def message(*calls, client=1, sequence=0, step=1, epoch=1, group=None):
    """group: (generation, rank, world)."""
    made = pb.Request(wire_version=1, routing_epoch=epoch, client=client, sequence=sequence, step=step, calls=calls)
    if group is not None:
        made.group.generation, made.group.rank, made.group.world = group
    return made


def steps():
    """A clock that moves by one whenever it is read."""
    ticks = itertools.count()
    return lambda: float(next(ticks))


class Driver:
    """A shard without a thread: events go in, and run when the test says so."""

    def __init__(self, spec=SPEC, *, shards=1, shard=0, epoch=1, **options):
        self.spec = spec
        self.shard = Shard(clock=steps(), slice_seconds=0.5, **options)
        self.place(shards=shards, shard=shard, epoch=epoch)

    def place(self, *, shards=1, shard=0, epoch=1, owners=None):
        routing = Routing.initial(self.spec.num_buckets, [f"s:{i}" for i in range(shards)], epoch)
        if owners is not None:
            routing = Routing(epoch, np.asarray(owners, np.int32), routing.addresses)
        answer = Future()
        self.shard.assign(self.spec, routing, shard, answer)
        self.run()
        answer.result(0)

    def send(self, request):
        """The future of a message that is taken in but has not run."""
        answer = Future()
        self.shard.receive(check_request(request, self.spec), answer)
        return answer

    def run(self):
        while self.shard.run_slice():
            pass

    def do(self, *calls, **fields):
        """The reply of a message that runs to its end."""
        answer = self.send(message(*calls, **fields))
        self.run()
        return answer.result(0)

    def pull(self, keys, *, table="user", width=3, epoch=1):
        reply = self.do(call("pull", table=table, keys=keys), epoch=epoch)
        return decode_floats(reply.results[0].payload, pb.FLOAT32, width)

    @property
    def table(self):
        return self.shard.holding.tables["user"]

    def saved(self, asked=ALL_ROWS):
        """The pieces of a checkpoint file, and what the manifest says of them."""
        pieces, answer = [], Future()

        def sink(piece):
            pieces.append(piece)
            return True

        self.shard.save(sink, answer, asked=asked)
        self.run()
        return pieces, answer.result(0)
