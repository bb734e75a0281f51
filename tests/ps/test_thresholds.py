"""Thresholds on gradient rows: norms, counts, and rows that are not finite."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ps.thresholds import ALL_KEPT, first_not_finite, judge


def rows(*norms, width=3):
    gradients = np.zeros((len(norms), width), np.float32)
    gradients[:, -1] = norms
    return gradients


def test_thresholds_keep_what_lies_between_inclusive():
    judgement = judge(rows(0.5, 1.0, 2.0, 4.0, 5.0), drop_above=4.0, drop_below=1.0)
    np.testing.assert_array_equal(judgement.keep, [False, True, True, True, False])
    assert (judgement.num_above, judgement.num_below, judgement.num_nonfinite) == (1, 1, 0)


def test_nothing_dropped_is_the_shared_object():
    assert judge(rows(0.0, 1e30)) is ALL_KEPT
    assert judge(rows(1.0, 2.0), drop_above=3.0) is ALL_KEPT


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("width", [1, 4, 7])
def test_a_row_that_is_not_finite_is_found_and_counted_once(bad, width):
    gradients = np.full((1000, width), 3e38, np.float32)
    assert first_not_finite(gradients) == -1
    gradients[617, width // 2] = bad
    assert first_not_finite(gradients) == 617
    judgement = judge(gradients)
    assert np.flatnonzero(~judgement.keep).tolist() == [617]
    assert (judgement.num_nonfinite, judgement.num_above, judgement.num_below) == (1, 0, 0)


@given(st.integers(1, 9), st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_norms_agree_with_numpy(width, num_rows, seed):
    gradients = np.random.default_rng(seed).normal(size=(num_rows, width)).astype(np.float32)
    norms = np.linalg.norm(gradients.astype(np.float64), axis=1)
    judgement = judge(gradients, drop_above=1.5, drop_below=0.5)
    keep = np.ones(num_rows, bool) if judgement.keep is None else judgement.keep
    np.testing.assert_array_equal(keep, (norms <= 1.5) & (norms >= 0.5))


@given(st.integers(1, 5), st.integers(1, 9), st.data())
def test_the_first_row_that_is_not_finite_is_named(width, num_rows, data):
    gradients = np.random.default_rng(1).normal(size=(num_rows, width)).astype(np.float32)
    places = data.draw(st.lists(st.integers(0, width * num_rows - 1), max_size=3))
    gradients.reshape(-1)[places] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    assert first_not_finite(gradients) == (min(places) // width if places else -1)


def test_empty():
    assert judge(np.zeros((0, 4), np.float32), drop_above=1.0) is ALL_KEPT
