"""What clients do to a cluster, so that the rows tell which updates they had. Counts are small integers, so float32 is
exact and the order of updates does not matter.

Update N of client C is a function of C and N alone, so a ledger need only say which N were acknowledged.

    counts    keys that all clients share; every push adds 1        ones      rows of one client: marks (one key an
    admitted  the same, with admission from the third show on                 update), tallies (a psfunc), lives (pushed
    aged      rows with event times, some to be evicted                       and deleted)
    scaled, added   rows that are there from the start, for updates of the whole table
"""

from dataclasses import dataclass

import numpy as np

import ps
from tests.chaos.counting import CountCall

NUM_COUNTS, NUM_ADMITTED, NUM_TALLIES, NUM_WIDE = 8000, 400, 300, 500
THRESHOLD = 3  # shows that earn a row in `admitted`
MAX_AGE, NEVER_OLD = 1000, 1 << 31  # seconds; an event time
STANDBY_SECONDS = 3.0
CYCLE = 16  # updates; the kinds repeat
SHARED, MARKS, TALLIES, LIVES, AGED = range(5)  # slots
_COUNT = {"count": {"dim": 1, "initializer": {"name": "zeros"}, "optimizer": {"name": "sgd", "learning_rate": 1.0}}}
_PUSHED_IN_CYCLE = {0: "push", 1: "admit", 2: "push", 4: "tally", 6: "push", 8: "push", 10: "big", 14: "wide"}
_LIFE = (3, 5, 7, 9)  # places in a cycle
_AGED = (11, 12, 13)


def spec(journals, snapshot_after_bytes=256 << 10, mode="journal"):
    """The cluster: small snapshots, and many of them. Rows have one of two layouts, so that little is compiled."""
    return ps.ClusterSpec(
        tables={
            "counts": {"segments": _COUNT},
            "ones": {"segments": _COUNT},
            "admitted": {
                "segments": _COUNT,
                "admission": {"name": "count", "threshold": THRESHOLD, "sketch_bytes": 1 << 20},
            },
            "aged": {"segments": _COUNT, "eviction": {"max_age_seconds": MAX_AGE}},
            "scaled": {"segments": _COUNT},
            "added": {"segments": _COUNT},
        },
        num_buckets=64,
        psfunc_modules=["tests.chaos.counting"],
        durability={
            "mode": mode,
            "directory": str(journals),
            "fsync": "never",
            "snapshot_after_bytes": snapshot_after_bytes,
            "recovery_seconds": 60,
            "standby_seconds": STANDBY_SECONDS,
        },
    )


@dataclass(frozen=True)
class Step:
    """One update. adds: by table, the keys to whose rows it adds 1. removes: likewise, whose rows it removes. grown:
    what it does to every row: (exponent of the factor in `scaled`, addend in `added`).
    """

    kind: str
    adds: dict
    removes: dict
    grown: tuple = (0, 0)
    event_time: int = 0


def keys_of(slot, ids):
    """uint64 [n]"""
    return np.uint64(slot << 52) | np.asarray(ids, np.uint64)


def own_keys(slot, client, first, count=1):
    """uint64 [count]: keys that no other client has."""
    return keys_of(slot, (client << 32) + first + np.arange(count))


def step_of(client, number):
    """The update of this number."""
    rng = np.random.default_rng((7, client, number))
    cycle, place = divmod(number, CYCLE)
    if place in _LIFE:
        return _life(client, cycle, _LIFE.index(place))
    if place in _AGED:
        return _aged(client, cycle, _AGED.index(place))
    kind = _PUSHED_IN_CYCLE.get(place, "push")
    if kind == "push":
        shared = rng.choice(NUM_COUNTS, int(rng.integers(1, 120)), replace=False)
        return Step(kind, {"counts": keys_of(SHARED, shared), "ones": own_keys(MARKS, client, number)}, {})
    if kind == "big":
        return Step("push", {"counts": keys_of(SHARED, np.arange(NUM_COUNTS))}, {})
    if kind == "admit":
        return Step("push", {"admitted": keys_of(SHARED, rng.choice(NUM_ADMITTED, 20, replace=False))}, {})
    if kind == "tally":
        return Step(kind, {"ones": own_keys(TALLIES, client, 0, NUM_TALLIES)[:: int(rng.integers(1, 5))]}, {})
    scale = 1 if cycle % 4 == 1 else -1
    return Step("wide", {}, {}, grown=(0, 1) if cycle % 2 == 0 else (scale, 0))


def _life(client, cycle, place):
    """Pushed, pushed, deleted, pushed; in odd cycles the deletion comes last."""
    keys = own_keys(LIVES, client, 4 * cycle, 4)
    if place == (2 if cycle % 2 == 0 else 3):
        return Step("delete", {}, {"ones": keys})
    return Step("push", {"ones": keys}, {})


def _aged(client, cycle, place):
    """Client 0 pushes what it then evicts; the others push what is never old enough."""
    if client:
        return Step("push", {"aged": own_keys(AGED, client, cycle % 50)}, {}, event_time=NEVER_OLD)
    keys, now = own_keys(AGED, 0, 4000 * cycle, 40 + 1000 * (cycle % 5 == 0)), 1000 + 10 * cycle
    if place == 2:
        return Step("evict", {}, {"aged": keys}, event_time=now + MAX_AGE + 5)
    return Step("push", {"aged": keys}, {}, event_time=now)


def prepare(client):
    """Before the first update: the rows of `scaled` are 1, those of `added` 0."""
    for table, value in (("scaled", 1.0), ("added", 0.0)):
        client.update(table, ps.Fill(value), keys_of(SHARED, np.arange(NUM_WIDE)))


def send(client, step, number):
    """The future of a step, or None where it is done when this returns."""
    if step.kind == "push":
        lookup = client.prepare(step.adds)
        gradients = {table: np.full((len(keys), 1), -1, np.float32) for table, keys in lookup.keys.items()}
        return client.start_push(lookup, gradients, step=number, event_time=step.event_time)
    if step.kind == "tally":
        client.update("ones", CountCall(), step.adds["ones"], step=number)
    elif step.kind == "delete":
        client.delete("ones", step.removes["ones"])
    elif step.kind == "evict":
        client.evict("aged", event_time=step.event_time)
    elif step.grown[1]:
        client.update("added", ps.Map("add", 1.0))
    else:
        client.update("scaled", ps.Scale(2.0 ** step.grown[0]))
    return None
