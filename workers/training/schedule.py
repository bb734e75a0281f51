"""When to stop and when to drop the learning rate: plain bookkeeping of one named metric, saved with a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Schedule:
    """Patience on a metric of the valid split.

    An evaluation that does not improve the best by more than `min_delta` is a stall. After `patience` stalls in a row
    training ends. After every `drop_patience` stalls in a row the learning rates of rows and tower are multiplied by
    `drop_factor`, at most `max_drops` times (None: any number); where one more would be due training ends too.
    drop_factor 1: never dropped.
    """

    maximize: bool
    patience: int
    min_delta: float = 1e-6
    drop_factor: float = 1.0
    drop_patience: int = 1
    max_drops: int | None = None
    best: float | None = None
    best_step: int | None = None
    stalls: int = 0
    drops: int = 0
    finished: bool = False

    def observe(self, value: float, step: int) -> bool:
        """Take the metric after `step`. True if it is the best so far."""
        sign = 1.0 if self.maximize else -1.0
        if self.best is None or sign * (value - self.best) > self.min_delta:
            self.best, self.best_step, self.stalls = value, step, 0
            return True
        self.stalls += 1
        self.finished = self.stalls >= self.patience
        if self.drop_factor < 1.0 and self.stalls % self.drop_patience == 0:
            if self.drops == self.max_drops:
                self.finished = True
            else:
                self.drops += 1
        return False

    @property
    def learning_rate_scale(self) -> float:
        """What every configured learning rate is multiplied by."""
        return self.drop_factor**self.drops

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {name: getattr(self, name) for name in ("best", "best_step", "stalls", "drops", "finished")}

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        for name, value in state.items():
            setattr(self, name, value)
