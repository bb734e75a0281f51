"""Restoring into other specs: rows keep what means the same, by name, and the rest starts as new rows do."""

import json
import shutil
from pathlib import Path

import msgpack
import numpy as np
import pytest

import ps
from ps.chain import verify
from ps.checkpoint import write_manifest
from ps.conversion import Converter
from ps.mapping import TablePlan, plan_restore, read_mapping
from ps.storage.table import Table
from ps.types import Seen
from tests.ps.stored.make_version_1 import KEYS, SPEC

STORED = Path(__file__).parent / "stored" / "version-1"
USER = SPEC.tables["user"]
# Everything at once: another order, optimizer, codecs, nothing late, a new segment, one dropped at the way back.
OTHER = ps.ClusterSpec.model_validate(
    {
        "tables": {
            "user": {
                "segments": {
                    "wide": {"dim": 2, "optimizer": "sgd", "initializer": {"name": "uniform", "scale": 0.1}},
                    "embedding": {"dim": 3, "codec": "int8", "state_codec": "bf16"},
                    "linear": {"dim": 1, "optimizer": "sgd"},
                },
                "keep_counts": True,
            }
        },
        "num_buckets": 16,
        "seed": 5,
    }
)


def table_of(spec, name="user"):
    return Table(name, spec.tables[name], seed=spec.seed, num_buckets=spec.num_buckets)


def trained(spec, steps=4):
    """A table whose rows differ in age: early and full ones."""
    table, rng = table_of(spec), np.random.default_rng(0)
    for step in range(1, steps + 1):
        keys = KEYS[: 10 * step]
        gradients = rng.normal(size=(len(keys), spec.tables["user"].width)).astype(np.float32)
        rates = np.full(len(spec.tables["user"].segments), 0.1, np.float32)
        table.push(keys, gradients, step=step, learning_rates=rates, seen=Seen(1000 + step))
    return table


def moved(source, old, new, mapping=None, *, event_time=7):
    """The rows of a table in a new one of another spec."""
    plan = plan_restore(old, new, read_mapping(mapping or {})).tables["user"]
    converter, target = Converter(plan, old, new, event_time=event_time), table_of(new)
    for bucket in range(old.num_buckets):
        for keys, images in source.read_images(bucket):
            target.write_images(keys, converter.convert(keys, images))
    return target


def state_of(table, segment):
    blocks = [block for bucket in range(table.num_buckets) for block in table.scan(bucket, segment)]
    return {key: state.copy() for block in blocks for key, state in zip(block.keys.tolist(), block.state)}


def metadata_of(table):
    blocks = [block for bucket in range(table.num_buckets) for block in table.scan(bucket)]
    return {key: counts.tolist() for block in blocks for key, counts in zip(block.keys.tolist(), block.counts())}


def test_values_come_along_in_another_precision_and_state_where_the_optimizer_stays():
    source = trained(SPEC)
    target = moved(source, SPEC, OTHER)
    full = KEYS[~np.isin(KEYS, early_of(source))]
    assert 0 < len(full) < source.num_rows == target.num_rows
    here, there = source.pull(KEYS), target.pull(KEYS)
    columns = OTHER.tables["user"].columns()
    np.testing.assert_array_equal(there[:, columns["linear"]], here[:, :1])
    np.testing.assert_array_equal(there[:, columns["wide"]], target.initial_values(KEYS)[:, columns["wide"]])
    assert np.abs(there[:, columns["wide"]]).min() > 0
    is_full = np.isin(KEYS, full)
    scale = np.exp2(np.ceil(np.log2(np.abs(here[is_full, 1:]).max(axis=1, keepdims=True) / 127)))
    embedding = there[:, columns["embedding"]]
    assert (np.abs(embedding[is_full] - here[is_full, 1:]) <= scale / 2).all()
    np.testing.assert_array_equal(embedding[~is_full], 0)  # initial here; in the old spec it is not
    before, after = state_of(source, "embedding"), state_of(target, "embedding")
    assert sorted(before) == sorted(full.tolist())
    for key, state in before.items():
        bits = state.view(np.uint32)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).view(np.float32)
        np.testing.assert_array_equal(after[key], nearest)
    assert state_of(target, "linear")[int(KEYS[0])].shape == (0,)
    assert metadata_of(target) == metadata_of(source)


def early_of(table):
    with_segment = state_of(table, "embedding")
    return np.array([key for key in KEYS.tolist() if key not in with_segment], np.uint64)


def test_the_way_back_makes_late_segments_where_they_have_values():
    source = trained(OTHER)
    target = moved(source, OTHER, SPEC)
    assert target.num_rows == source.num_rows
    assert target.num_early == 0
    np.testing.assert_array_equal(target.pull(KEYS)[:, :1], source.pull(KEYS)[:, -1:])
    # FTRL has no state for a weight that came from elsewhere; it makes one that stands for the weight.
    zeros = np.zeros((len(KEYS), 4), np.float32)
    before = target.pull(KEYS)
    target.push(KEYS, zeros, step=1, learning_rates=np.full(2, 0.1, np.float32))
    np.testing.assert_allclose(target.pull(KEYS), before, rtol=1e-5, atol=1e-7)
    # Where nothing late has values rows begin early.
    assert moved(source, OTHER, SPEC, {"user.embedding": None}).num_early == source.num_rows


