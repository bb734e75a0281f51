"""What of the rows is published for serving, how soon, and for how long it is kept: the options. docs/deltas.md."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Annotated, Literal

from pydantic import Field

from ps.byte_sizes import ByteSize
from ps.strict import Spec
from ps.types import CodecName


class DeltaOptions(Spec):
    """directory: where partitions lie, one folder a shard; of one cluster. A recipe may leave it out: then it is a
    folder of the job's runs.
    codec: precision of the published values, of all segments, or by table and segment.
    window_seconds: how long a changed key waits for further changes before its row is published; 0: not at all.
    window_rows: keys that wait from which on the window ends at once; also about the most rows of one batch.
    fsync: when the disk is told to keep a batch. never: the operating system decides; always: at once; a number: at
    least every so many seconds. What a crash of the machine takes is published again, so this is for replicas that
    have no other way to learn of it than these files.
    segment_bytes: of a file, from which on the next is begun. retention_bytes, retention_seconds: whole files beyond
    that, oldest first, are deleted, unless a kept version needs them.
    backlog_bytes: that may wait for the disk; then changed keys wait longer.
    """

    directory: str | None = None
    codec: CodecName | dict[str, dict[str, CodecName]] = "fp32"
    window_seconds: Annotated[float, Field(ge=0, le=3600)] = 0.2
    window_rows: Annotated[int, Field(ge=1, le=1 << 24)] = 100_000
    fsync: Literal["never", "always"] | Annotated[float, Field(gt=0)] = "never"
    segment_bytes: Annotated[ByteSize, Field(ge=4096)] = 64 << 20
    retention_bytes: Annotated[ByteSize, Field(ge=4096)] | None = 4 << 30
    retention_seconds: Annotated[float, Field(gt=0)] | None = None
    backlog_bytes: Annotated[ByteSize, Field(ge=4096)] = 64 << 20

    def check(self, tables: Mapping[str, Collection[str]]) -> None:
        """Raise ValueError unless this fits tables with these segments, and can be used by a cluster."""
        if not self.directory:
            raise ValueError("deltas.directory: missing; a folder for the partitions")
        if not os.path.isabs(self.directory) or "\0" in self.directory:
            raise ValueError(f"deltas.directory: {self.directory!r} must be a path from the root, as all shards see it")
        if isinstance(self.codec, str):
            return
        if self.codec.keys() != tables.keys():
            raise ValueError(f"deltas.codec: must name the tables {', '.join(tables)}; found {', '.join(self.codec)}")
        for name, segments in tables.items():
            if self.codec[name].keys() != set(segments):
                raise ValueError(
                    f"deltas.codec.{name}: must name the segments {', '.join(segments)}; "
                    f"found {', '.join(self.codec[name])}"
                )
