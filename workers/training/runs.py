"""Where a run keeps its files, and which earlier run a new one continues.

    <runs>/<name>/<number>/config.json              the config as resolved
                           curves.csv               step, epoch, loss, speed; metrics after evaluations
                           checkpoints/step-<n>/    complete once it holds MANIFEST.json
                           best/step-<n>/           the checkpoint of the best evaluation
                           result.json              written last: the run is finished

With `checkpoint.directory`, a path or a URI, the checkpoints, config.json and result.json lie in
<directory>/<name>/<number>/ instead, and say alone which run is continued: any machine that reaches them can. Both
files are written to <runs>, too, where all that is appended to stays.

A run without result.json whose config learns the same thing is continued from its newest complete checkpoint.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ps.checkpoint import MANIFEST, Manifest, read_manifest
from ps.errors import CheckpointError, WeirError
from ps.places import absolute, inside, joined, open_place, reason

CONFIG_FILE = "config.json"
STOP_FILE = "stop"
RESULT_FILE = "result.json"


class InterruptedRunError(WeirError):
    """Ctrl-C or SIGTERM; a checkpoint has been written, and the run can be continued."""


@dataclass(frozen=True)
class Run:
    """One run. directory: of this machine. elsewhere: where its checkpoints, config.json and result.json lie, a path or
    a URI; default: there.
    """

    directory: Path
    elsewhere: str | None = None

    @property
    def home(self) -> str:
        """Where its checkpoints lie."""
        return self.elsewhere or str(self.directory)

    @property
    def checkpoints(self) -> str:
        return inside(self.home, "checkpoints")

    @property
    def best(self) -> str:
        return inside(self.home, "best")

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
        _write_json(self, RESULT_FILE, result)

    def result(self) -> dict[str, Any]:
        """What `finish` wrote, on whatever machine. Raises CheckpointError."""
        try:
            with open_place(self.home).open(RESULT_FILE) as file:
                found: dict[str, Any] = json.loads(file.read())
                return found
        except OSError as error:
            raise _unreachable(inside(self.home, RESULT_FILE), error) from error


def open_run(
    runs: Path, name: str, config: dict[str, Any], *, resume: bool, directory: str | None = None
) -> tuple[Run, str | None]:
    """The run to write to, and the checkpoint to continue from (None: from the start). directory: where checkpoints
    lie, if not below `runs`. Raises CheckpointError where nothing can be written there.
    """
    numbers = _numbers(str(runs / name) if directory is None else inside(directory, name))

    def numbered(number: int) -> Run:
        place = f"{name}/{number:04d}"
        return Run(runs / place, None if directory is None else inside(absolute(directory), place))

    if resume and numbers:
        run = numbered(numbers[-1])
        checkpoint = newest(run.checkpoints)
        if checkpoint and not _is_finished(run) and _same_learning(run.home, config):
            run.directory.mkdir(parents=True, exist_ok=True)
            return run, checkpoint
    taken = numbers if directory is None else [*numbers, *_numbers(str(runs / name))]
    run = numbered(max(taken, default=0) + 1)
    run.directory.mkdir(parents=True)  # fails where another job has just taken the number
    try:
        _write_json(run, CONFIG_FILE, config)
    except CheckpointError:
        with suppress(OSError):  # nothing but what was just made
            run.directory.rmdir()
            run.directory.parent.rmdir()
        raise
    return run, None


def newest(checkpoints: str | Path) -> str | None:
    """The complete checkpoint with the highest step below `checkpoints`. Raises CheckpointError."""
    try:
        for path in reversed(_by_step(checkpoints)):
            if open_place(path).size(MANIFEST) is not None:
                return path
    except OSError as error:
        raise _unreachable(checkpoints, error) from error
    return None


def step_of(checkpoint: str) -> int:
    """The step that the folder of a checkpoint of a run is named for."""
    return int(checkpoint.partition("?")[0].rpartition("/step-")[2])


def keep_newest(checkpoints: str | Path, keep: int) -> None:
    """Remove all but the `keep` newest whole checkpoints, and what an interrupted save left. Raises CheckpointError
    where the place does not let it.

    One whose manifest cannot be read, or whose files are not as it says, is left alone and counts for nothing. What a
    kept one is an increment of stays, too.
    """
    try:
        paths = _by_step(absolute(checkpoints))
        whole = {path: found for path in paths if (found := _whole(path)) is not None}
        needed = {joined(member.directory, ".") for found in list(whole.values())[-keep:] for member in found.chain}
        for path in reversed(paths):  # an increment goes before what it needs
            place = open_place(path)
            if (path in whole and joined(path, ".") not in needed) or place.size(MANIFEST) is None:
                # The manifest goes first, so that a half-removed checkpoint is never taken for a complete one.
                place.remove(MANIFEST)
                place.remove_all()
            elif path in whole:
                whole[path].remove_others()  # where a save was killed after its manifest
    except OSError as error:
        raise _unreachable(checkpoints, error) from error


def _whole(path: str) -> Manifest | None:
    try:
        return read_manifest(path)
    except CheckpointError:
        return None


def _by_step(checkpoints: str | Path) -> list[str]:
    """Folders of checkpoints, whole or not, oldest first."""
    names = [name for name in open_place(checkpoints).folders() if name.removeprefix("step-").isdigit()]
    return sorted((inside(checkpoints, name) for name in names), key=step_of)


def _numbers(home: str) -> list[int]:
    """Of the runs there, ascending."""
    try:
        return sorted(int(name) for name in open_place(home).folders() if name.isdigit())
    except OSError as error:
        raise _unreachable(home, error) from error


def _unreachable(place: str | Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{place} cannot be reached: {reason(error)}; give another place, or see docs/checkpoints.md, Where"
    )


def _write_json(run: Run, name: str, value: Any) -> None:
    """A small file of a run, whole or not at all: at its home first, and in its folder of this machine."""
    for place in dict.fromkeys((run.home, str(run.directory))):
        try:
            open_place(place).replace(name, json.dumps(value, indent=1).encode())
        except OSError as error:
            raise CheckpointError(
                f"{inside(place, name)} cannot be written: {reason(error)}; give another place, or see "
                "docs/checkpoints.md, Where"
            ) from error


def _is_finished(run: Run) -> bool:
    try:
        return open_place(run.home).size(RESULT_FILE) is not None
    except OSError as error:
        raise _unreachable(run.home, error) from error


def _same_learning(home: str, config: dict[str, Any]) -> bool:
    """Whether both configs learn the same thing: placement, paths and checkpoint timing may differ."""
    try:
        with open_place(home).open(CONFIG_FILE) as file:
            before = _learning(json.loads(file.read()))
    except (OSError, ValueError, RecursionError, AttributeError, TypeError):  # damaged: of no run that we know
        return False
    return before == _learning(json.loads(json.dumps(config)))


def _learning(config: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in ("cluster", "checkpoint", "serving", "runs")}
    data = {key: value for key, value in kept.get("data", {}).items() if key not in ("root", "prefetch_batches")}
    client = {**config.get("cluster", {}).get("client", {})}
    begun = {name: config.get("checkpoint", {}).get(name) for name in ("start_from", "mapping")}
    return {**kept, **begun, "data": data, "staleness": client.get("staleness"), "wire": client.get("wire")}
