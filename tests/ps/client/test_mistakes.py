"""Mistakes in a request: one clear message, nothing sent."""

import numpy as np
import pytest

import ps
from tests.ps.client.conftest import fresh_keys

KEYS = np.arange(3, dtype=np.uint64)
ONES = np.ones((3, 4), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.pull("usr", KEYS), "no table 'usr'; did you mean 'user'"),
        (lambda c: c.pull("zzz", KEYS), "no table 'zzz'; known: item, swept, user"),
        (lambda c: c.pull("user", KEYS.astype(np.int64)), r"keys of table 'user' are int64 \[3\]; they must be uint64"),
        (lambda c: c.pull("user", KEYS.reshape(1, 3)), r"are uint64 \[1, 3\]; they must be uint64 \[n\]"),
        (lambda c: c.push("user", KEYS, ONES[:2], step=1), r"are float32 \[2, 4\]; they must be float32 \[3, 4\]"),
        (lambda c: c.push("user", KEYS, ONES[:, :3], step=1), r"are float32 \[3, 3\]; they must be float32 \[3, 4\]"),
        (
            lambda c: c.push("user", KEYS, ONES.astype(np.float64), step=1),
            r"are float64 \[3, 4\]; they must be float32",
        ),
        (
            lambda c: c.push("user", KEYS, ONES, step=1, learning_rate={"linera": 1.0}),
            "table 'user' has no segment 'linera'; did you mean 'linear'",
        ),
        (
            lambda c: c.push("user", KEYS, ONES, step=1, learning_rate=float("nan")),
            "learning rate of segment 'linear' of table 'user' is nan",
        ),
        (
            lambda c: c.start_push(c.prepare({"user": KEYS}), {"item": ONES}, step=1),
            "gradients of table 'item', whose keys are not in the lookup",
        ),
        (lambda c: c.get("user", ps.Scale(2.0)), "psfunc 'scale' is of kind 'update'; call client.update"),
        (lambda c: c.update("user", ps.Sum()), "psfunc 'sum' is of kind 'get'; call client.get"),
        (lambda c: c.update("user", ps.Delete()), "psfunc 'delete' needs keys"),
        (lambda c: c.get("user", "sum"), "'sum' is not a psfunc"),
        (lambda c: c.get("user", ps.Sum(segment="linera")), "linera"),
        (lambda c: c.update("user", ps.Scale(2.0), KEYS, ONES), "psfunc 'scale' takes no payload"),
    ],
)
def test_a_mistake_is_one_clear_error_before_anything_is_sent(client, call, message):
    with pytest.raises(ps.RequestError, match=message):
        call(client)
    assert client.stats()["bytes_sent"] == 0


def test_gradients_that_are_not_finite_stop_by_default(client):
    keys = fresh_keys(3)
    bad = ONES.copy()
    bad[1, 2] = np.inf
    with pytest.raises(
        ps.NonFiniteError, match=rf"step 9: the gradient of key {keys[1]} of table 'user' is not finite"
    ):
        client.push("user", keys, bad, step=9)
    assert client.get("user", ps.Size(), keys) == 0


def test_gradients_that_are_not_finite_may_be_skipped(connect):
    client = connect(on_nonfinite="skip_row")
    keys = fresh_keys(3)
    bad = ONES.copy()
    bad[1, 2] = np.nan
    counts = client.push("user", keys, bad, step=1).wait()
    assert (counts.applied, counts.nonfinite) == (2, 1)
    assert client.get("user", ps.Size(), keys) == 2
    assert client.stats()["nonfinite_skipped"] == 1


@pytest.mark.parametrize("mode", ["stop", "skip_row"])
def test_rows_that_would_not_be_finite_are_refused(connect, mode):
    client = connect(on_nonfinite=mode)
    keys = fresh_keys(2)
    huge = np.full((2, 4), 3e38, np.float32)
    huge[1] = 1.0
    push = client.push("user", keys, huge, step=1, learning_rate=100.0)
    if mode == "stop":
        with pytest.raises(ps.NonFiniteError, match="1 rows of table 'user' were left as they are"):
            push.wait()
    else:
        assert (push.wait().applied, push.wait().nonfinite) == (1, 1)
    assert np.isfinite(client.pull("user", keys)).all()


def test_thresholds_drop_rows_and_count_them(connect):
    client = connect(drop_above=4.0, drop_below=1.0)
    keys = fresh_keys(3)
    gradients = np.zeros((3, 4), np.float32)
    gradients[:, 0] = [0.5, 2.0, 5.0]
    counts = client.push("user", keys, gradients, step=1).wait()
    assert (counts.applied, counts.dropped_above, counts.dropped_below) == (1, 1, 1)
    stats = client.stats()
    assert (stats["dropped_above"], stats["dropped_below"]) == (1, 1)
    assert client.get("user", ps.Size(), keys) == 1


def test_a_closed_client_says_so(connect):
    client = connect()
    client.close()
    client.close()
    for call in (lambda: client.pull("user", KEYS), lambda: client.push("user", KEYS, ONES, step=1), client.flush):
        with pytest.raises(ps.RequestError, match="the client is closed"):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": {"max_age_steps": 2}}, "a cache needs staleness N or -1"),
        ({"cache": {"max_age_steps": 3}, "staleness": 2}, "max_age_steps 3 counts inside staleness 2"),
        ({"drop_above": 1.0, "drop_below": 2.0}, "no row would remain"),
        ({"group": {"rank": 2, "world": 2}}, "rank 2 is outside a world of 2"),
        ({"stalenes": 2}, "stalenes"),
        ({"staleness": -2}, "staleness"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        ps.ClientOptions(**options)
