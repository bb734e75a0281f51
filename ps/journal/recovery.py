"""From the files of a journal back to a shard's state, to the last acknowledged update."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ps import checkpoint
from ps.errors import JournalError, RequestError
from ps.holding import Holding
from ps.journal.journal import Journal
from ps.journal.lock import Lock
from ps.journal.replay import Replay
from ps.journal.segments import Acknowledged, Segment, check_segments, find_segments, read_frames
from ps.journal.snapshot import POINTER, Pointer, read_pointer, remove_snapshots
from ps.places import LocalPlace
from ps.spec import ClusterSpec


@dataclass(eq=False)
class Recovered:
    """A shard's state. num_updates: those replayed; seconds: what it took."""

    holding: Holding
    journal: Journal
    num_updates: int
    seconds: float


def recover(folder: Path, lock: Lock, *, now: float) -> Recovered | None:
    """The state that the folder's journal says, with the journal open to go on; None where there is none.

    Raises JournalError with file and byte where an acknowledged update is damaged, and then changes nothing.
    """
    began = time.monotonic()
    acknowledged = Acknowledged(folder)
    try:
        pointer = read_pointer(folder)
        segments = check_segments(folder, acknowledged.read(), None if pointer is None else pointer.segment)
    finally:
        acknowledged.close()
    if not segments:
        if pointer is not None:
            raise JournalError(f"{folder} has a snapshot but no journal: its files are gone; restore a checkpoint")
        return None
    replay = _replay(folder, segments, pointer, now)
    if pointer is not None:
        remove_snapshots(folder, kept=pointer.file)
    journal = Journal(
        folder, lock, replay.holding, last=segments[-1], next_number=replay.next_number, group_steps=replay.group_steps
    )
    return Recovered(replay.holding, journal, replay.num_updates, seconds=time.monotonic() - began)


def remove_journal(folder: Path) -> None:
    """Drop all that a folder's journal has. The caller holds its lock."""
    (folder / POINTER).unlink(missing_ok=True)
    (folder / Acknowledged.NAME).unlink(missing_ok=True)
    for name in find_segments(folder):
        (folder / str(name)).unlink()
    remove_snapshots(folder, kept="")


def put_aside(folder: Path) -> Path:
    """Move a journal that cannot be read into a folder inside, for whoever wants to look at it."""
    aside = folder / f"damaged-{time.strftime('%Y%m%d-%H%M%S')}"
    aside.mkdir(exist_ok=True)
    for path in list(folder.iterdir()):
        if path.is_file() and path.name != Lock.NAME:
            path.rename(aside / path.name)
    return aside


def _replay(folder: Path, segments: list[Segment], pointer: Pointer | None, now: float) -> Replay:
    try:
        spec = ClusterSpec.model_validate_json(segments[-1].start["spec"])
    except (ValidationError, RequestError, KeyError) as error:
        raise JournalError(f"{segments[-1].path}: its cluster spec cannot be read: {error}") from error
    holding = Holding(spec)
    for _ in holding.warm_up():
        pass
    replay = Replay(holding, now=now)
    replay.begin(segments[0].start, segments[0].path)
    if pointer is not None:
        _load(replay, folder / pointer.file, pointer)
    for segment in segments:
        for frame, rows in read_frames(segment):
            if rows is not None:
                replay.apply(rows, segment.path)
            else:
                replay.commit(frame.header, segment.path)
    return replay


def _load(replay: Replay, path: Path, pointer: Pointer) -> None:
    if len(pointer.positions) != len(replay.positions):
        raise JournalError(f"{path} has {len(pointer.positions)} buckets, the journal {len(replay.positions)}")
    if not path.is_file() or path.stat().st_size != pointer.num_bytes:
        raise JournalError(f"{path} is missing or cut off; restore a checkpoint")
    replay.positions[:] = pointer.positions
    replay.next_number = max(replay.next_number, int(replay.positions.max()))
    with checkpoint.open_part(LocalPlace(path.parent), path.name, shown=str(path)) as part:
        for name, ids in part.start.get("expired", {}).items():
            replay.holding.applied[name].load_expired(ids)
        for record in part.records:
            replay.holding.load(record, now=replay.now)
