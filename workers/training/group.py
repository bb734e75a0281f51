"""Several workers: a Ray Train group with torch DDP (gloo) for the tower and synchronous groups at the shards for the
rows.

Ray Train places the processes and sets up the process group; everything else is `job.work`, the same code as with one
worker.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from ps.errors import UnavailableError, WeirError
from workers.config import Config
from workers.training.cluster import OpenCluster
from workers.training.progress import Follower
from workers.training.runs import RESULT_FILE, Run
from workers.training.world import World

LOG_FILE = "log.txt"  # rank 0's lines, which the driver shows


def train_in_group(config: Config, cluster: OpenCluster, run: Run, checkpoint: Path | None) -> dict[str, Any]:
    """Train with `cluster.workers.count` workers; the result of rank 0. Raises what a worker raised.

    The run's directory and the data must be reachable under the same paths on every node with a worker.
    """
    workers = config.cluster.workers
    resources = {"CPU": workers.cpus} | ({"worker": 1.0} if ray.cluster_resources().get("worker") else {})
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "config": config.model_dump_json(),
            "cluster": cluster.name,
            "run": str(run.directory.absolute()),
            "checkpoint": checkpoint and str(checkpoint.absolute()),
            "generation": time.time_ns() // 1_000_000,
            "directory": os.getcwd(),
        },
        scaling_config=ScalingConfig(num_workers=workers.count, resources_per_worker=resources),
        run_config=RunConfig(name="group", storage_path=str((run.directory / "ray").absolute())),
        torch_config=TorchConfig(backend="gloo"),
    )
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    with run.stopped_by_signals(), Follower(run.directory, run.directory / LOG_FILE) as follower:
        _fit(trainer, follower)
    result: dict[str, Any] = json.loads((run.directory / RESULT_FILE).read_text())
    return result


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
    return UnavailableError(f"the worker group failed: {said[-1] if said else type(error).__name__}")


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
    run = Run(Path(settings["run"]))
    checkpoint = settings["checkpoint"] and Path(settings["checkpoint"])
    options = config.cluster.client.model_copy(update={"group": group})
    with connect(settings["cluster"], options, config.cluster.security) as client:
        try:
            work(config, client, run, checkpoint, world, log=run.directory / LOG_FILE)
        except WeirError as error:
            error.add_note(f"on {socket.gethostname()}, worker {world.rank}")
            raise
