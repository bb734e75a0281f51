"""A request to stop, on its way to workers that may not see the run's folder: by a file beside its checkpoints, where
these have a directory of their own. A run without one has its folder in common, and nothing to do here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ps.places import open_place
from workers.training.runs import STOP_FILE, Run

_LOOK_SECONDS = 1.0


@contextmanager
def sending_stop(run: Run) -> Iterator[None]:
    """Within, a request that is made here (`Run.stop_requested`) is put beside the checkpoints."""
    if run.elsewhere is None:
        yield
        return
    home = open_place(run.home)
    home.remove(STOP_FILE)  # of a process before, which was killed
    try:
        with _watching(lambda: run.stop_requested, lambda: home.replace(STOP_FILE, b"")):
            yield
    finally:
        with suppress(OSError):
            home.remove(STOP_FILE)


@contextmanager
def receiving_stop(run: Run) -> Iterator[None]:
    """Within, a request that lies beside the checkpoints becomes one of this machine."""
    if run.elsewhere is None:
        yield
        return
    home, here = open_place(run.home), run.directory / STOP_FILE
    run.directory.mkdir(parents=True, exist_ok=True)
    here.unlink(missing_ok=True)
    try:
        with _watching(lambda: home.size(STOP_FILE) is not None, here.touch):
            yield
    finally:
        here.unlink(missing_ok=True)


@contextmanager
def _watching(is_asked: Callable[[], bool], act: Callable[[], None]) -> Iterator[None]:
    """Within, a thread acts once, soon after it is asked; it tries again while the place cannot be reached."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_LOOK_SECONDS):
            with suppress(OSError):
                if is_asked():
                    act()
                    return

    thread = threading.Thread(target=watch, name="weir-stop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
