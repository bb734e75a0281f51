"""Float arrays on the wire, against ml_dtypes and numpy."""

import ml_dtypes
import numpy as np
import pytest

from ps.errors import RequestError
from ps.wire import weir_pb2 as pb
from ps.wire.arrays import decode_floats, encode_floats

VALUES = np.array([0.0, -0.0, 1.0, -1.5, 1e-45, 3e-5, 65504.0, 65519.0, 1.0 / 3, 2.0**-14], np.float32)


def test_fp32_is_exact():
    out = decode_floats(encode_floats(VALUES, pb.FLOAT32), pb.FLOAT32, 2)
    assert out.tobytes() == VALUES.tobytes()
    assert out.shape == (5, 2)


@pytest.mark.parametrize(("dtype", "oracle"), [(pb.FLOAT16, np.float16), (pb.BFLOAT16, ml_dtypes.bfloat16)])
def test_narrow_dtypes_round_to_nearest_even(dtype, oracle):
    values = np.concatenate([VALUES, np.random.default_rng(3).normal(size=1000).astype(np.float32)])
    out = decode_floats(encode_floats(values, dtype), dtype, 1)[:, 0]
    np.testing.assert_array_equal(out, values.astype(oracle).astype(np.float32))


@pytest.mark.parametrize(("dtype", "greatest"), [(pb.FLOAT16, 65504.0), (pb.BFLOAT16, 3.3895313892515355e38)])
def test_finite_values_saturate_and_the_rest_passes(dtype, greatest):
    values = np.array([3.4e38, -3.4e38, np.inf, -np.inf, np.nan], np.float32)
    out = decode_floats(encode_floats(values, dtype), dtype, 1)[:, 0]
    np.testing.assert_array_equal(out, np.array([greatest, -greatest, np.inf, -np.inf, np.nan], np.float32))


def test_no_whole_rows():
    with pytest.raises(RequestError, match="10 bytes holds no whole rows of width 3"):
        decode_floats(b"0123456789", pb.FLOAT32, 3)
