"""Snapshots of the tower and the position alone, every few seconds, for workers that train with stale rows: when one of
them dies, rows stay as they are, and the group starts from the newest snapshot.

    RUN/dense/step-S/    dense.safetensors, then position.json: complete when that is there
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from workers.training.dense import save_dense
from workers.training.position import POSITION_FILE, write_position
from workers.training.runs import step_of

if TYPE_CHECKING:
    from workers.training.trainer import Trainer


class Snapshots:
    """Written by the first worker of a run, at least `seconds` apart."""

    def __init__(self, run: Path, seconds: float) -> None:
        self._folder, self._seconds = run / "dense", seconds
        self._written_at = time.monotonic()

    def keep(self, trainer: Trainer) -> None:
        """Write one if it is time, and remove older ones."""
        if time.monotonic() - self._written_at < self._seconds:
            return
        directory = self._folder / f"step-{trainer.position.step}"
        save_dense(directory, trainer.scorer.bare_model, trainer.optimizer)
        schedule = None if trainer.schedule is None else trainer.schedule.state()
        write_position(directory, trainer.position, trainer.training_seconds, schedule)
        for path in self._folder.iterdir():
            if path != directory:
                shutil.rmtree(path, ignore_errors=True)
        self._written_at = time.monotonic()


def newest_snapshot(run: Path) -> str | None:
    """The newest complete one."""
    complete = [str(path.parent) for path in (run / "dense").glob(f"step-*/{POSITION_FILE}")]
    return max(complete, key=step_of, default=None)
