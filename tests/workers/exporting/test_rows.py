"""Rows on their way to serving: what a pull gives, in every codec, of whole checkpoints and increments, in bounded
memory.
"""

import tracemalloc

import numpy as np
import pyarrow.parquet as pq
import pytest

import ps
from ps.checkpoint import read_manifest
from ps.errors import CheckpointError
from ps.keys import pack, slot_of
from ps.serving_rows import RowEncoder, serving_spec
from ps.spec import ClusterSpec
from tests.ps.driving import TWO_TABLES, keys_of
from tests.ps.test_serving_rows import TRAINED
from workers.exporting.parquet import ParquetRows, file_name
from workers.exporting.rows import ChosenRows, read_rows, write_rows

KEYS = keys_of(*range(1, 2001))
SPEC = ClusterSpec(tables={"main": TRAINED}, num_buckets=16, seed=3)


def rows_of(directory):
    """{table: (keys ascending, values)} of a checkpoint."""
    found = {}
    for table, _, keys, values in read_rows(read_manifest(directory)):
        found.setdefault(table, []).append((keys, values))
    joined = {table: tuple(map(np.concatenate, zip(*parts))) for table, parts in found.items()}
    return {table: (keys[np.argsort(keys)], values[np.argsort(keys)]) for table, (keys, values) in joined.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of FTRL weights, and late segments that half of the rows lack; what its keys read, and others."""
    directory = tmp_path_factory.mktemp("trained") / "step-1"
    with ps.local(SPEC, shards=2) as client:
        gradients = np.random.default_rng(0).normal(size=(len(KEYS), 6)).astype(np.float32)
        clicks = np.repeat(np.arange(2, dtype=np.float32) * 9, len(KEYS) // 2)
        client.push("main", KEYS, gradients, step=1, shows=np.full(len(KEYS), 9, np.float32), clicks=clicks).wait()
        client.push("main", KEYS, gradients, step=2, shows=np.full(len(KEYS), 9, np.float32), clicks=clicks).wait()
        client.save(str(directory))
        unknown = keys_of(*range(5001, 5100))
        return directory, client.pull("main", np.sort(KEYS)), (unknown, client.pull("main", unknown))


@pytest.mark.parametrize("codec", ["fp32", "fp16", "bf16", "int8"])
def test_served_rows_are_what_a_pull_gives_to_the_nearest_code(trained, tmp_path, codec):
    directory, expected, (unknown, initial) = trained
    serving = serving_spec(SPEC, codec)
    chosen = {"main": np.unique(np.concatenate([KEYS[:50], unknown]))}
    of_training, served = ChosenRows(chosen, SPEC), ChosenRows(chosen, SPEC)
    sinks = {"training": [of_training.see], "served": [served.see]}
    written = write_rows(read_manifest(directory), serving, tmp_path, sinks)
    assert written.rows == {"main": len(KEYS)}
    keys, values = rows_of(tmp_path)["main"]
    np.testing.assert_array_equal(keys, np.sort(KEYS))
    encoder = RowEncoder(serving.tables["main"])
    np.testing.assert_array_equal(values, encoder.decode(encoder.encode(expected)))
    if codec == "fp32":
        np.testing.assert_array_equal(values, expected)
    greatest = np.abs(values - expected).max(0)
    assert written.differences == {"main": {"linear": greatest[0], "embedding": greatest[1:].max()}}
    assert written.row_bytes == {"main": 8 + encoder.image_bytes}
    is_unknown = np.isin(chosen["main"], unknown)
    for rows in (of_training, served):  # a key without a row reads as in training, whatever the codec
        np.testing.assert_array_equal(rows.values["main"][is_unknown], initial[np.argsort(unknown)])
    known = np.searchsorted(keys, chosen["main"][~is_unknown])
    np.testing.assert_array_equal(of_training.values["main"][~is_unknown], expected[known])
    np.testing.assert_array_equal(served.values["main"][~is_unknown], values[known])


def test_half_of_the_rows_had_no_late_segment(trained):
    """So that the test above says something of them."""
    sizes = {len(record.images[0]) for record in _records(trained[0]) if len(record.keys)}
    assert len(sizes) == 2


def _records(directory):
    manifest = read_manifest(directory)
    for part in manifest.parts:
        with manifest.open(part) as opened:
            yield from opened.records


def test_increments_and_tables_that_sweep(tmp_path):
    """Newest rows win, deleted ones are gone; Adam's state is left out."""
    uri = f"fsspec+memory://export-{tmp_path.name}"
    with ps.local(TWO_TABLES, shards=2) as client:
        for table, width in (("user", 3), ("item", 2)):
            client.push(table, KEYS, np.ones((len(KEYS), width), np.float32), step=1).wait()
        client.save(f"{uri}/1", tracks=True)
        client.push("item", KEYS[:9], np.ones((9, 2), np.float32), step=2).wait()
        client.delete("user", KEYS[9:20])
        client.save(f"{uri}/2", since=f"{uri}/1")
        expected = {table: client.pull(table, np.sort(KEYS)) for table in TWO_TABLES.tables}
    manifest = read_manifest(f"{uri}/2")
    assert manifest.base is not None
    serving = serving_spec(TWO_TABLES, "fp32")
    written = write_rows(manifest, serving, tmp_path, {})
    assert written.rows == {"user": len(KEYS) - 11, "item": len(KEYS)}
    assert written.row_bytes == {"user": 8 + 12, "item": 8 + 8}
    found = rows_of(tmp_path)
    left = ~np.isin(np.sort(KEYS), KEYS[9:20])
    np.testing.assert_array_equal(found["user"][0], np.sort(KEYS)[left])
    np.testing.assert_array_equal(found["user"][1], expected["user"][left])
    np.testing.assert_array_equal(found["item"][1], expected["item"])


def test_memory_does_not_grow_with_the_rows(tmp_path):
    serving, peaks = serving_spec(TWO_TABLES, "fp32"), []
    for rows in (70_000, 210_000):  # more than a block of each bucket
        source = tmp_path / str(rows)
        with ps.local(TWO_TABLES) as client:
            keys = keys_of(*range(1, rows + 1))
            client.push("user", keys, np.ones((rows, 3), np.float32), step=1).wait()
            client.save(str(source))
        tracemalloc.start()
        assert write_rows(read_manifest(source), serving, tmp_path / f"{rows}-served", {}).rows["user"] == rows
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.25 * peaks[0]


def test_parquet_has_keys_slots_and_segments(tmp_path):
    spec = serving_spec(TWO_TABLES, "fp32")
    keys, values = pack(5, KEYS[:7]), np.arange(21, dtype=np.float32).reshape(7, 3)
    with ParquetRows(tmp_path / "parquet", spec) as rows:
        rows("user", keys[:4], values[:4])
        rows("user", keys[4:], values[4:])
    found = pq.read_table(tmp_path / "parquet" / "user.parquet")
    assert [str(field.type) for field in found.schema] == [
        "uint64",
        "uint16",
        "fixed_size_list<element: float>[1]",
        "fixed_size_list<element: float>[2]",
    ]
    np.testing.assert_array_equal(found["key"].to_numpy(), keys)
    np.testing.assert_array_equal(found["slot"].to_numpy(), slot_of(keys))
    np.testing.assert_array_equal(np.array(found["linear"].to_pylist()), values[:, :1])
    np.testing.assert_array_equal(np.array(found["embedding"].to_pylist()), values[:, 1:])
    assert pq.read_table(tmp_path / "parquet" / "item.parquet").num_rows == 0
    assert file_name("../a b") == "%2E%2E%2Fa%20b.parquet"


def test_a_damaged_checkpoint_names_the_file(trained, tmp_path):
    directory, _, _ = trained
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in directory.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    part = next(copy.glob("rows-*"))
    data = bytearray(part.read_bytes())
    data[-200] ^= 1
    part.write_bytes(data)
    with pytest.raises(CheckpointError, match=part.name):
        write_rows(read_manifest(copy), serving_spec(SPEC, "fp32"), tmp_path / "out", {})
    assert list((tmp_path / "out").iterdir()) == []
