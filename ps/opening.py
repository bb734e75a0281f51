"""A shard as its process finds it at the start: without a journal, or with what its journal has."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from ps.errors import JournalError
from ps.journal.journal import Journal
from ps.journal.lock import Lock
from ps.journal.recovery import recover, remove_journal
from ps.journal.role import read_role, remove_role
from ps.shard import Observer, Shard

_log = logging.getLogger("weir.work")


def open_shard(
    folder: Path | None,
    *,
    takes_over: bool = False,
    fresh: bool = False,
    observe: Observer = lambda kind, seconds: None,
) -> Shard:
    """A shard; with a folder for its journal the one whose journal that is, with all that it had.

    takes_over: end a process that still has the folder. fresh: drop what the folder has. Raises JournalError.
    """
    if folder is None:
        return Shard(observe=observe, takes_over=takes_over)
    if not fresh and (kept := read_role(folder)).role:
        raise JournalError(
            f"the journal in {folder} is one of a pair ({kept.role} of term {kept.term}), and the other one may have "
            "more; start it with durability.mode: replicated"
        )
    lock = Lock(folder, takes_over=takes_over)
    try:
        if fresh:
            remove_journal(folder)
            remove_role(folder)
        recovered = recover(folder, lock, now=time.monotonic())
    except BaseException:
        lock.close()
        raise
    if recovered is not None:
        what = (folder, recovered.num_updates, recovered.seconds)
        _log.warning("recovered from the journal in %s: %d updates replayed in %.1f s", *what)
    return Shard(
        observe=observe,
        recovered=recovered,
        open_journal=lambda holding: Journal(folder, lock, holding),
        takes_over=takes_over,
    )
