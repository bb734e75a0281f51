"""What reaches serving while training goes on: every so often a version, a tower and the point in the stream of changes
that belongs to it.

Training waits while all workers' pushes are acknowledged, every shard marks its partition of the stream and the tower's
weights are copied; the version is written beside training. The first version of a process, and every `bundle_every`
after it, is a whole bundle: a checkpoint is cut in place of the marks, and exported by a process of its own.
"""

from __future__ import annotations

import copy
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from zlib_ng.zlib_ng import crc32

from ps.deltas.retention import keep
from ps.errors import WeirError
from workers.config import Config
from workers.serving.bundle import read_bundle
from workers.serving.fitting import check_tower
from workers.serving.manifest import TOWER_FILE
from workers.serving.publishing import register
from workers.serving.recorded import Recorded, write_recorded
from workers.serving.retention import floor, prune
from workers.serving.versions import Models, Version
from workers.training.dense import save_dense
from workers.training.lookup import RowLeaves
from workers.training.position import write_position
from workers.training.world import World

if TYPE_CHECKING:
    from workers.exporting.tower import TowerInputs
    from workers.training.trainer import Trainer

_FOLDER = "publishing"  # of a run: checkpoints that are about to be exported


class Publisher:
    """One worker's part in publications: all pause together, the first writes. pauses: seconds that training waited, of
    each publication; failed: publications that were not written.
    """

    def __init__(self, config: Config, run: Path, world: World, say: Callable[[str], None]) -> None:
        assert config.serving is not None
        self._config, self._options, self._run, self._world = config, config.serving, run, world
        self._models = Models(config.serving.models)
        self._folder = run / _FOLDER
        self._template = self._folder / "template.onnx"
        if world.is_first:
            with self._models.locked():
                self._models.sweep()
            shutil.rmtree(self._folder, ignore_errors=True)  # what a process before left that was killed
        self._say = say
        self._bundle: str | None = None  # the version that the next towers stand on
        self._num_towers = 0  # since it
        self._step, self._at = 0, time.monotonic()  # of the newest publication, or of the begin
        self._writing: threading.Thread | None = None
        self._lines: list[str] = []
        self.pauses: list[float] = []
        self.failed = 0
        self.published: list[str] = []

    def is_due(self, step: int) -> bool:
        """Whether a publication should follow this step; never while the one before is still written."""
        self._tell()
        if self._writing is not None and self._writing.is_alive():
            return False
        options = self._options
        return bool(options.publish_steps and step - self._step >= options.publish_steps) or bool(
            options.publish_seconds and time.monotonic() - self._at >= options.publish_seconds
        )

    def publish(self, trainer: Trainer) -> None:
        """Have all workers pause at one instant, and begin to write a version of it."""
        started = time.perf_counter()
        trainer.client.flush()
        data_time = float(self._world.gather(np.array([trainer.position.event_time])).max())
        if self._world.is_first:
            self._join()
            try:
                self._begin(trainer, data_time, started)
            except (WeirError, OSError) as error:
                self._fail(error)
        self._step, self._at = trainer.position.step, time.monotonic()
        self._world.barrier()
        self.pauses.append(time.perf_counter() - started)
        self._tell()

    def finish(self, trainer: Trainer) -> None:
        """Publish what training ended with, and wait until it is written."""
        if trainer.latest_feed is not None:  # else nothing was learnt
            self.publish(trainer)
        self.close()

    def close(self) -> None:
        """Wait until what was begun is written."""
        self._join()
        self._tell()

    def result(self) -> dict[str, Any]:
        """For the result of the job."""
        return {
            "published": self.published[-1] if self.published else None,
            "publications": len(self.published),
            "failed_publications": self.failed,
            "publication_pause_seconds": float(np.median(self.pauses)) if self.pauses else 0.0,
        }

    def _begin(self, trainer: Trainer, data_time: float, started: float) -> None:
        step = trainer.position.step
        name = self._free_name(step)
        write: Callable[[], Version]
        if self._bundle is None or self._num_towers >= self._options.bundle_every:
            directory = self._folder / name
            save_dense(directory, trainer.scorer.bare_model, trainer.optimizer)
            write_position(directory, trainer.position, trainer.training_seconds, None)
            saving = trainer.client.start_save(str(directory.absolute()))
            write = partial(self._write_bundle, name, directory, saving.wait)
        else:
            markers = trainer.client.mark(name, step=step, data_time=data_time)
            model = copy.deepcopy(trainer.scorer.bare_model).eval()
            bundle, inputs = self._bundle, self._inputs(trainer)
            write = partial(self._write_tower, name, bundle, model, inputs, markers, step, data_time)
        paused = time.perf_counter() - started

        def run() -> None:
            began = time.perf_counter()
            try:
                version = write()
                self._serve(version)
            except Exception as error:  # whatever it is, training goes on
                self._fail(error)
                return
            what = f"the tower, on the rows of {version.bundle}" if version.is_dense else "rows and tower"
            self._lines.append(
                f"published {version.name}: {what}; training waited {1000 * paused:.0f} ms, "
                f"written in {time.perf_counter() - began:.1f} s"
            )

        self._writing = threading.Thread(target=run, name="weir-publish", daemon=True)
        self._writing.start()

    def _write_bundle(self, name: str, checkpoint: Path, saved: Callable[[], Any]) -> Version:
        from workers.exporting.process import export_apart

        saved()
        out = self._folder / f"{name}.bundle"
        try:
            export_apart(self._config, checkpoint, out, version=name, template=self._template)
            version = register(self._models, read_bundle(out), name)
        finally:
            shutil.rmtree(out, ignore_errors=True)
            shutil.rmtree(checkpoint, ignore_errors=True)
        self._bundle, self._num_towers = name, 0
        return version

    def _write_tower(
        self,
        name: str,
        bundle: str,
        model: torch.nn.Module,
        inputs: TowerInputs,
        markers: Mapping[int, int],
        step: int,
        data_time: float,
    ) -> Version:
        from workers.exporting.template import fill_template
        from workers.exporting.tower import logits_of

        recorded = Recorded(inputs.named(), logits_of(model, inputs))
        weights = {name: each.numpy() for name, each in model.state_dict().items()}
        with self._models.staging() as staged:
            fill_template(self._template, weights, staged / TOWER_FILE)
            check_tower(staged, recorded)
            write_recorded(staged, recorded)
            version = self._models.add(staged, name, step=step, data_time=data_time, bundle=bundle, markers=markers)
        self._num_towers += 1
        return version

    def _serve(self, version: Version) -> None:
        pointer = self._models.publish(version.name, by_trainer=True)
        self.published.append(version.name)
        if pointer.version != version.name:
            self._lines.append(f"{version.name} waits: somebody rolled back to {pointer.version}")
        prune(self._models, self._options.keep)
        deltas = self._config.cluster_spec().deltas
        if deltas is not None and deltas.directory:
            owner = f"models-{crc32(str(self._models.directory).encode()):08x}"
            keep(deltas.directory, owner, floor(self._models))

    def _inputs(self, trainer: Trainer) -> TowerInputs:
        """Of the first samples of the latest batch: what the tower is checked with."""
        from workers.exporting.bundling import tower_inputs
        from workers.exporting.tower import TowerInputs

        scorer, feed = trainer.scorer, trainer.latest_feed
        assert feed is not None
        leaves = RowLeaves(
            feed.batch, feed.pull.wait(), feed.lookup.inverse, scorer.tables, scorer.field_order, train=False
        )
        count = min(self._options.examples, feed.batch.size)
        rows = {name: leaves.segments[name][:count].numpy().copy() for name in tower_inputs(self._config)}
        return TowerInputs(rows, feed.batch.dense[:count].copy())

    def _free_name(self, step: int) -> str:
        """After the run and the step; a run that went back to a checkpoint comes to the same step again."""
        name, again = f"{self._run.name}-step-{step}", 1
        while self._models.path(name).exists():
            again += 1
            name = f"{self._run.name}-step-{step}-{again}"
        return name

    def _fail(self, error: Exception) -> None:
        self.failed += 1
        self._lines.append(f"a version was not published: {str(error) or type(error).__name__}; training goes on")

    def _join(self) -> None:
        if self._writing is not None:
            self._writing.join()

    def _tell(self) -> None:
        """Lines of the writing thread, from the thread of training."""
        while self._lines:
            self._say(self._lines.pop(0))
