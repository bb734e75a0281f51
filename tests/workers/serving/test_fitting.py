"""What is refused before it serves: other requests, towers that score otherwise, damaged records."""

import numpy as np
import pytest

from tests.workers.serving.making import FIELDS, make_bundle
from tests.workers.serving.towers import write_tower
from workers.config import Categorical, Numeric
from workers.serving.bundle import Bundle
from workers.serving.fitting import check_schema, check_tower
from workers.serving.manifest import ServedLabel
from workers.serving.recorded import RECORDED_FILE, Recorded, read_recorded, write_recorded
from workers.serving.versions import VersionError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle"))


def changed(bundle, **changes):
    return Bundle(bundle.directory, bundle.manifest.model_copy(update=changes))


def test_the_same_requests_fit(bundle):
    renamed = {**FIELDS, "price": Numeric(column="price", transform="raw")}  # read otherwise: the tower knows how
    check_schema(bundle, changed(bundle, fields=renamed, version="next"), serving="now")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fields": {**FIELDS, "city": Categorical(column="city")}}, "columns.city is categorical, not missing"),
        ({"fields": {k: v for k, v in FIELDS.items() if k != "tags"}}, "columns.tags is missing, not multi"),
        ({"fields": {**FIELDS, "price": Categorical(column="price")}}, "columns.price is categorical, not numeric"),
        ({"fields": {**FIELDS, "user": Categorical(column="id")}}, "columns.id is categorical, not missing"),
        ({"labels": {"click": ServedLabel(type="real")}}, "labels.click is real, not binary"),
    ],
)
def test_other_requests_are_refused(bundle, changes, said):
    with pytest.raises(
        VersionError, match=rf"'step-3' answers other requests than 'now', which serves: {said}; --force"
    ):
        check_schema(bundle, changed(bundle, **changes), serving="now")


@pytest.fixture
def folder(tmp_path):
    """A tower of sums that adds 3."""
    write_tower(tmp_path, {"linear": (2, 1)}, adds=3.0, num_dense=1)
    return tmp_path


def recorded(adds=3.0):
    rows = np.random.default_rng(3).normal(size=(4, 2, 1)).astype(np.float32)
    dense = np.float32([[0.1], [0.2], [0.3], [0.4]])
    return Recorded({"rows_linear": rows, "dense": dense}, rows.sum((1, 2))[:, None] + dense + np.float32(adds))


def test_a_tower_is_compared_with_what_was_recorded(folder):
    write_recorded(folder, recorded())
    found = read_recorded(folder)
    assert found.inputs["rows_linear"].tobytes() == recorded().inputs["rows_linear"].tobytes()
    assert check_tower(folder, found) < 1e-6
    with pytest.raises(VersionError, match=r"scores its recorded examples otherwise than training did, by 0\.2"):
        check_tower(folder, recorded(adds=4.0))
    with pytest.raises(VersionError, match="by nan"):
        check_tower(folder, recorded(adds=np.nan))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"inputs": {"a": "b"}, "logits": []}', '{"inputs": 3}', "\0"])
def test_a_damaged_record_is_said(tmp_path, text):
    (tmp_path / RECORDED_FILE).write_text(text)
    with pytest.raises(VersionError, match=r"recorded\.json cannot be read"):
        read_recorded(tmp_path)
