"""A whole job from its config: data, cluster, model, training, evaluation, result. The same for one worker and for
several.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ps.client import Client
from ps.errors import RequestError
from workers import metrics
from workers.config import Config
from workers.models.losses import loss as loss_of
from workers.models.model import Model
from workers.models.registry import build_model, parse_params
from workers.models.sync_batch_norm import convert_batch_norm
from workers.readiness import make_ready
from workers.samples.batch import Batch
from workers.samples.dataset import Dataset
from workers.samples.open import open_splits
from workers.samples.schema import Schema
from workers.training.cluster import open_cluster
from workers.training.evaluation import Predictions
from workers.training.metrics_endpoint import serving_metrics
from workers.training.process import use_threads
from workers.training.progress import Reporter
from workers.training.publisher import Publisher
from workers.training.runs import Run, open_run
from workers.training.schedule import Schedule
from workers.training.scorer import Scorer
from workers.training.snapshots import Snapshots
from workers.training.trainer import Trainer
from workers.training.world import World


def train(config: Config, *, local: bool = False) -> dict[str, Any]:
    """Train and evaluate; the result that `weir train --json` prints. Mistakes are raised before anything starts."""
    schema = Schema(config)
    check(config, schema)
    if config.cluster.workers.count > 1 and (local or config.cluster.placement != "ray"):
        raise RequestError(
            f"cluster.workers.count: found {config.cluster.workers.count}; several workers need Ray: "
            "set cluster.placement to ray and leave --local out, or set workers.count to 1"
        )
    run, checkpoint = open_run(
        Path(config.runs),
        config.name,
        describe(config),
        resume=config.checkpoint.resume == "auto",
        directory=config.checkpoint.directory,
    )
    restores = checkpoint is not None or config.checkpoint.start_from is not None
    with open_cluster(config, local=local, restores=restores) as cluster:
        if config.cluster.workers.count > 1:
            from workers.training.group import train_in_group

            result = train_in_group(config, cluster, run, checkpoint)
        else:
            with cluster.connect(config.cluster.client) as client:
                result = work(config, client, run, checkpoint, World())
    return result


def evaluate(config: Config, checkpoint: str | Path, *, local: bool = False) -> dict[str, Any]:
    """Metrics of a checkpoint, a path or a URI, on the test split."""
    found, predictions = predictions_of(config, checkpoint, local=local)
    return {**_tested(found, predictions, config), "checkpoint": str(checkpoint)}


def predictions_of(
    config: Config, checkpoint: str | Path, *, local: bool = False
) -> tuple[dict[str, float], Predictions]:
    """Metrics of a checkpoint on the test split, and the predictions behind them."""
    schema = Schema(config)
    check(config, schema)
    splits = open_splits(config)
    if "test" not in splits:
        raise RequestError("data.test is missing: evaluate needs the test split")
    own = config.model_copy(update={"name": f"{config.name}-evaluate"})  # never the shards of a job that trains
    with open_cluster(own, local=local) as cluster, cluster.connect(config.cluster.client) as client:
        run = Run(Path(config.runs))
        with Reporter(None, quiet=True) as reporter:
            trainer = build_trainer(config, schema, splits, client, run, reporter, World())
            trainer.restore(str(checkpoint), weights_only=True, mapping=config.checkpoint.mapping)
            return trainer.evaluate("test")


def work(
    config: Config,
    client: Client,
    run: Run,
    checkpoint: str | None,
    world: World,
    *,
    snapshot: str | None = None,
    log: Path | None = None,
) -> dict[str, Any]:
    """What each worker does: train, then evaluate its share of the test split; the first writes the result.

    checkpoint: where to begin; snapshot: the same, with the rows as they are. log: where the first worker's lines go
    instead of stderr.
    """
    schema = Schema(config)
    splits = open_splits(config)
    _check_sizes(splits, config, world)
    with Reporter(run.directory if world.is_first else None, quiet=not world.is_first, log=log) as reporter:
        trainer = build_trainer(config, schema, splits, client, run, reporter, world)
        with serving_metrics(trainer, config.cluster.workers.metrics_port):
            if world.size > 1 and world.is_first and client.options.staleness != 0:
                trainer.snapshots = Snapshots(run.directory, config.cluster.workers.snapshot_seconds)
            if snapshot:
                trainer.resume(snapshot)
            elif checkpoint:
                trainer.restore(checkpoint)
                reporter.say(f"continuing {run.directory} after step {trainer.position.step}")
            elif start := config.checkpoint.start_from:
                trainer.start_from(start, config.checkpoint.mapping)
            if config.serving is not None:
                trainer.publisher = Publisher(config, run.directory, world, reporter.say)
            make_ready()
            try:
                trainer.fit()
                if trainer.publisher is not None:
                    trainer.publisher.finish(trainer)
            finally:
                if trainer.publisher is not None:
                    trainer.publisher.close()
            result = _result(trainer)
    if world.is_first:
        run.finish(result)
    return result


def check(config: Config, schema: Schema) -> None:
    """What can be wrong with a config beyond its own file: the model's parameters, the segments that it needs."""
    parse_params(config.model)
    with torch.device("meta"):
        model_of(config, schema)


