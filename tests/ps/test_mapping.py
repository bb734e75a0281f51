"""What of a checkpoint becomes what of a cluster: names, mappings, and what is said about it."""

import pytest

from ps.errors import RequestError
from ps.mapping import decode_mapping, encode_mapping, plan_restore, read_mapping
from ps.spec import ClusterSpec

USER = {"segments": {"linear": {"dim": 1, "optimizer": "ftrl"}, "embedding": {"dim": 4}}}


def spec(**changes):
    return ClusterSpec.model_validate({"tables": {"user": USER}, "num_buckets": 16, **changes})


def user(**segments):
    return {"user": {"segments": {**USER["segments"], **segments}}}


def planned(old, new, mapping=None):
    found = plan_restore(old, new, decode_mapping(encode_mapping(read_mapping(mapping or {}))))
    return {plan.new: (name, dict(plan.segments)) for name, plan in found.tables.items()}, list(found.changes)


SAME = {"linear": "linear", "embedding": "embedding"}


def test_an_equal_spec_changes_nothing():
    assert planned(spec(), spec()) == ({"user": ("user", SAME)}, [])


@pytest.mark.parametrize(
    ("old", "new", "segments", "changes"),
    [
        (user(), user(wide={"dim": 2}), {**SAME, "wide": None}, ["new: user.wide starts at its initial value"]),
        (user(wide={"dim": 2}), user(), SAME, ["dropped: user.wide"]),
        (user(), user(embedding={"dim": 4, "codec": "int8"}), SAME, ["codec: user.embedding fp32 -> int8"]),
        (user(), user(embedding={"dim": 4, "state_codec": "bf16"}), SAME, ["state_codec: user.embedding fp32 -> bf16"]),
        (
            user(),
            user(embedding={"dim": 4, "optimizer": "adam"}),
            SAME,
            ["optimizer: user.embedding adagrad -> adam: its state starts anew"],
        ),
        (
            user(),
            user(embedding={"dim": 4, "late": 1.0}),
            SAME,
            [
                "late: user.embedding is late now",
                "metadata: rows of table user keep last_seen, shows, clicks, in the checkpoint nothing",
            ],
        ),
    ],
)
def test_segments_by_name(old, new, segments, changes):
    assert planned(spec(tables=old), spec(tables=new)) == ({"user": ("user", segments)}, changes)


def test_tables_by_name():
    old, new = spec(tables={"user": USER, "item": USER}), spec(tables={"user": USER, "place": USER})
    assert planned(old, new) == (
        {"user": ("user", SAME)},
        ["new: table place starts without rows", "dropped: table item"],
    )
    found, changes = planned(old, new, {"place": "item", "user": None})
    assert found == {"place": ("item", SAME)}
    assert changes == ["new: table user starts without rows", "renamed: table place was item", "dropped: table user"]


def test_segments_by_mapping():
    new = spec(tables={"user": {"segments": {"linear": {"dim": 1, "optimizer": "ftrl"}, "vector": {"dim": 8}}}})
    found, changes = planned(spec(), new, {"user.vector": {"from": "embedding", "resize": True}})
    assert found == {"user": ("user", {"linear": "linear", "vector": "embedding"})}
    assert changes == [
        "renamed: user.vector was embedding",
        "resized: user.vector 4 -> 8: the rest starts at its initial value",
        "state: that of user.vector starts anew",
    ]
    wider = spec(tables=user(embedding={"dim": 2}))
    assert planned(spec(), wider, {"user.embedding": {"resize": True}})[1][0] == "resized: user.embedding 4 -> 2: cut"
    assert planned(spec(), wider, {"user.embedding": None})[1] == [
        "new: user.embedding starts at its initial value",
        "dropped: user.embedding",
    ]


def test_what_holds_for_all_tables_is_said():
    changes = planned(spec(), spec(num_buckets=64, seed=9))[1]
    assert changes[0].startswith("num_buckets: 16 -> 64: which updates were applied")
    assert changes[1:] == ["seed: 0 -> 9: rows made from now on begin otherwise"]
    counted = [spec(tables={"user": {**USER, "admission": {"name": "count", "threshold": n}}}) for n in (2, 3)]
    assert planned(*counted)[1] == [
        "admission: table user has other options; what keys without rows had gathered is forgotten"
    ]


@pytest.mark.parametrize(
    ("tables", "mapping", "message"),
    [
        (user(embedding={"dim": 8}), {}, r"user.embedding has dim 8, the checkpoint 4; map it"),
        (user(embedding={"dim": 8}), {"user.embedding": "embedding"}, r"has dim 8, the checkpoint 4"),
        (user(), {"item": "user"}, "mapping item: no such table or segment here; there are: user, user.embedding"),
        (user(), {"user.linear": "line"}, "table 'user' of the checkpoint has no segment 'line'; it has: linear"),
        (user(), {"user": "people"}, "the checkpoint has no table 'people'; it has: user"),
        (user(), {"user": {"resize": True}}, "a table has no dim; resize its segments"),
        (user(), {"user": {"size": 3}}, "mapping of a restore cannot be read"),
        ({"user": USER, "other": USER}, {"other": "user"}, "tables user and other both take the rows of table user"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(tables, mapping, message):
    with pytest.raises(RequestError, match=message):
        planned(spec(), spec(tables=tables), mapping)


def test_a_mapping_in_a_message_may_be_damaged():
    with pytest.raises(RequestError, match="cannot be read"):
        decode_mapping(b"{")
