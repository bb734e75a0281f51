"""How kernels are compiled and cached.

numba's own cache does not notice an edited helper in another file. So every kernel is cached in a private folder
(mode 0700) named by a hash of all kernel sources and of the versions that matter: an edit starts an empty folder.

A kernel with a signature is compiled (or read from the cache) when its module is imported, once, for exactly those
types, or when it is first asked for (a deferred one); one without is compiled for the types of its first call. Inputs
that may come from a read-only buffer, such as a decoded message, are declared `readonly_array`: numba passes writable
arrays there too. Processes that want the same kernel of a signature at the same time compile it once (sharing.py).
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import llvmlite
import numba
import numpy as np

from ps.storage.kernels.compiler import KernelCompiler, MergedCompiler
from ps.storage.kernels.sharing import turn

Compiled: TypeAlias = Callable[..., Any]


@cache
def sources_digest() -> str:
    """Hash of every kernel source and of the versions of Python, numpy, numba and llvmlite."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    for version in (sys.version, np.__version__, numba.__version__, llvmlite.__version__):
        digest.update(version.encode() + b"\0")
    return digest.hexdigest()[:24]


@cache
def cache_folder() -> Path:
    """The private folder of compiled kernels: $WEIR_CACHE_DIR or ~/.cache/weir, or a temporary one if that cannot be
    private.
    """
    root = Path(os.environ.get("WEIR_CACHE_DIR") or Path.home() / ".cache" / "weir")
    folder = root / sources_digest()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        private = status.st_uid == os.getuid() and stat.S_IMODE(status.st_mode) & 0o022 == 0
    except OSError:
        private = False
    # Code is loaded from here: a folder that others may write to is never used.
    return folder if private and os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="weir-kernels-"))


def array(dtype: str, dimensions: int = 1) -> Any:
    """The type of a writable C-contiguous array, for signatures."""
    return numba.types.Array(numba.from_dtype(np.dtype(dtype)), dimensions, "C")


def readonly_array(dtype: str, dimensions: int = 1) -> Any:
    """The type of a C-contiguous array that the kernel only reads; both writable and read-only arrays pass."""
    return numba.types.Array(numba.from_dtype(np.dtype(dtype)), dimensions, "C", readonly=True)


def _compile(function: Callable[..., Any], *signature: Any) -> Compiled:
    previous = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(cache_folder())
    try:
        compiled: Compiled = numba.njit(
            *signature,
            cache=True,
            nogil=True,
            error_model="numpy",
            no_cfunc_wrapper=True,
            pipeline_class=KernelCompiler,
        )(function)
    finally:
        numba.config.CACHE_DIR = previous
    return compiled


def kernel(function: Callable[..., Any]) -> Compiled:
    """Compile `function` on first use, without the interpreter lock, without fastmath, cached on disk. It makes no
    arrays.
    """
    return _compile(function)


def typed_kernel(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Compiled]:
    """As `kernel`, but compiled at import for these types (numba types, or names such as "int64") and no others."""

    def decorate(function: Callable[..., Any]) -> Compiled:
        with _turn(function, wait=True):
            return _compile(function, _signature(result, *arguments))

    return decorate


def _turn(function: Callable[..., Any], *, wait: bool) -> AbstractContextManager[bool]:
    return turn(cache_folder() / f"{function.__module__}.{function.__qualname__}.lock", wait=wait)


def _signature(result: Any, *arguments: Any) -> Any:
    types = [getattr(numba.types, t) if isinstance(t, str) else t for t in (result, *arguments)]
    return types[0](*types[1:])


class Deferred:
    """A kernel of these types that is not compiled yet."""

    def __init__(self, function: Callable[..., Any], signature: Any) -> None:
        self._function, self._signature = function, signature

    def compile(self, *, wait: bool = True) -> Compiled | None:
        """Compile it now, or read it from the cache. None where another process is compiling it, unless `wait`."""
        with _turn(self._function, wait=wait) as ours:
            return _compile(self._function, self._signature) if ours else None


def deferred_kernel(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Deferred]:
    """As `typed_kernel`, compiled when it is asked for: of the kernels of a row layout many a table needs few."""

    def decorate(function: Callable[..., Any]) -> Deferred:
        return Deferred(function, _signature(result, *arguments))

    return decorate


def inlined(function: Callable[..., Any]) -> Compiled:
    """A helper for use inside kernels only, merged into its callers so that their constants reach it; they carry the
    cache. It makes no arrays.
    """
    return _merge(function, pipeline_class=MergedCompiler)


def inlined_for_users(function: Callable[..., Any], *, check: bool) -> Compiled:
    """As `inlined`, of a user's function: it may make arrays and raise. check: with bounds checks."""
    return _merge(function, boundscheck=check)


def _merge(function: Callable[..., Any], **options: Any) -> Compiled:
    compiled: Compiled = numba.njit(
        forceinline=True,
        nogil=True,
        error_model="numpy",
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
        **options,
    )(function)
    return compiled
