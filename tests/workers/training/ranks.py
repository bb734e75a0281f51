"""Two worker processes joined by gloo, without Ray, that train a recipe against shards of the test and send back what
happened.

They live for a whole test module: what they cost is importing torch.
"""

from __future__ import annotations

import multiprocessing
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ps
from ps.options import GroupOptions
from workers.config import Config
from workers.training.world import World

PATIENCE_SECONDS = 120


@dataclass
class Trained:
    """Of one worker: the loss of each step, metrics of the test split, what its client counted, samples trained on."""

    losses: list[float]
    metrics: dict[str, float]
    stats: dict[str, float]
    samples: int


class Ranks:
    """Processes that wait for recipes."""

    def __init__(self, world: int, directory: Path) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        self._generation = 0
        for rank in range(world):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(
                target=_serve, args=(theirs, World(rank, world), f"file://{directory}/gloo"), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def train(self, config: Config, address: str) -> list[Trained]:
        """Train on every rank against the shards at `address`; by rank."""
        self._generation += 1
        for pipe in self._pipes:
            pipe.send((config.model_dump_json(), address, self._generation))
        found = []
        for rank, pipe in enumerate(self._pipes):
            assert pipe.poll(PATIENCE_SECONDS), f"rank {rank} does not answer"
            found.append(pipe.recv())
        failed = [each for each in found if isinstance(each, str)]
        assert not failed, failed[0]
        return found

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(20)
            process.kill()


def train_alone(config: Config, address: str) -> Trained:
    """One worker, in this process."""
    return _train(config, address, World(), None)


def _serve(pipe: Connection, world: World, store: str) -> None:
    from torch import distributed

    distributed.init_process_group("gloo", init_method=store, rank=world.rank, world_size=world.size)
    while True:
        try:
            config, address, generation = pipe.recv()
        except EOFError:
            break
        try:
            group = GroupOptions(generation=generation, rank=world.rank, world=world.size)
            pipe.send(_train(Config.model_validate_json(config), address, world, group))
        except BaseException:
            pipe.send(traceback.format_exc())
    distributed.destroy_process_group()


def _train(config: Config, address: str, world: World, group: GroupOptions | None) -> Trained:
    from workers.samples.open import open_splits
    from workers.samples.schema import Schema
    from workers.training.job import build_trainer
    from workers.training.progress import Reporter
    from workers.training.runs import Run

    losses: list[float] = []

    class Recorder(Reporter):
        def step(self, step: int, epoch: int, loss: float, *rest: Any) -> None:
            losses.append(loss)

    options = config.cluster.client.model_copy(update={"group": group})
    run = Run(Path(config.runs) / str(world.rank))
    run.directory.mkdir(parents=True, exist_ok=True)
    with ps.connect(address, options) as client, Recorder(run.directory, quiet=True) as reporter:
        trainer = build_trainer(config, Schema(config), open_splits(config), client, run, reporter, world)
        trainer.fit()
        metrics, _ = trainer.evaluate("test")
        client.flush()
        return Trained(losses, metrics, client.stats(), trainer.position.samples)
