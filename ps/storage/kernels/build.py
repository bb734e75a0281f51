"""How kernels are compiled and cached.

numba's own cache does not notice an edited helper in another file. So every kernel is cached in a private folder (mode 0700)
named by a hash of all kernel sources and of the versions that matter: an edit starts an empty folder.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import llvmlite
import numba
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])


@cache
def sources_digest() -> str:
    """Hash of every kernel source and of the versions of Python, numpy, numba and llvmlite."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for version in (sys.version, np.__version__, numba.__version__, llvmlite.__version__):
        digest.update(version.encode() + b"\0")
    return digest.hexdigest()[:24]


@cache
def cache_folder() -> Path:
    """The private folder of compiled kernels: $WEIR_CACHE_DIR or ~/.cache/weir, or a temporary one if that cannot be private."""
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


def kernel(function: F) -> F:
    """Compile `function` on first use, without the interpreter lock, without fastmath, cached on disk."""
    previous = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(cache_folder())
    try:
        compiled: F = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    finally:
        numba.config.CACHE_DIR = previous
    return compiled


def inlined(function: F) -> F:
    """A helper for use inside kernels only; its callers carry the cache."""
    compiled: F = numba.njit(inline="never", nogil=True, error_model="numpy")(function)
    return compiled
