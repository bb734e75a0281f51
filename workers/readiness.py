"""A process made ready for a long loop: memory that is kept, and no walks over what never dies.

Cost only: nothing here changes a result.
"""

from __future__ import annotations

import ctypes
import gc
import sys

# Parameters of glibc's mallopt (malloc.h). By default memory of large arrays goes back to the kernel when they are
# freed, and comes back page by page.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 30


def make_ready() -> None:
    """Call once all is built, before the first step or request. Freed memory, up to 1 GiB, stays with the process; what
    exists now (modules, model, cluster) is left out of garbage collection, which would else walk it every few steps.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    gc.collect()
    gc.freeze()
