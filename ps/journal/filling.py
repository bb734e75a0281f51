"""All rows of a shard to its standby, bucket by bucket between updates: as a snapshot is made, over the stream."""

from __future__ import annotations

import time
from collections.abc import Generator

from ps.holding import Holding
from ps.journal.stream import Stream
from ps.journal.writer import Writer
from ps.record import VERSION, encode_frame, encode_record

_MAX_WAITING_BYTES = 16 << 20
_PAUSE_SECONDS = 0.001


class Filling:
    """`write_bucket` for each owned bucket on the shard's thread, then `finish`; as ps.journal.snapshot.SnapshotWriter
    has them.
    """

    def __init__(self, writer: Writer, stream: Stream, holding: Holding) -> None:
        self._writer, self._stream, self._holding = writer, stream, holding
        self._given_up = False

    @property
    def failed(self) -> str:
        """Why it is of no use any more, or empty."""
        return "the standby is gone, or filled anew" if self._given_up or self._stream.is_over else ""

    @property
    def is_full(self) -> bool:
        """Whether the standby is behind; waits a moment if so."""
        if self._writer.backlog_bytes + self._stream.backlog_bytes < _MAX_WAITING_BYTES:
            return False
        time.sleep(_PAUSE_SECONDS)
        return True

    def write_bucket(self, bucket: int, position: int) -> Generator[None, None, None]:
        """Send a bucket's rows; no update may run before its end. position: number of the next update."""
        for record in self._holding.records_of(bucket):
            while self.is_full and not self.failed:
                yield
            if self.failed:
                return
            self._writer.fill_with([encode_record(record)])
            yield
        self._writer.fill_with(
            [encode_frame({"version": VERSION, "kind": "bucket", "bucket": bucket, "number": position})]
        )

    def finish(self) -> None:
        """All buckets are there."""
        self._writer.fill_with([encode_frame({"version": VERSION, "kind": "filled"})], is_last=True)

    def give_up(self) -> None:
        """Send no more of it."""
        self._given_up = True
