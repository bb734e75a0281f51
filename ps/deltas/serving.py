"""A partition over the network: its files as replies, and replies as batches again. docs/deltas.md.

Replies come from the files, so a caller that is behind costs the shard no memory; at the end of the stream one comes
with every batch, and at least every second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ps.deltas.batches import Batch, read_batches
from ps.deltas.reading import PartitionReader
from ps.deltas.writer import Writer
from ps.errors import TrimmedError, UnavailableError
from ps.wire import weir_pb2 as pb

_BEAT_SECONDS = 1.0
_READ_BYTES = 4 << 20
_REPLY_BYTES = 1 << 20  # well below what any message may have
_NEVER = 1 << 63  # an offset that no batch has


class Received(NamedTuple):
    """Whole batches, what comes next, and where the stream ends at present. end_total: records before its end."""

    batches: list[Batch]
    next_offset: int
    end_offset: int
    end_total: int


def replies_of(folder: Path, writer: Writer, next_offset: int, goes_on: Callable[[], bool]) -> Iterator[pb.DeltasReply]:
    """Batches of the partition in a folder, from an offset on, as long as `goes_on`. writer: who writes it, for the end
    of the stream.

    Raises TrimmedError where batches from the offset on are not there any more, or it is of another partition,
    DeltaError for damage, UnavailableError when the shard ends.
    """
    while not writer.wait(0, _BEAT_SECONDS):
        if not goes_on():
            return
        yield pb.DeltasReply(offset=next_offset)  # the partition is being opened
    if next_offset > writer.end_offset:
        raise TrimmedError(
            f"{folder} ends at offset {writer.end_offset}, before {next_offset}: that is of another partition; take a "
            "newer bundle"
        )
    reader = PartitionReader(folder, next_offset)
    try:
        while goes_on():
            if writer.is_closed:
                raise UnavailableError("the shard was stopped")
            end, total = writer.end_offset, writer.end_total
            frames = reader.read_bytes(_READ_BYTES)
            yield from _in_pieces(frames, reader, max(end, reader.next_offset), max(total, reader.total))
            if not frames:
                writer.wait(reader.next_offset, _BEAT_SECONDS)
    finally:
        reader.close()


def past_replies_of(
    folder: Path, writer: Writer, next_offset: int, goes_on: Callable[[], bool]
) -> Iterator[pb.DeltasReply]:
    """As `replies_of`, of a partition whose shard is gone: nobody writes it, and its end is told where it is met.
    writer: of the shard that sends it.
    """
    reader = PartitionReader(folder, next_offset)
    try:
        while goes_on():
            if writer.is_closed:
                raise UnavailableError("the shard was stopped")
            frames = reader.read_bytes(_READ_BYTES)
            yield from _in_pieces(frames, reader, 0 if frames else reader.next_offset, reader.total)
            if not frames:
                writer.wait(_NEVER, _BEAT_SECONDS)
    finally:
        reader.close()


def _in_pieces(frames: bytes, reader: PartitionReader, end: int, total: int) -> Iterator[pb.DeltasReply]:
    """Whole batches, up to where the reader is, as replies that are no larger than a message may be."""
    view = memoryview(frames)
    for start in range(0, max(1, len(view)), _REPLY_BYTES):
        is_last = start + _REPLY_BYTES >= len(view)
        yield pb.DeltasReply(
            frames=bytes(view[start : start + _REPLY_BYTES]),
            offset=reader.next_offset if is_last else 0,
            end_offset=end,
            end_total=total,
        )


def received(replies: Iterable[pb.DeltasReply], shown: str) -> Iterator[Received]:
    """Replies as whole batches. shown: where they come from, for errors. Raises DeltaError."""
    pieces: list[bytes] = []
    for reply in replies:
        pieces.append(reply.frames)
        if reply.offset or not any(pieces):
            frames, pieces = b"".join(pieces), []
            yield Received(read_batches(frames, shown), reply.offset, reply.end_offset, reply.end_total)
