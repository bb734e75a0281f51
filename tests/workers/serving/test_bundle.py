"""Bundles: read as they were written; every damage is refused with the name of the file."""

import json
import subprocess
import sys
import zlib

import numpy as np
import pytest

from ps.chain import live_records
from ps.checkpoint import read_manifest
from ps.errors import BundleError
from ps.serving_rows import RowEncoder
from tests.test_structure import ROOT
from tests.workers.serving.making import FIELDS, make_bundle, rows_of
from workers.serving.bundle import MANIFEST_FILE, is_bundle, read_bundle


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "bundle")


def rewrite(bundle, change):
    """Change the manifest as somebody would who knows its checksum."""
    path = bundle.directory / MANIFEST_FILE
    body = json.loads(path.read_text())
    body.pop("crc32")
    change(body)
    crc = zlib.crc32(json.dumps(body, sort_keys=True).encode())
    path.write_text(json.dumps({**body, "crc32": crc}))


def test_a_bundle_comes_back(bundle):
    found = read_bundle(bundle.directory)
    assert found == bundle
    assert is_bundle(bundle.directory)
    assert not is_bundle(bundle.directory.parent)
    assert found.fields == FIELDS
    assert list(found.fields) == ["user", "tags", "price"]
    assert (found.manifest.dense, found.manifest.slots) == (("price",), {"user": 0, "tags": 1})
    assert found.offsets == {0: 5}
    assert found.examples()["split"] == "test"
    found.verify()


def test_its_rows_are_a_checkpoint_of_the_serving_spec(bundle):
    manifest = read_manifest(bundle.rows_directory)
    assert manifest.spec == bundle.serving_spec
    encoder = RowEncoder(bundle.serving_spec.tables["main"])
    records = [record for record, _ in live_records(manifest)]
    keys, values = rows_of()
    np.testing.assert_array_equal(np.concatenate([record.keys for record in records]), keys)
    np.testing.assert_array_equal(np.concatenate([encoder.decode(record.images) for record in records]), values)


def test_damage_of_each_file_is_refused_by_name(bundle):
    names = [MANIFEST_FILE, *bundle.manifest.files]
    assert len(names) == 5
    for name in names:
        path = bundle.directory / name
        whole = path.read_bytes()
        at = len(whole) // 2
        for damaged in (None, whole[:-1], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            with pytest.raises(BundleError, match=path.name.replace(".", r"\.")):
                read_bundle(bundle.directory).verify()
        path.write_bytes(whole)
    read_bundle(bundle.directory).verify()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda body: body.update(format=2), "format 2 is newer than 1; use a newer weir-ps"),
        (lambda body: body.update(format="x"), "no manifest of a bundle"),
        (lambda body: body["spec"].update(psfunc_modules=["os"]), "spec: .*names psfunc_modules"),
        (lambda body: body["files"].update({"../x": {"bytes": 0, "crc32": 0}}), r"files\.\.\./x"),
        (lambda body: body["files"].pop("tower.onnx"), "files lacks tower.onnx"),
        (lambda body: body["fields"]["user"].update(slot=None), "fields.user: needs a slot"),
        (lambda body: body["fields"]["user"].update(slot=1), "two have the same slot"),
        (lambda body: body["fields"]["price"].update(column=None), "fields.price: needs its column"),
        (lambda body: body["inputs"]["linear"].update(dim=2), "inputs.linear: field 'user' has no such segment"),
        (lambda body: body["inputs"]["linear"].update(fields=["who"]), "'who'"),
        (lambda body: body["tables"].clear(), "name different tables"),
        (lambda body: body.update(version="../1"), "version: "),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(bundle, change, said):
    rewrite(bundle, change)
    with pytest.raises(BundleError, match=said):
        read_bundle(bundle.directory)


def test_reading_imports_no_module_that_a_manifest_names(bundle, tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    rewrite(bundle, lambda body: body["serving"].update(psfunc_modules=["planted"]))
    with pytest.raises(BundleError, match="names psfunc_modules"):
        read_bundle(bundle.directory)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="is no bundle; `weir export` makes one"):
        read_bundle(tmp_path)


def test_reading_is_light():
    check = (
        "import workers.serving.bundle, sys; "
        "print(*sorted({'torch', 'ray', 'pyarrow', 'onnx', 'grpc'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True, capture_output=True).stdout == b"\n"
