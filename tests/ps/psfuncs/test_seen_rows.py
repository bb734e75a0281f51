"""Row functions that name what rows remember: shows, clicks and their last push."""

import numpy as np
import pytest

import ps
from ps.errors import RequestError
from tests.ps.psfuncs import user_seen as user

MODULE = "tests.ps.psfuncs.user_seen"
KEYS = np.arange(20, dtype=np.uint64)
f32 = np.float32


def spec(*, keep=True, **optimizer):
    segments = {
        "e": {"dim": 2, "optimizer": {"name": "per_show", **optimizer}},
        "late": {"dim": 1, "optimizer": "sgd", "late": 1000},
    }
    if not keep:
        del segments["late"]
    return ps.TableSpec.model_validate({"segments": segments})


def push(client, keys, *, at, clicks=0.0, step=1):
    ones = np.ones((len(keys), client.spec.tables["t"].width), f32)
    return client.push("t", keys, ones, step=step, event_time=at, clicks=np.full(len(keys), clicks, f32))


def test_counts_reach_optimizers_and_psfuncs():
    with ps.local({"t": spec()}, psfunc_modules=(MODULE,)) as client:
        push(client, KEYS, at=1000, clicks=1).wait()
        push(client, KEYS[:10], at=2000).wait()
        np.testing.assert_array_equal(client.pull("t", KEYS)[:, 0], np.repeat(np.array([-1.5, -1], f32), 10))
        expected = np.array([[2, 1, 2000]] * 10 + [[1, 1, 1000]] * 10 + [[0, 0, 0]], f32)
        found = client.get("t", user.WhatWasSeen(), np.append(KEYS, np.uint64(99)))
        np.testing.assert_array_equal(found, expected)
        assert client.get("t", user.ClicksOfAll()) == 20
        client.update("t", user.MarkOld(before=1500))
        assert (client.pull("t", KEYS)[:, 0] == 9).tolist() == [False] * 10 + [True] * 10


def test_an_error_names_the_line_and_puts_counts_back():
    with ps.local({"t": spec(fails_from=1)}, psfunc_modules=(MODULE,)) as client:
        push(client, KEYS[:5], at=1000, clicks=1).wait()
        before = client.get("t", user.WhatWasSeen(), KEYS)
        with pytest.raises(RequestError, match=r"user_seen.py:\d+.*too many shows"):
            push(client, KEYS, at=2000, step=2).wait()
        np.testing.assert_array_equal(client.get("t", user.WhatWasSeen(), KEYS), before)


def test_a_table_that_keeps_no_counts_is_named():
    with pytest.raises(RequestError, match=r"per_show.*names 'shows'.*keep_counts"):
        ps.local({"t": spec(keep=False)}, psfunc_modules=(MODULE,))
