"""Where a run keeps its files, and which earlier run a new one continues.

    <runs>/<name>/<number>/config.json              the config as resolved
                           curves.csv               step, epoch, loss, speed; metrics after evaluations
                           checkpoints/step-<n>/    complete once it holds MANIFEST.json
                           best/step-<n>/           the checkpoint of the best evaluation
                           result.json              written last: the run is finished

A run without result.json whose config learns the same thing is continued from its newest complete checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ps.checkpoint import MANIFEST, Manifest, read_manifest
from ps.errors import CheckpointError, WeirError

STOP_FILE = "stop"
RESULT_FILE = "result.json"


class InterruptedRunError(WeirError):
    """Ctrl-C or SIGTERM; a checkpoint has been written, and the run can be continued."""


@dataclass(frozen=True)
class Run:
    """One run's directory."""

    directory: Path

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    @property
    def best(self) -> Path:
        return self.directory / "best"

    @property
    def stop_requested(self) -> bool:
        """Whether somebody left the file that asks the workers to save and stop."""
        return (self.directory / STOP_FILE).exists()

    @contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """Within, the first Ctrl-C or SIGTERM asks the run to stop, by a file that its workers look for between steps,
        on whatever machine they are. A second one is not held back. Signals reach main threads only; elsewhere nothing
        changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        request = self.directory / STOP_FILE
        request.unlink(missing_ok=True)
        previous: dict[int, Any] = {}

        def ask(number: int, frame: FrameType | None) -> None:
            request.touch()
            signal.signal(number, previous[number])

        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, ask)
        try:
            yield
        finally:
            for caught, handler in previous.items():
                signal.signal(caught, handler)
            request.unlink(missing_ok=True)

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json; after this the run is not continued any more."""
        write_json(self.directory / RESULT_FILE, result)


def open_run(runs: Path, name: str, config: dict[str, Any], *, resume: bool) -> tuple[Run, Path | None]:
    """The run to write to, and the checkpoint to continue from (None: from the start)."""
    home = runs / name
    numbers = sorted(int(path.name) for path in home.glob("[0-9]*") if path.name.isdigit()) if home.is_dir() else []
    if resume and numbers:
        run = Run(home / f"{numbers[-1]:04d}")
        checkpoint = newest(run.checkpoints)
        if not (run.directory / RESULT_FILE).exists() and checkpoint and _same_learning(run.directory, config):
            return run, checkpoint
    run = Run(home / f"{(numbers[-1] if numbers else 0) + 1:04d}")
    run.directory.mkdir(parents=True)
    write_json(run.directory / "config.json", config)
    return run, None


def newest(checkpoints: Path) -> Path | None:
    """The complete checkpoint with the highest step below `checkpoints`."""
    complete = [path for path in checkpoints.glob("step-*") if (path / MANIFEST).exists()]
    return max(complete, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def keep_newest(checkpoints: Path, keep: int) -> None:
    """Remove all but the `keep` newest whole checkpoints, and what an interrupted save left.

    One whose manifest cannot be read, or whose files are not as it says, is left alone and counts for nothing. What a
    kept one is an increment of stays, too.
    """
    paths = sorted(checkpoints.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    whole = {path: found for path in paths if (found := _whole(path)) is not None}
    needed = {os.path.abspath(member.directory) for found in list(whole.values())[-keep:] for member in found.chain}
    for path in reversed(paths):  # an increment goes before what it needs
        if (path in whole and os.path.abspath(path) not in needed) or not (path / MANIFEST).exists():
            # The manifest goes first, so that a half-removed checkpoint is never taken for a complete one.
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path)


def _whole(path: Path) -> Manifest | None:
    try:
        return read_manifest(path.absolute())
    except CheckpointError:
        return None


def write_json(path: Path, value: Any) -> None:
    """By atomic rename."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _same_learning(directory: Path, config: dict[str, Any]) -> bool:
    """Whether both configs learn the same thing: placement, paths and checkpoint timing may differ."""
    try:
        before = _learning(json.loads((directory / "config.json").read_text()))
    except (OSError, ValueError, RecursionError, AttributeError, TypeError):  # damaged: of no run that we know
        return False
    return before == _learning(json.loads(json.dumps(config)))


def _learning(config: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in ("cluster", "checkpoint", "serving", "runs")}
    data = {key: value for key, value in kept.get("data", {}).items() if key not in ("root", "prefetch_batches")}
    client = {**config.get("cluster", {}).get("client", {})}
    begun = {name: config.get("checkpoint", {}).get(name) for name in ("start_from", "mapping")}
    return {**kept, **begun, "data": data, "staleness": client.get("staleness"), "wire": client.get("wire")}
