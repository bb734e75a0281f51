"""Checkpoints on local disks and on filesystems of pyarrow: the same files, whole or not there."""

import sys

import numpy as np
import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

import ps
from ps import chain, checkpoint, places
from ps.places import ArrowPlace, LocalPlace, open_place
from tests.ps.driving import SPEC, keys_in
from workers.inspect import inspect

KEYS = keys_in(range(16), each=20)


@pytest.fixture(params=["local", "file uri", "subtree", "memory"])
def place(request, tmp_path):
    match request.param:
        case "local":
            return LocalPlace(tmp_path / "a" / "b")
        case "file uri":
            return open_place((tmp_path / "a b").as_uri())
        case "subtree":
            return ArrowPlace(SubTreeFileSystem(str(tmp_path), LocalFileSystem()), "a/b")
    return open_place(f"fsspec+memory://{tmp_path.name}/b")


def test_files_come_whole_or_not_at_all(place):
    with place.create("one") as file:
        file.write(b"12345")
        file.write(b"67890")
    assert place.size("one") == 10
    with pytest.raises(ZeroDivisionError), place.create("two") as file:
        file.write(b"1")
        raise ZeroDivisionError
    assert place.size("two") is None
    place.replace("three", b"first")
    place.replace("three", b"second one")
    assert sorted(place.names()) == ["one", "three"]
    with place.open("three") as file:
        assert file.read() == b"second one"
        file.seek(7)
        assert (file.tell(), file.read(3), file.read(1)) == (7, b"one", b"")
        file.seek(-3, 1)
        assert file.read(1) == b"o"
    place.remove("one")
    place.remove("one")
    assert place.names() == ["three"]


def test_large_files_are_what_was_written(place):
    """More than the disk is given at once, in pieces of all sizes; read at length and in parts."""
    pieces = [np.random.default_rng(size).bytes(size) for size in (10, 300_000, 9 << 20, 1, 12 << 20)]
    with place.create("large") as file:
        for piece in pieces:
            file.write(memoryview(piece))
    data = b"".join(pieces)
    with place.open("large") as file:
        assert file.read(1 << 20) == data[: 1 << 20]
        file.seek(5 << 20, 1)
        assert file.read(100_000) == data[6 << 20 :][:100_000]
        assert file.read(1 << 30) == data[(6 << 20) + 100_000 :]
        assert file.read(1 << 20) == b""
        file.seek(0)
        assert file.read() == data
    with pytest.raises(FileNotFoundError):
        place.open("one")


@pytest.mark.parametrize("scheme", ["file", "fsspec+memory"])
def test_a_cluster_saves_to_a_uri_and_restores_from_it(tmp_path, scheme):
    uri = tmp_path.as_uri() if scheme == "file" else f"fsspec+memory://cluster-{tmp_path.name}/step-1"
    with ps.local(SPEC, shards=3) as client:
        client.push("user", KEYS, np.ones((len(KEYS), 3), np.float32), step=1).wait()
        rows = client.pull("user", KEYS)
        client.save(uri)
        client.save(uri)
    place = open_place(uri)
    assert len(place.names()) == 3 + 1, "files of the first save are left"
    assert chain.verify(uri).rows == {"user": len(KEYS)}
    assert chain.find_row(uri, "user", int(KEYS[3])) is not None
    # fsspec's memory has one position a file, so two shards of one process cannot read it at once.
    with ps.local(SPEC, shards=2 if scheme == "file" else 1) as client:
        assert client.restore(uri).rows == len(KEYS)
        np.testing.assert_array_equal(client.pull("user", KEYS), rows)
    (name,) = [name for name in place.names() if name.startswith("rows-0001")]
    place.remove(name)
    with pytest.raises(ps.CheckpointError, match="is missing, the manifest says"):
        checkpoint.read_manifest(uri)
    place.remove(checkpoint.MANIFEST)
    with pytest.raises(ps.CheckpointError, match="holds no complete checkpoint"):
        checkpoint.read_manifest(uri)


def test_uris_that_nobody_knows_and_a_missing_pyarrow_are_told(monkeypatch):
    with pytest.raises(ps.CheckpointError, match="nowhere://a cannot be opened"):
        open_place("nowhere://a")
    monkeypatch.setitem(sys.modules, "pyarrow.fs", None)
    with pytest.raises(ps.CheckpointError, match=r"s3://bucket/a: needs pyarrow; pip install 'weir-ps\[train\]'"):
        open_place("s3://bucket/a")
    assert isinstance(open_place("file:///tmp/a"), LocalPlace)


def test_paths_are_made_absolute_and_uris_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert places.absolute("a") == str(tmp_path / "a")
    assert places.absolute(tmp_path) == str(tmp_path)
    assert places.absolute("s3://b/a") == "s3://b/a"


def test_a_checkpoint_at_a_uri_is_inspected(tmp_path):
    with ps.local(SPEC, shards=2) as client:
        client.push("user", KEYS, np.ones((len(KEYS), 3), np.float32), step=1).wait()
        client.save(tmp_path.as_uri())
    found = inspect(tmp_path.as_uri())
    assert found["tables"]["user"]["rows"] == len(KEYS)
    assert found == {**inspect(tmp_path), "checkpoint": tmp_path.as_uri()}
