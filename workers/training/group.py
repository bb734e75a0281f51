"""Several workers: a Ray Train group with torch DDP (gloo) for the tower and synchronous groups at the shards for the
rows.

Ray Train places the processes and sets up the process group; everything else is `job.work`, the same code as with one
worker.
"""

from __future__ import annotations

import csv
import logging
import os
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from ps.errors import UnavailableError, WeirError
from ps.places import absolute, inside
from workers.config import Config
from workers.cores import THREADS_SLEEP_SOON
from workers.training.cluster import OpenCluster
from workers.training.progress import Follower
from workers.training.runs import Run, newest, step_of
from workers.training.snapshots import newest_snapshot
from workers.training.stopping import receiving_stop, sending_stop
from workers.training.world import World

LOG_FILE = "log.txt"  # rank 0's lines, which the driver shows


@dataclass(frozen=True)
class _Start:
    """Where a group begins: a checkpoint of everything, or a snapshot of the tower beside the rows as they are."""

    checkpoint: str | None = None
    snapshot: str | None = None

    @property
    def step(self) -> int:
        found = self.snapshot or self.checkpoint
        return 0 if found is None else step_of(found)


class _GroupFailedError(UnavailableError):
    """A worker's process died, or raised what is not ours."""


def train_in_group(config: Config, cluster: OpenCluster, run: Run, checkpoint: str | None) -> dict[str, Any]:
    """Train with `cluster.workers.count` workers; the result of rank 0. Raises what a worker raised.

    A group of which a worker died is started anew, where it has come further than the time before. The data must be
    reachable under the same path on every node with a worker; so must the run's folder, unless checkpoints have a
    directory of their own: then curves and lines of progress lie where the first worker runs.
    """
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    start, restarts, twice = _Start(checkpoint), 0, 0
    follower = Follower(run.directory, run.directory / LOG_FILE)
    with run.stopped_by_signals(), sending_stop(run), follower:
        while True:
            try:
                _fit(_group(config, cluster, run, start, restarts), follower)
                break
            except _GroupFailedError as error:
                again, reached = _next_start(config, run), _last_step(run)
                if restarts == config.cluster.workers.max_restarts or run.stop_requested or again.step <= start.step:
                    raise
                start, restarts = again, restarts + 1
                lost = (reached - again.step) * config.data.batch_size * config.cluster.workers.count
                twice += max(0, lost) if again.snapshot else 0
                rows = "rows stay as they are" if again.snapshot else "rows go back to it"
                follower.say(
                    f"{error}; the workers start anew from step {again.step}, {rows}; "
                    f"about {max(0, lost)} samples are trained again"
                )
    result = run.result()
    return {**result, "worker_restarts": restarts, "samples_trained_twice": twice}


def _next_start(config: Config, run: Run) -> _Start:
    """Where a group begins whose workers died. At staleness 0 only a whole cut will do; so where the snapshots lie on a
    machine that is not seen from here.
    """
    snapshot = newest_snapshot(run.directory)
    if config.cluster.client.staleness != 0 and (snapshot or run.elsewhere is None):
        return _Start(snapshot=snapshot)
    return _Start(checkpoint=newest(run.checkpoints))


def _last_step(run: Run) -> int:
    """The last step that was reported."""
    try:
        with (run.directory / "curves.csv").open() as curves:
            return max((int(row["step"]) for row in csv.DictReader(curves)), default=0)
    except (OSError, ValueError, KeyError):
        return 0


def _group(config: Config, cluster: OpenCluster, run: Run, start: _Start, number: int) -> TorchTrainer:
    workers = config.cluster.workers
    resources = {"CPU": workers.cpus} | ({"worker": 1.0} if ray.cluster_resources().get("worker") else {})
    return TorchTrainer(
        _worker,
        train_loop_config={
            "config": config.model_dump_json(),
            "cluster": cluster.name,
            "run": str(run.directory.absolute()),
            "elsewhere": run.elsewhere,
            "checkpoint": start.checkpoint and absolute(start.checkpoint),
            "snapshot": start.snapshot and absolute(start.snapshot),
            "generation": time.time_ns() // 1_000_000,
            "directory": os.getcwd(),
        },
        scaling_config=ScalingConfig(num_workers=workers.count, resources_per_worker=resources),
        run_config=RunConfig(
            name=f"group-{number}",
            storage_path=absolute(inside(run.home, "ray")),
            worker_runtime_env={"env_vars": {name: os.environ[name] for name in THREADS_SLEEP_SOON}},
        ),
        torch_config=TorchConfig(backend="gloo"),
    )


def _fit(trainer: TorchTrainer, follower: Follower) -> None:
    """On a thread of its own: in the main thread Ray Train would answer Ctrl-C by killing the workers."""
    errors: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
        follower.update()
    if errors:
        raise _cause(errors[0]) from None


def _cause(error: BaseException) -> BaseException:
    """The first of our own errors that a worker raised, or one line of what Ray Train says."""
    failures = getattr(error, "worker_failures", {})
    causes = [_unwrapped(failure) for failure in failures.values()]
    ours = next((cause for cause in causes if isinstance(cause, WeirError | KeyboardInterrupt)), None)
    if ours is not None:
        return ours
    said = str(causes[0] if causes else error).strip().splitlines()
    return _GroupFailedError(f"the worker group failed: {said[-1] if said else type(error).__name__}")


def _unwrapped(error: BaseException) -> BaseException:
    while isinstance(inner := getattr(error, "cause", None) or error.__cause__, BaseException):
        error = inner
    return error


def _worker(settings: dict[str, Any]) -> None:
    """One worker's process."""
    from ray import train

    from ps.options import GroupOptions
    from workers.training.cluster import connect
    from workers.training.job import work

    os.chdir(settings["directory"])
    context = train.get_context()
    world = World(context.get_world_rank(), context.get_world_size())
    config = Config.model_validate_json(settings["config"])
    group = GroupOptions(generation=settings["generation"], rank=world.rank, world=world.size)
    run = Run(Path(settings["run"]), settings["elsewhere"])
    checkpoint, snapshot = settings["checkpoint"], settings["snapshot"]
    options = config.cluster.client.model_copy(update={"group": group})
    with receiving_stop(run), connect(settings["cluster"], options, config.cluster.security) as client:
        try:
            work(config, client, run, checkpoint, world, snapshot=snapshot, log=run.directory / LOG_FILE)
        except WeirError as error:
            error.add_note(f"on {socket.gethostname()}, worker {world.rank}")
            raise
