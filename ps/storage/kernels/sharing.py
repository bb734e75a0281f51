"""Processes of a machine compile a kernel once: who begins it holds its lock, the others wait and read the cache."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PATIENCE_SECONDS = 120.0  # then a process compiles for itself: the other may have been stopped
_PAUSE_SECONDS = 0.02


@contextmanager
def turn(lock: Path, *, wait: bool) -> Iterator[bool]:
    """Whether it is this process's turn, which ends with the block or the process; wait: until it is, or for long."""
    with lock.open("w") as file:
        yield _locked(file.fileno(), time.monotonic() + _PATIENCE_SECONDS * wait) or wait


def _locked(descriptor: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_PAUSE_SECONDS)
        except OSError:  # a file system without locks
            return True
