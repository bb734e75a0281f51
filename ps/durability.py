"""What survives which failure: the options. docs/durability.md has the table."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ps.byte_sizes import ByteSize
from ps.strict import Spec


class Durability(Spec):
    """mode:
        none        what is not in a checkpoint is lost with a shard's process
        checkpoint  the same, and a job refuses to start without regular checkpoints
        journal     an update is acknowledged when the shard's journal has it; a shard whose process died comes back
                    with every acknowledged update, and training goes on
        replicated  the same, and a standby in another process, on another node where there are several, has it too; it
                    takes over when the shard dies
    directory: where journals lie, on a disk that outlives the process; each shard has a folder of its own below it. A
    recipe may leave it out: then it is a folder of the job's runs.
    fsync: when the disk is told to keep what the journal has. never: the operating system decides, so a process may die
    but not the machine; always: before an update is acknowledged; a number: at least every so many seconds.
    snapshot_after_bytes: of journal since the last snapshot of the rows, from which on a new one is made in the
    background (at least as many as that snapshot has). backlog_bytes: that may wait for the disk before updates are
    refused. recovery_seconds: how long clients wait for a shard that comes back. standby_seconds: for how long primary
    and standby may not hear of one another before the one that is silent is replaced.
    """

    mode: Literal["none", "checkpoint", "journal", "replicated"] = "none"
    directory: str | None = None
    fsync: Literal["never", "always"] | Annotated[float, Field(gt=0)] = "never"
    snapshot_after_bytes: Annotated[ByteSize, Field(ge=4096)] = 256 << 20
    backlog_bytes: Annotated[ByteSize, Field(ge=4096)] = 256 << 20
    recovery_seconds: Annotated[float, Field(ge=0)] = 120.0
    standby_seconds: Annotated[float, Field(gt=0)] = 5.0

    @property
    def keeps_journal(self) -> bool:
        return self.mode in ("journal", "replicated")

    @property
    def is_replicated(self) -> bool:
        return self.mode == "replicated"
