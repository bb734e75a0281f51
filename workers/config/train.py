"""How the model is trained: epochs, the tower's optimizer, when to evaluate, when to slow down and when to stop."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from workers.config.errors import nearest
from workers.config.section import Section

# Whether more of the metric is better.
METRICS = {"auc": "max", "gauc": "max", "logloss": "min", "mse": "min"}


def _metric(value: str) -> str:
    if value.split(".", 1)[0] not in METRICS:
        raise ValueError(f"unknown metric '{value}'" + nearest(value, METRICS))
    return value


Metric = Annotated[str, AfterValidator(_metric)]


class EarlyStopping(Section):
    """End after `patience` evaluations on valid, one after another, none of which is better than the best by
    `min_delta`.

    metric: auc, gauc, logloss or mse; with several tasks `auc` is their mean and `auc.income` that of the label
    `income`. The best weights and rows are kept.
    """

    metric: Metric = "auc"
    patience: int = Field(default=2, ge=1)
    min_delta: float = Field(default=1e-6, ge=0)

    @property
    def mode(self) -> Literal["max", "min"]:
        return "max" if METRICS[self.metric.split(".", 1)[0]] == "max" else "min"


class Plateau(Section):
    """After every `patience` evaluations in a row without improvement (as EarlyStopping counts it), the learning
    rates of rows and tower are multiplied by `factor`, at most `max_drops` times. EarlyStopping ends the run.
    """

    factor: float = Field(default=0.1, gt=0, lt=1)
    patience: int = Field(default=1, ge=1)
    max_drops: int | None = Field(default=None, ge=1)


class Train(Section):
    """Behaviour: all but `threads`, the torch threads of a worker (default: the worker's cores).

    optimizer, learning_rate, weight_decay (L2 in the gradient): of the tower, torch.optim.Adam; rows have their own,
    in `tables`. clip_norm: the greatest norm of the tower's gradients. evaluate_every_steps: default is once an
    epoch, at its end. max_steps: end after so many steps, wherever in an epoch. sync_batch_norm: with several workers,
    batch norm over the global batch.
    """

    epochs: int = Field(default=1, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    optimizer: Literal["adam"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    sync_batch_norm: bool = True
    clip_norm: float | None = Field(default=None, gt=0)
    early_stopping: EarlyStopping | None = None
    plateau: Plateau | None = None
    evaluate_every_steps: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Train:
        if self.plateau is not None and self.early_stopping is None:
            raise ValueError("'plateau' needs 'early_stopping', which names the metric that it watches")
        return self
