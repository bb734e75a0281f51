"""What rows live by: clicks of keys, event times, and when to evict."""

import json

import numpy as np

from ps.spec import TableSpec
from workers.samples.batch import Bags, Batch
from workers.training.lifetimes import clicks_of, due_evictions, event_time_of

SEGMENTS = {"segments": {"e": {"dim": 2}}}
COUNTED = TableSpec.model_validate({**SEGMENTS, "keep_counts": True})
PLAIN = TableSpec.model_validate(SEGMENTS)


def batch(**bags):
    labels = np.array([[1, 0], [np.nan, 1], [0, 1]], np.float32)
    return Batch(3, bags, np.zeros((3, 0), np.float32), labels, event_time=np.array([5.0, 9.0, 7.0]))


def test_each_key_gets_its_samples_click():
    dense = Bags(np.arange(6, dtype=np.uint64), ("user", "item"))
    offsets = np.array([0, 2, 2, 3, 6, 6, 7])  # bags of (user, tags) of three samples
    jagged = Bags(np.arange(7, dtype=np.uint64), ("user", "tags"), offsets, (False, True))
    made = batch(a=dense, b=jagged, c=dense)
    tables = {"a": COUNTED, "b": COUNTED, "c": PLAIN}
    found = clicks_of(made, 0, tables)
    assert set(found) == {"a", "b"}
    assert found["a"].tolist() == [1, 1, 0, 0, 0, 0]  # a masked label is no click
    assert found["b"].tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert clicks_of(made, 1, tables)["b"].tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert event_time_of(made) == 9.0


def test_evictions_come_when_event_time_has_passed():
    aged = TableSpec.model_validate({**SEGMENTS, "eviction": {"max_age_seconds": 60, "every_seconds": 100}})
    full = TableSpec.model_validate({**SEGMENTS, "memory_limit_bytes": 1 << 20, "eviction": {"when_full": "oldest"}})
    tables, at = {"aged": aged, "full": full, "plain": PLAIN}, {}
    assert due_evictions(tables, at, 1000.0) == []
    assert due_evictions(tables, at, 1099.0) == []
    assert due_evictions(tables, at, 1100.0) == ["aged"]
    assert at == {"aged": 1000.0}
    assert json.loads(json.dumps(at)) == at
