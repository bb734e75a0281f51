"""Mistakes in a model's part of the config: one clear line each, with the nearest valid name."""

import pytest

from ps.errors import RequestError
from workers.models import MODELS, build_model, check_segments, parse_params, required_segments

SHAPE = {"num_fields": 3, "segment_dims": {"linear": 1, "embedding": 4}, "field_names": ("user", "item", "city")}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"name": "depfm"},
            r"model.name: unknown model 'depfm'; did you mean 'deepfm'\?",
        ),
        ({}, r"model.name: unknown model None; allowed: lr, fm, wide_deep"),
        ({"name": "deepfm", "hiden": [4]}, r"model.hiden: unknown key; did you mean 'hidden'\? \(model deepfm\)"),
        ({"name": "lr", "hidden": [4]}, r"model.hidden: unknown key \(model lr\)"),
        ({"name": "deepfm", "dropout": 1.5}, r"model.dropout: must be less than 1, found 1.5"),
        ({"name": "deepfm", "hidden": [4, "x"]}, r"model.hidden.1: must be a valid integer.*found 'x'"),
        (
            {"name": "fibinet", "bilinear": "all"},
            r"model.bilinear: must be 'field_all', 'field_each'.*found 'all'",
        ),
        ({"name": "wide_deep", "wide": ["usr"]}, r"model.wide: no field is called 'usr'; did you mean 'user'\?"),
    ],
)
def test_mistakes_are_named(params, message):
    with pytest.raises(RequestError, match=message):
        build_model(params, **SHAPE)


def test_segments_are_checked_before_the_first_batch():
    with pytest.raises(
        RequestError, match=r"tables.user.*model fm reads a segment 'linear' of dim 1; found embedding \(8\)"
    ):
        check_segments("fm", {"embedding": 8}, where="tables.user.segments")
    with pytest.raises(RequestError, match=r"linear.dim: found 1; model lr reads it with dim 2 \(2 tasks"):
        check_segments("lr", {"linear": 1}, num_tasks=2)
    check_segments("lr", {"linear": 1, "visits": 3})


def test_each_model_names_its_segments():
    assert required_segments("lr", 3) == {"linear": 3}
    for name in set(MODELS) - {"lr"}:
        assert required_segments(name) == {"linear": 1, "embedding": None}


def test_params_are_frozen():
    _, params = parse_params({"name": "deepfm", "hidden": [4]})
    with pytest.raises(ValueError, match="frozen"):
        params.hidden = (5,)
