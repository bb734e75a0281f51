"""The training loop: unique, pull, forward, backward, push; evaluation, checkpoints and stopping around it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ps.client import Client
from ps.places import inside, joined
from ps.saving import PendingSave
from workers.config import Config
from workers.samples.batch import Batch
from workers.samples.dataset import Dataset
from workers.training.dense import OtherModelError, load_dense, save_dense
from workers.training.evaluation import Predictions, predict
from workers.training.feed import Feed, feeds
from workers.training.lifetimes import clicks_of, due_evictions, event_time_of
from workers.training.position import Position, read_position, write_position
from workers.training.progress import Reporter
from workers.training.publisher import Publisher
from workers.training.runs import InterruptedRunError, Run, keep_newest
from workers.training.schedule import Schedule
from workers.training.scorer import Scorer
from workers.training.snapshots import Snapshots
from workers.training.world import World

EVALUATE, SAVE, STOP, EVICT, PUBLISH = 1, 2, 4, 8, 16


@dataclass
class Trainer:
    """One worker's training loop. All workers run the same steps; rank 0 saves and reports."""

    config: Config
    client: Client
    scorer: Scorer
    optimizer: torch.optim.Optimizer
    loss: Callable[[Tensor, Batch], Tensor]
    metrics: Callable[[Predictions], dict[str, float]]
    splits: dict[str, Dataset]
    run: Run
    reporter: Reporter
    schedule: Schedule | None
    world: World = field(default_factory=World)
    position: Position = field(default_factory=Position)
    latest_loss: float = float("nan")
    latest_feed: Feed | None = None
    training_seconds: float = 0.0
    # When the newest checkpoint was complete, or training began.
    saved_at: float = field(default_factory=time.monotonic)
    snapshots: Snapshots | None = None
    publisher: Publisher | None = None
    saving: tuple[PendingSave, str, int | None] | None = None  # rank 0: what, where, how many then stay
    saved: str | None = None  # rank 0: the latest incremental one, or what the next one begins from

    def step(self, feed: Feed) -> None:
        """One batch: rows in, gradients out."""
        # Dropout depends on (seed, rank, step) only, so a restored run needs no generator state.
        torch.manual_seed(self.config.seed * 1_000_003 + self.position.step * self.world.size + self.world.rank)
        self.scorer.model.train()
        logits, leaves = self.scorer.score(feed, train=True)
        loss = self.loss(logits, feed.batch)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.position.step += 1
        event_time = event_time_of(feed.batch)
        self.client.start_push(
            feed.lookup,
            leaves.gradients(),
            step=self.position.step,
            learning_rates=self._row_learning_rates(),
            clicks=clicks_of(feed.batch, self._click_task, self.scorer.tables),
            event_time=event_time,
        )
        if self.config.train.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.scorer.model.parameters(), self.config.train.clip_norm)
        self.optimizer.step()
        self.client.settle(self.client.options.staleness)
        self.position.batch += 1
        self.position.samples += feed.batch.size * self.world.size
        self.position.event_time = max(self.position.event_time, event_time)
        self.latest_loss, self.latest_feed = float(loss.detach()), feed

    def fit(self) -> None:
        """Train from the present position until the schedule or the epochs end; leaves the best weights loaded.

        Raises InterruptedRunError after Ctrl-C, with a checkpoint written.
        """
        with self.run.stopped_by_signals():
            while self.position.epoch < self.config.train.epochs and not self._is_finished():
                self._epoch()
                self.position.epoch, self.position.batch = self.position.epoch + 1, 0
        if self.schedule is not None and self.schedule.best_step is not None:
            self.restore(self._best_directory(self.schedule.best_step), weights_only=True)

    def evaluate(self, split: str) -> tuple[dict[str, float], Predictions]:
        """Metrics of a split with the present weights, and the predictions behind them."""
        self.client.flush()
        self.world.barrier()
        batches = self.splits[split].batches(epoch=0, rank=self.world.rank, world=self.world.size)
        predictions = predict(self.scorer, self._feeds(batches, training=False), self.world)
        return self.metrics(predictions), predictions

    def save(self, directory: str) -> None:
        """`start_save`, and wait for its end."""
        self.start_save(directory)
        self.finish_save()

    def start_save(self, directory: str, keep: int | None = None, *, incremental: bool = False) -> None:
        """One global cut: every worker's pushes are acknowledged, then tower and position are written and all shards
        mark; rows are written while training goes on, and the manifest last. keep: how many of its kind are kept then.
        incremental: of rows only what has changed since the latest save with it.
        """
        self.finish_save()
        self.client.flush()
        self.world.barrier()
        if self.world.is_first:
            save_dense(directory, self.scorer.bare_model, self.optimizer)
            schedule = None if self.schedule is None else self.schedule.state()
            write_position(directory, self.position, self.training_seconds, schedule)
            since = self.saved if incremental and self.saved != directory else None
            saving = self.client.start_save(
                directory,
                since=since,
                tracks=incremental,
                max_increments=self.config.checkpoint.max_increments,
            )
            self.saving = (saving, directory, keep)
            self.saved = directory if incremental else self.saved
        self.world.barrier()

    def finish_save(self, *, wait: bool = True) -> None:
        """The end of a save that was started, if it is there or with `wait`; raises what went wrong."""
        if self.saving is None or not (wait or self.saving[0].is_done):
            return
        (saving, directory, keep), self.saving = self.saving, None
        saving.wait()
        self.saved_at = time.monotonic()
        if keep is not None:
            keep_newest(joined(directory, ".."), keep)

    def keep_final(self) -> str:
        """The checkpoint of the weights that `fit` left loaded: the best one, or else a new one of the last step."""
        if self.schedule is not None and self.schedule.best_step is not None:
            return self._best_directory(self.schedule.best_step)
        self._checkpoint(wait=True, incremental=False)  # what is kept for good needs no other
        return self._checkpoint_directory()

    def restore(self, directory: str, *, weights_only: bool = False, mapping: Mapping[str, Any] | None = None) -> None:
        """Return to a checkpoint's cut, to the same bits; with `weights_only` position and schedule stay. mapping: of
        names, where the checkpoint is of another recipe; see Client.restore. What is not as it was is reported.
        """
        self._restore_rows(directory, mapping)
        load_dense(directory, self.scorer.bare_model, None if weights_only else self.optimizer)
        if not weights_only:
            self.position, self.training_seconds, schedule = read_position(directory)
            if self.schedule is not None and schedule is not None:
                self.schedule.load(schedule)

    def start_from(self, directory: str, mapping: Mapping[str, Any]) -> None:
        """Begin with the rows and the tower of another run's checkpoint; a tower of another shape stays as it is."""
        self._restore_rows(directory, mapping)
        try:
            load_dense(directory, self.scorer.bare_model)
        except OtherModelError as error:
            self.reporter.say(f"{error}; the tower starts at its initial weights")

    def _restore_rows(self, directory: str, mapping: Mapping[str, Any] | None) -> None:
        self.finish_save()
        self.saved = None
        if self.world.is_first:
            for change in self.client.restore(directory, mapping=mapping).changes:
                self.reporter.say(f"{directory}: {change}")
        self.world.barrier()

    def resume(self, snapshot: str) -> None:
        """Take tower and position from a snapshot; rows stay as they are."""
        load_dense(snapshot, self.scorer.bare_model, self.optimizer)
        self.position, self.training_seconds, schedule = read_position(snapshot)
        if self.schedule is not None and schedule is not None:
            self.schedule.load(schedule)

    def _epoch(self) -> None:
        """The rest of the present epoch, with the evaluations and checkpoints that fall into it."""
        options, position = self.config.train, self.position
        train, drop_last = self.splits["train"], self.config.data.drop_last
        rank, world = self.world.rank, self.world.size
        self.reporter.epoch(position.epoch, train.num_batches(world=world, drop_last=drop_last), position.batch)
        batches = train.batches(position.epoch, rank=rank, world=world, start_batch=position.batch, drop_last=drop_last)
        last_saved = started = time.monotonic()
        for feed in self._feeds(batches, training=True):
            self.step(feed)
            self._report(feed.batch.size)
            if self.snapshots is not None:
                self.snapshots.keep(self)
            self.finish_save(wait=False)
            due = self.world.from_first(self._due(time.monotonic() - last_saved))
            if due:
                self.client.flush()
                self.training_seconds += time.monotonic() - started
                if due & EVICT:
                    self._evict()
                if due & EVALUATE:
                    self._evaluate_valid()
                if due & PUBLISH and self.publisher is not None:
                    self.publisher.publish(self)
                if due & (SAVE | STOP):
                    self._checkpoint(wait=bool(due & STOP), incremental=self.config.checkpoint.incremental)
                    last_saved = time.monotonic()
                if due & STOP:
                    saved = self._checkpoint_directory()
                    raise InterruptedRunError(f"stopped after step {position.step}; run again to go on from {saved}")
                started = time.monotonic()
            if self._is_finished():
                break
        self.client.flush()
        self.training_seconds += time.monotonic() - started
        if not options.evaluate_every_steps:
            self._evaluate_valid()

    def _feeds(self, batches: Iterator[Batch], *, training: bool) -> Iterator[Feed]:
        prefetch_pull = not training or self.client.options.staleness != 0
        return feeds(
            self.client,
            batches,
            prefetch_batches=self.config.data.prefetch_batches,
            prefetch_pull=prefetch_pull,
            training=training,
        )

    def _evaluate_valid(self) -> None:
        """Evaluate the valid split, if there is one; keep the best weights so far; drop the rates on a plateau."""
        if "valid" not in self.splits:
            return
        metrics, _ = self.evaluate("valid")
        step = self.position.step
        is_best = False
        if self.schedule is not None:
            assert self.config.train.early_stopping is not None
            is_best = self.schedule.observe(metrics[self.config.train.early_stopping.metric], step)
            if is_best:
                self.start_save(self._best_directory(step), 1)
                self.finish_save()
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.train.learning_rate * self.learning_rate_scale
        self.reporter.evaluation(step, self.position.epoch, self.latest_loss, metrics, is_best)

    @property
    def learning_rate_scale(self) -> float:
        return 1.0 if self.schedule is None else self.schedule.learning_rate_scale

    def _is_finished(self) -> bool:
        max_steps = self.config.train.max_steps
        return (self.schedule is not None and self.schedule.finished) or bool(
            max_steps and self.position.step >= max_steps
        )

    def _report(self, size: int) -> None:
        self.reporter.step(
            self.position.step,
            self.position.epoch,
            self.latest_loss,
            size * self.world.size,
            self.client.stats()["cache_hit_rate"],
            self.learning_rate_scale,
        )

    def _due(self, seconds_since_save: float) -> int:
        """What comes after this step, as a sum of EVALUATE, SAVE, STOP, EVICT and PUBLISH."""
        step, every = self.position.step, self.config.train.evaluate_every_steps
        options = self.config.checkpoint
        evaluate = bool(every and step % every == 0)
        save = bool(options.every_steps and step % options.every_steps == 0) or bool(
            options.every_minutes and seconds_since_save >= 60 * options.every_minutes
        )
        evict = bool(due_evictions(self.scorer.tables, self.position.evicted_at, self.position.event_time))
        publish = self.publisher is not None and self.publisher.is_due(step)
        stop = self.run.stop_requested
        return EVALUATE * evaluate + SAVE * save + STOP * stop + EVICT * evict + PUBLISH * publish

    def _evict(self) -> None:
        """Evict what is due, while no worker pushes."""
        self.world.barrier()
        if self.world.is_first:
            now, evicted_at = self.position.event_time, self.position.evicted_at
            for table in due_evictions(self.scorer.tables, evicted_at, now):
                self.client.evict(table, event_time=now)
                evicted_at[table] = now
        self.world.barrier()

    @property
    def _click_task(self) -> int:
        return list(self.config.labels).index(self.config.click) if self.config.click else 0

    def _row_learning_rates(self) -> dict[str, dict[str, float]]:
        """Each segment's own rate times the schedule's scale: rows and tower drop together."""
        return {
            table: {
                name: segment.optimizer.learning_rate * self.learning_rate_scale
                for name, segment in spec.segments.items()
            }
            for table, spec in self.scorer.tables.items()
        }

    def _checkpoint(self, *, wait: bool, incremental: bool) -> None:
        self.start_save(self._checkpoint_directory(), self.config.checkpoint.keep, incremental=incremental)
        self.finish_save(wait=wait)

    def _checkpoint_directory(self) -> str:
        return inside(self.run.checkpoints, f"step-{self.position.step}")

    def _best_directory(self, step: int) -> str:
        return inside(self.run.best, f"step-{step}")
