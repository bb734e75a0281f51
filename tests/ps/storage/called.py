"""Helpers of kernels as kernels of their own: helpers have no machine code, so Python cannot call them."""

from types import SimpleNamespace

from ps.storage.kernels.build import kernel


def called(codec):
    """The functions of a codec, callable from Python."""
    names = ("decode", "encode_nearest", "encode_stochastic")
    return SimpleNamespace(**{name: kernel(getattr(codec, name).py_func) for name in names})
