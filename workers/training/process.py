"""A worker's process made ready for a long loop: torch threads, memory that is kept, and no walks over what never dies.

Cost only: nothing here changes what is learnt.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys

import torch

# Parameters of glibc's mallopt (malloc.h). By default memory of a step's large tensors goes back to the kernel when
# they are freed, and comes back page by page.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 30


def use_threads(threads: int | None) -> None:
    """Torch threads of this worker; None: one a core that it may run on, whatever OMP_NUM_THREADS Ray has set."""
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))


def make_ready() -> None:
    """Call once all is built, before the first step. Freed memory, up to 1 GiB, stays with the process; what exists
    now (modules, model, cluster) is left out of garbage collection, which would else walk it every few steps.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    gc.collect()
    gc.freeze()
