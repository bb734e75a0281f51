"""Every client test runs on every transport: shards in this process, one and three, and two shard processes over gRPC.

A cluster lives for the whole session, so each test takes keys of a slot of its own.
"""

import itertools

import numpy as np
import pytest

import ps
from ps.keys import pack

PLACEMENTS = [("in-process", 1), ("in-process", 3), ("process", 2)]
_SLOTS = itertools.count(1)

SPEC = ps.ClusterSpec(
    tables={
        "user": ps.TableSpec(
            segments={
                "linear": ps.SegmentSpec(dim=1, optimizer="sgd"),
                "embedding": ps.SegmentSpec(dim=3, initializer=ps.Uniform(scale=0.1), optimizer="sgd"),
            }
        ),
        "item": ps.TableSpec(segments={"embedding": ps.SegmentSpec(dim=2, optimizer=ps.Adam())}),
        "swept": ps.TableSpec(segments={"embedding": ps.SegmentSpec(dim=2, optimizer=ps.Adam(sweep=True))}),
    },
    num_buckets=64,
    seed=7,
)


def fresh_keys(count, *, slot=None):
    """uint64 [count]: unique keys that no other test uses, in no order of buckets."""
    return pack(next(_SLOTS) if slot is None else slot, np.arange(count, dtype=np.uint64))


@pytest.fixture(scope="session", params=PLACEMENTS, ids=lambda param: f"{param[0]}-{param[1]}")
def cluster(request):
    placement, shards = request.param
    with ps.LocalCluster(SPEC, shards=shards, placement=placement) as running:
        yield running


@pytest.fixture
def connect(cluster):
    """A function that opens a client with the given options; all are closed after the test."""
    clients = []

    def open_client(**options):
        clients.append(cluster.connect(ps.ClientOptions(**options)))
        return clients[-1]

    yield open_client
    for client in clients:
        client.close()


@pytest.fixture
def client(connect):
    return connect()
