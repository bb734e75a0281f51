"""The end of a server process: SIGTERM or Ctrl-C."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def until_signal() -> Iterator[int]:
    """Within, SIGTERM and Ctrl-C write a byte to the pipe that this gives the reading end of."""
    # A pipe and not an Event: its lock could be held by the very thread that the signal interrupts.
    until_end, end = os.pipe()
    before = {
        number: signal.signal(number, lambda *_: os.write(end, b".")) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield until_end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(until_end)
        os.close(end)
