"""Statistics of slots from a checkpoint: the bits of the running cluster, on any number of shards, and as text."""

import numpy as np
import pytest

import ps
from ps.chain import verify
from ps.checkpoint import read_manifest
from ps.errors import CheckpointError
from ps.keys import pack
from workers.slots import SLOT_STATISTICS, RecordedSlots, by_name, shown

SPEC = ps.ClusterSpec(
    tables={
        "user": ps.TableSpec(
            segments={
                "linear": ps.SegmentSpec(dim=1, optimizer="sgd"),
                "embedding": ps.SegmentSpec(dim=3, initializer=ps.Normal(std=0.1), codec="bf16", optimizer="sgd"),
            }
        ),
        "empty": ps.TableSpec(segments={"embedding": ps.SegmentSpec(dim=2)}),
    },
    num_buckets=8,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of two shards, with buckets of more than one block, and what the cluster said of its slots."""
    folder = tmp_path_factory.mktemp("checkpoint")
    with ps.LocalCluster(SPEC, shards=2) as cluster, cluster.connect() as client:
        keys = np.concatenate([pack(slot, np.arange(20_000, dtype=np.uint64)) for slot in (1, 2, 40)])
        gradients = np.random.default_rng(0).normal(size=(len(keys), 4)).astype(np.float32)
        gradients[::3] = 0
        client.push("user", keys, gradients, step=1).wait()
        client.save(str(folder))
        return folder, {name: client.get(name, ps.SlotStatistics()) for name in SPEC.tables}


def test_a_checkpoint_gives_the_bits_of_the_cluster(saved):
    folder, live = saved
    recorded = RecordedSlots(read_manifest(folder).spec)
    verify(folder, recorded.add)
    assert recorded.summaries() == live
    assert [each.rows for each in live["user"].values()] == [20_000] * 3
    assert live["empty"] == {}


def test_rows_of_another_layout_are_told(saved):
    folder, _ = saved
    wider = SPEC.model_dump()
    wider["tables"]["user"]["segments"]["embedding"]["dim"] = 5
    with pytest.raises(CheckpointError, match="table 'user': the rows have another layout"):
        verify(folder, RecordedSlots(ps.ClusterSpec.model_validate(wider)).add)


def test_text_for_a_person():
    segments = {
        "linear": ps.SegmentStatistics(norm_mean=0.25, norm_max=2.0, share_zero=0.5, coverage=0.5),
        "embedding": ps.SegmentStatistics(norm_mean=1 / 3, norm_max=12345.6, share_zero=0.0, coverage=1.0),
    }
    slots = {
        7: ps.SlotSummary(3, 0.75, 132, None, None, segments),
        9: ps.SlotSummary(1, 0.25, 44, None, None, segments),
    }
    text = shown({"rows": 4, SLOT_STATISTICS: {"main": by_name(slots, {7: "user"})}})
    assert text.splitlines() == [
        "rows: 4",
        "",
        "table main",
        "slot  rows   share  bytes  segment    norm mean   norm max    zero  coverage",
        "user     3  75.00%    132  linear          0.25          2  50.00%    50.00%",
        "                           embedding     0.3333  1.235e+04   0.00%   100.00%",
        "9        1  25.00%     44  linear          0.25          2  50.00%    50.00%",
        "                           embedding     0.3333  1.235e+04   0.00%   100.00%",
    ]
    counted = {7: ps.SlotSummary(3, 1.0, 168, 1e7, 2.5, {"linear": segments["linear"]})}
    assert shown({SLOT_STATISTICS: {"main": by_name(counted, {})}}).splitlines()[-2:] == [
        "slot  rows    share  bytes  shows  clicks  segment  norm mean  norm max    zero  coverage",
        "   7     3  100.00%    168  1e+07     2.5  linear        0.25         2  50.00%    50.00%",
    ]
