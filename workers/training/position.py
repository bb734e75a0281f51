"""Where training stands, and the file of a checkpoint that says so: position.json.

{"position": {epoch, batch, step, samples, event_time, evicted_at, training_seconds}, "schedule": {...} or null}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from ps.errors import CheckpointError
from ps.places import inside, open_place, reason
from ps.strict import Spec

POSITION_FILE = "position.json"


@dataclass
class Position:
    """The next batch to train on is number `batch` of `epoch`; `step` batches were trained.

    event_time: the newest so far, seconds; evicted_at: by table, that of its last eviction.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    samples: int = 0
    event_time: float = 0.0
    evicted_at: dict[str, float] = field(default_factory=dict)


class _Position(Spec):
    epoch: int = Field(ge=0, strict=True)
    batch: int = Field(ge=0, strict=True)
    step: int = Field(ge=0, strict=True)
    samples: int = Field(ge=0, strict=True)
    event_time: float
    evicted_at: dict[str, float]
    training_seconds: float


class _Schedule(Spec):
    best: float | None
    best_step: int | None
    stalls: int
    drops: int
    finished: bool


class _File(Spec):
    position: _Position
    schedule: _Schedule | None


def write_position(
    directory: str | Path, position: Position, training_seconds: float, schedule: Mapping[str, Any] | None
) -> None:
    """directory: a path or a URI. schedule: Schedule.state(), or None without one. Raises CheckpointError."""
    value = {"position": {**vars(position), "training_seconds": training_seconds}, "schedule": schedule}
    try:
        open_place(directory).replace(POSITION_FILE, json.dumps(value, indent=1).encode())
    except OSError as error:
        raise CheckpointError(f"{inside(directory, POSITION_FILE)} cannot be written: {reason(error)}") from error


def read_position(directory: str | Path) -> tuple[Position, float, dict[str, Any] | None]:
    """What `write_position` wrote: position, seconds of training, state of the schedule. Raises CheckpointError."""
    path = inside(directory, POSITION_FILE)
    try:
        with open_place(directory).open(POSITION_FILE) as file:
            found = _File.model_validate(json.loads(file.read()))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}; take another checkpoint") from error
    except (ValueError, RecursionError) as error:  # no text, no JSON, or other values
        said = error.errors()[0] if isinstance(error, ValidationError) else None
        what = str(error)[:200] if said is None else f"{'.'.join(map(str, said['loc']))}: {said['msg']}"
        raise CheckpointError(f"{path} is damaged: {what}; take another checkpoint") from error
    fields = found.position.model_dump()
    seconds = fields.pop("training_seconds")
    return Position(**fields), seconds, None if found.schedule is None else found.schedule.model_dump()
