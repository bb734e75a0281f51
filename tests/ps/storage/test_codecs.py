"""Codecs against numpy's float16 and ml_dtypes' bfloat16; rounding up and down with the right frequency."""

import ml_dtypes
import numpy as np
import pytest

from ps.storage.kernels.codecs import bf16, fp16
from tests.ps.storage.called import called
from tests.ps.storage.oracle import nearest, stochastic

CODECS = {"bf16": called(bf16), "fp16": called(fp16)}
STREAM = np.uint64(12345)


def all_codes(name):
    """Every finite code, and its value by the library."""
    codes = np.arange(1 << 16, dtype=np.uint16)
    values = codes.view({"bf16": ml_dtypes.bfloat16, "fp16": np.float16}[name]).astype(np.float32)
    return codes[np.isfinite(values)], values[np.isfinite(values)]


def hard_values():
    """Random bit patterns, every code's neighbourhood, halfway points, the ends of ranges."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 40_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    spread = (rng.normal(size=40_000) * 10.0 ** rng.integers(-9, 6, 40_000)).astype(np.float32)
    halves = all_codes("fp16")[1]
    midpoints = (halves[:-1] + halves[1:]) / 2
    ends = np.array([0, -0.0, 65504, 65519.9, 65520, 65536, 3.4e38, 2.0**-14, 2.0**-24, 2.0**-25, 3e-8], np.float32)
    values = np.concatenate([bits, spread, midpoints, np.nextafter(midpoints, np.float32(1)), ends, -ends])
    return values[np.isfinite(values)]


@pytest.mark.parametrize("name", CODECS)
def test_decode_every_code(name):
    codes, values = all_codes(name)
    out = np.empty(len(codes), np.float32)
    CODECS[name].decode(codes, out)
    assert np.array_equal(out.view(np.uint32), values.view(np.uint32))


@pytest.mark.parametrize("name", CODECS)
def test_encode_keeps_every_code(name):
    """What decode gave returns to its code, by both encoders and whatever is drawn."""
    codes, values = all_codes(name)
    out = np.empty_like(codes)
    assert CODECS[name].encode_nearest(values, out) == 0
    assert np.array_equal(out, codes)
    for step in range(3):
        assert CODECS[name].encode_stochastic(values, out, STREAM, np.uint64(7), step) == 0
        assert np.array_equal(out, codes)


@pytest.mark.parametrize("name", CODECS)
def test_nearest_against_the_library(name):
    values = hard_values()
    codes, back = np.empty(len(values), np.uint16), np.empty(len(values), np.float32)
    saturated = CODECS[name].encode_nearest(values, codes)
    CODECS[name].decode(codes, back)
    expected = nearest(values, name)
    assert np.array_equal(back.view(np.uint32), expected.view(np.uint32))
    with np.errstate(over="ignore"):
        infinite = np.isinf(values.astype(ml_dtypes.bfloat16 if name == "bf16" else np.float16))
    assert saturated == infinite.sum() > 0


@pytest.mark.parametrize("name", CODECS)
def test_stochastic_against_the_oracle(name):
    values = hard_values()[::20]
    codes, back = np.empty(len(values), np.uint16), np.empty(len(values), np.float32)
    CODECS[name].encode_stochastic(values, codes, STREAM, np.uint64(99), 4)
    CODECS[name].decode(codes, back)
    assert np.array_equal(back, stochastic(values, name, int(STREAM), 99, 4))


@pytest.mark.parametrize("value", [0.3, -1.2345, 1e-4, 3.3e-5, -4.4e-7])
@pytest.mark.parametrize("name", CODECS)
def test_stochastic_rounding_is_unbiased(name, value):
    """Over 40,000 draws the mean lies within five standard errors of the value."""
    values = np.full(8, value, np.float32)
    codes, back, drawn = np.empty(8, np.uint16), np.empty(8, np.float32), []
    for key in range(1000):
        for step in range(5):
            CODECS[name].encode_stochastic(values, codes, STREAM, np.uint64(key), step)
            CODECS[name].decode(codes, back)
            drawn.append(back.copy())
    drawn = np.array(drawn, np.float64)
    assert len(np.unique(drawn)) == 2
    error = drawn.std() / np.sqrt(drawn.size)
    assert abs(drawn.mean() - float(values[0])) < 5 * error
    elements = drawn.mean(axis=0)  # of each element alone: none shares its draw's bits with a constant
    assert np.abs(elements - float(values[0])).max() < 6 * drawn.std() / np.sqrt(len(drawn))