def _check_sizes(splits: Mapping[str, Dataset], config: Config, world: World) -> None:
    """Every worker must have something to do in every split, for all take part in what is common."""
    for name, split in splits.items():
        batches = split.num_batches(world.size)
        if batches == 0 and config.data.drop_last:
            needed = config.data.batch_size * world.size
            raise RequestError(
                f"data.{name}: {split.num_rows} rows are less than one whole batch of {needed} over all workers; "
                "set data.drop_last to false, or take a smaller data.batch_size"
            )
        if world.size > 1 and split.num_rows is not None and split.num_rows < world.size:
            raise RequestError(f"data.{name}: {split.num_rows} rows for {world.size} workers; take fewer workers")


def describe(config: Config) -> dict[str, Any]:
    """The config as JSON types."""
    return config.model_dump(mode="json")


def build_trainer(
    config: Config,
    schema: Schema,
    splits: dict[str, Dataset],
    client: Client,
    run: Run,
    reporter: Reporter,
    world: World,
) -> Trainer:
    """The trainer of one of `world.size` workers, before its first step; with several, inside their process group."""
    use_threads(config.train.threads)
    torch.manual_seed(config.seed)
    model: torch.nn.Module = model_of(config, schema)
    options = config.train
    if world.size > 1:
        model = DistributedDataParallel(convert_batch_norm(model) if options.sync_batch_norm else model)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, fused=True
    )
    kinds = [label.type for label in config.labels.values()]

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        weights = None if batch.weights is None else torch.from_numpy(batch.weights)
        return loss_of(logits, torch.from_numpy(batch.labels), kinds, sample_weights=weights)

    return Trainer(
        config=config,
        client=client,
        scorer=Scorer(model, config.tables, tuple(config.slots())),
        optimizer=optimizer,
        loss=loss,
        metrics=lambda predictions: _metrics(predictions, config),
        splits=splits,
        run=run,
        reporter=reporter,
        schedule=_schedule(config),
        world=world,
    )


def model_of(config: Config, schema: Schema) -> Model:
    """The model with its initial values, from torch's global generator. Raises RequestError where tables do not fit."""
    dims: dict[str, int] = {}
    for table, spec in config.tables.items():
        for name, segment in spec.segments.items():
            if dims.setdefault(name, segment.dim) != segment.dim:
                raise RequestError(
                    f"tables.{table}.segments.{name}.dim: found {segment.dim}; another table has {dims[name]}: "
                    "all fields of a segment have one dim"
                )
    return build_model(
        config.model,
        num_fields=len(config.slots()),
        segment_dims=dims,
        num_dense=len(schema.dense),
        num_tasks=len(config.labels),
        field_names=tuple(config.slots()),
    )


def _schedule(config: Config) -> Schedule | None:
    stopping, plateau = config.train.early_stopping, config.train.plateau
    if stopping is None:
        return None
    schedule = Schedule(stopping.mode == "max", stopping.patience, stopping.min_delta)
    if plateau is not None:
        schedule.drop_factor, schedule.drop_patience = plateau.factor, plateau.patience
        schedule.max_drops = plateau.max_drops
    return schedule


def _metrics(predictions: Predictions, config: Config) -> dict[str, float]:
    return metrics.evaluate_metrics(
        predictions.logits,
        predictions.labels,
        [label.type for label in config.labels.values()],
        weights=predictions.weights,
        groups=predictions.groups,
        tasks=tuple(config.labels),
    )


def _tested(found: Mapping[str, float], predictions: Predictions, config: Config) -> dict[str, Any]:
    """The test metrics, and beside them the best that any model could reach where the teacher is known."""
    result: dict[str, Any] = dict(found)
    if predictions.probability is not None:
        best = _metrics(_as_teacher(predictions), config)
        result |= {f"best_possible_{name}": best[name] for name in best if name.startswith(("auc", "logloss"))}
    return result


def _as_teacher(predictions: Predictions) -> Predictions:
    assert predictions.probability is not None
    p = predictions.probability
    logits = torch.logit(torch.from_numpy(p)).numpy()
    return Predictions(logits, predictions.labels, predictions.weights, predictions.groups, p)


def _result(trainer: Trainer) -> dict[str, Any]:
    config, position = trainer.config, trainer.position
    result: dict[str, Any] = {"name": config.name}
    if "test" in trainer.splits:
        result |= _tested(*trainer.evaluate("test"), config)
    checkpoint = trainer.keep_final()
    if trainer.schedule is not None and config.train.early_stopping is not None:
        result[f"valid_{config.train.early_stopping.metric}"] = trainer.schedule.best
    stats = trainer.client.stats()
    tables = [table for shard in trainer.client.describe() for table in shard["tables"].values()]
    rows, num_bytes = sum(table["rows"] for table in tables), sum(table["memory_bytes"] for table in tables)
    return {
        **result,
        "epochs": position.epoch,
        "steps": position.step,
        "samples": position.samples,
        "samples_per_second": position.samples / max(trainer.training_seconds, 1e-9),
        "rows": rows,
        "bytes_per_row": num_bytes / max(rows, 1),
        "cache_hit_rate": stats["cache_hit_rate"],
        "evicted_rows": sum(table["evicted"] for table in tables),
        "refused_keys": sum(table["refused"] for table in tables),
        "dropped_gradients": stats["dropped_above"] + stats["dropped_below"],
        **({} if trainer.publisher is None else trainer.publisher.result()),
        "checkpoint": str(checkpoint),
        "run": str(trainer.run.directory),
    }