def test_codes_of_equal_precision_are_copied():
    """Also where the optimizer changes: int8 keeps its scale, so nothing is rounded twice."""
    source = trained(OTHER)
    other = OTHER.tables["user"].segments["embedding"].model_copy(update={"optimizer": ps.SGD()})
    sgd = with_segment(OTHER, "embedding", other)
    target = moved(source, OTHER, sgd)
    np.testing.assert_array_equal(target.pull(KEYS), source.pull(KEYS))
    assert state_of(target, "embedding")[int(KEYS[0])].shape == (0,)
    again = moved(target, sgd, OTHER)
    np.testing.assert_array_equal(again.pull(KEYS), source.pull(KEYS))
    assert (state_of(again, "embedding")[int(KEYS[0])] == 0).all()


def with_segment(spec, name, segment):
    table = spec.tables["user"]
    table = table.model_copy(update={"segments": {**table.segments, name: segment}})
    return spec.model_copy(update={"tables": {"user": table}})


@pytest.mark.parametrize("dim", [1, 4])
def test_a_resized_segment_is_cut_or_filled_up(dim):
    source = trained(OTHER)
    wide = OTHER.tables["user"].segments["wide"].model_copy(update={"dim": dim})
    new = with_segment(OTHER, "wide", wide)
    target = moved(source, OTHER, new, {"user.wide": {"resize": True}})
    before, after = source.pull(KEYS), target.pull(KEYS)
    common = min(dim, 2)
    np.testing.assert_array_equal(after[:, :common], before[:, :common])
    np.testing.assert_array_equal(after[:, common:dim], target.initial_values(KEYS)[:, common:dim])
    np.testing.assert_array_equal(after[:, dim:], before[:, 2:])


def test_images_of_another_size_are_refused():
    plan = TablePlan("user", "user", {"linear": "linear", "embedding": "embedding", "wide": None})
    converter = Converter(plan, SPEC, OTHER, event_time=0)
    with pytest.raises(ps.CheckpointError, match="images of 4 bytes"):
        converter.convert(KEYS[:1], np.zeros((1, 4), np.uint8))


# The stored checkpoints of format versions 1 and 2.


def expected_rows(table, stored=STORED):
    return np.array(json.loads((stored / "rows.json").read_text())[table], np.float32)


def test_version_1_is_read():
    summary = verify(STORED)
    assert summary.manifest.spec == SPEC
    with ps.local(SPEC, shards=3) as client:
        found = client.restore(str(STORED))
        assert (found.rows, found.changes) == (sum(summary.rows.values()), ())
        for table in SPEC.tables:
            np.testing.assert_array_equal(client.pull(table, KEYS), expected_rows(table))


def test_version_2_is_read():
    stored = STORED.parent / "version-2"
    assert len(verify(stored / "increment").manifest.chain) == 2
    with ps.local(SPEC, shards=3) as client:
        assert (
            client.restore(str(stored / "increment")).rows == json.loads((stored / "rows.json").read_text())["num_rows"]
        )
        for table in SPEC.tables:
            np.testing.assert_array_equal(client.pull(table, KEYS), expected_rows(table, stored))


def test_another_cluster_takes_what_it_knows():
    """Other buckets, seed, tables; and the client's own pushes are new there, whatever was applied before."""
    with ps.local(OTHER, shards=2) as client:
        found = client.restore(str(STORED))
        assert found.rows == verify(STORED).rows["user"]
        for said in (
            "num_buckets: 4 -> 16",
            "seed: 3 -> 5",
            "dropped: table item",
            "optimizer: user.linear ftrl -> sgd",
        ):
            assert any(change.startswith(said) for change in found.changes), said
        np.testing.assert_array_equal(client.pull("user", KEYS)[:, -1], expected_rows("user")[:, 0])
        assert client.push("user", KEYS, np.zeros((40, 6), np.float32), step=5).wait().applied == 40
        assert client.get("user", ps.Size()) == found.rows


def test_fewer_buckets(tmp_path):
    few = OTHER.model_copy(update={"num_buckets": 2})
    with ps.local(OTHER, shards=3) as client:
        client.push("user", KEYS, np.ones((40, 6), np.float32), step=1).wait()
        client.save(str(tmp_path))
        rows = client.pull("user", KEYS)
    with ps.local(few, shards=2) as client:
        assert client.restore(str(tmp_path)).rows == 40
        np.testing.assert_array_equal(client.pull("user", KEYS), rows)


def test_a_mapping_that_does_not_fit_changes_nothing():
    with ps.local(OTHER) as client:
        client.push("user", KEYS, np.ones((40, 6), np.float32), step=1).wait()
        rows, epoch = client.pull("user", KEYS), client.routing.epoch
        with pytest.raises(ps.RequestError, match="no segment 'deep'"):
            client.restore(str(STORED), mapping={"user.wide": "deep"})
        np.testing.assert_array_equal(client.pull("user", KEYS), rows)
        assert client.routing.epoch == epoch
        found = client.restore(
            str(STORED), mapping={"user.wide": {"from": "linear", "resize": True}, "user.linear": None}
        )
        assert found.rows == verify(STORED).rows["user"]
        wide = client.pull("user", KEYS)[:, :2]
        np.testing.assert_array_equal(wide[:, 0], expected_rows("user")[:, 0])


def test_a_spec_that_does_not_describe_the_rows_is_refused(tmp_path):
    """The manifest of another checkpoint beside the files: whole, but not theirs."""
    with ps.local(OTHER, shards=2) as client:
        folder = tmp_path / "mixed"
        shutil.copytree(STORED, folder)
        stored = json.loads((STORED / "MANIFEST.json").read_text())
        mixed = OTHER.model_copy(update={"num_buckets": 4, "seed": 3})
        write_manifest(folder, mixed, [msgpack.packb(part) for part in stored["parts"]])
        with pytest.raises(ps.CheckpointError, match="layout"):
            client.restore(str(folder))
