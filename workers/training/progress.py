"""What a person sees of a run: a progress bar on a terminal, a line per evaluation elsewhere; and the curves as CSV.

curves.csv has CURVE_COLUMNS every half second of training; valid.csv has step, epoch, loss and every metric per
evaluation.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

CURVE_COLUMNS = ("step", "epoch", "seconds", "loss", "samples_per_second", "cache_hit_rate", "learning_rate_scale")
REPORT_EVERY_SECONDS = 0.5


class Reporter:
    """Shows and records progress. Everything human goes to stderr.

    samples_per_second: of all workers, over the latest half second of training.
    """

    def __init__(self, directory: Path | None, *, quiet: bool = False, log: Path | None = None) -> None:
        """directory: of the curves; None records nothing. quiet: shows nothing. log: where lines go instead of stderr,
        for a process that nobody looks at.
        """
        file = log.open("a", buffering=1) if log else None
        self._console = Console(stderr=log is None, file=file, quiet=quiet, highlight=False)
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:.0f}/{task.total:.0f} steps  {task.fields[text]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=quiet or log is not None or not sys.stderr.isatty(),
            transient=True,
        )
        self._task = self._bar.add_task("train", total=None, epoch=0, text="")
        self._directory = directory
        self._start = self._window_start = time.monotonic()
        self._window_samples = 0
        self.samples_per_second = 0.0

    def __enter__(self) -> Reporter:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def epoch(self, epoch: int, steps: int | None, start: int) -> None:
        """A pass over the training data begins, at batch `start`."""
        self._bar.reset(self._task, total=steps, completed=start, epoch=epoch + 1, text="")

    def step(self, step: int, epoch: int, loss: float, samples: int, hit_rate: float, scale: float) -> None:
        """One more step of `samples` samples."""
        self._window_samples += samples
        self._bar.advance(self._task)
        now = time.monotonic()
        if now - self._window_start < REPORT_EVERY_SECONDS:
            return
        self.samples_per_second = self._window_samples / (now - self._window_start)
        self._window_start, self._window_samples = now, 0
        text = f"loss {loss:.4f}  {self.samples_per_second:,.0f} samples/s"
        self._bar.update(self._task, text=text + (f"  hit rate {hit_rate:.2f}" if hit_rate else ""))
        speed = round(self.samples_per_second)
        row = (step, epoch, round(now - self._start, 2), round(loss, 6), speed, round(hit_rate, 4), scale)
        self._append("curves.csv", dict(zip(CURVE_COLUMNS, row, strict=True)))

    def evaluation(self, step: int, epoch: int, loss: float, metrics: Mapping[str, float], is_best: bool) -> None:
        """Metrics of the valid split after `step`; loss: of the latest training batch."""
        text = "  ".join(f"{name} {value:.5f}" for name, value in metrics.items() if not name.startswith("gauc_"))
        self.say(f"epoch {epoch + 1}  step {step}  loss {loss:.4f}  valid: {text}{'  (best)' if is_best else ''}")
        self._append("valid.csv", {"step": step, "epoch": epoch, "loss": round(loss, 6), **metrics})
        self._window_start, self._window_samples = time.monotonic(), 0

    def say(self, text: str) -> None:
        """One line to the person."""
        self._console.print(text, markup=False, soft_wrap=True)

    def _append(self, name: str, row: Mapping[str, float]) -> None:
        if self._directory is None:
            return
        path = self._directory / name
        is_new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if is_new:
                writer.writeheader()
            writer.writerow(row)


class Follower:
    """Shows what a Reporter in another process records: its lines as they come and, on a terminal, the newest speed."""

    def __init__(self, directory: Path, log: Path) -> None:
        self._curves, self._log = directory / "curves.csv", log
        self._shown = log.stat().st_size if log.exists() else 0
        self._console = Console(stderr=True, highlight=False)
        self._status = self._console.status("starting workers")

    def __enter__(self) -> Follower:
        if sys.stderr.isatty():
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.update()
        self._status.stop()

    def say(self, line: str) -> None:
        """Show a line."""
        self._console.print(line, markup=False, soft_wrap=True)

    def update(self) -> None:
        """Show what is new."""
        if self._log.exists():
            with self._log.open("rb") as file:
                file.seek(self._shown)
                new = file.read()
            complete = new[: new.rfind(b"\n") + 1]
            self._shown += len(complete)
            for line in complete.decode().splitlines():
                self._console.print(line, markup=False, soft_wrap=True)
        if sys.stderr.isatty() and self._curves.exists():
            with self._curves.open() as curves:
                newest = list(csv.DictReader(curves))[-1:]
            for row in newest:
                speed = float(row["samples_per_second"])
                self._status.update(f"step {row['step']}  loss {row['loss']}  {speed:,.0f} samples/s")
