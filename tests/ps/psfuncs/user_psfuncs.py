"""A user's psfuncs: the worked example of docs/psfuncs.md, and some that go wrong."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

import ps


# docs: begin
@ps.register("clip_rows")
@dataclass(frozen=True)
class ClipRows(ps.RowUpdate):
    """Shorten every row of a segment to at most `limit` in L2 norm."""

    limit: float

    def compute(self, values, keys):
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        return values * np.minimum(1, self.limit / np.maximum(norms, 1e-12))


@ps.register("histogram")
@dataclass(frozen=True)
class Histogram(ps.Aggregate):
    """How many elements lie between each two neighbouring edges."""

    edges: list[float] = field(default_factory=lambda: [-1.0, 0.0, 1.0])

    def start(self):
        return np.zeros(len(self.edges) - 1)

    def reduce(self, values, keys):
        return np.histogram(values, self.edges)[0]

    def finish(self, total):
        return total.astype(int).tolist()


# docs: end
@ps.register("fails_on")
@dataclass(frozen=True)
class FailsOn(ps.RowUpdate):
    """Divides by zero when it meets a key; writes zeros elsewhere."""

    key: int

    def compute(self, values, keys):
        if self.key in keys.tolist():
            return values / (1 // 0)
        return np.zeros_like(values)


@ps.register("wrong_shape")
@dataclass(frozen=True)
class WrongShape(ps.RowUpdate):
    def compute(self, values, keys):
        return values[:, :1]


@ps.register("wrong_answer")
@dataclass(frozen=True)
class WrongAnswer(ps.Psfunc):
    kind: ClassVar = "get"

    def apply(self, task):
        return 7


@ps.register("odd_answer")
@dataclass(frozen=True)
class OddAnswer(ps.Psfunc):
    kind: ClassVar = "get"

    def apply(self, task):
        return ps.Answer(values=object())


@ps.register("scores")
@dataclass(frozen=True)
class Scores(ps.Psfunc):
    """The dot product of each key's row and the row of the payload, split per shard by the client."""

    kind: ClassVar = "get"
    takes_keys: ClassVar = "always"
    takes_payload: ClassVar = True

    def apply(self, task):
        rows = task.table.pull(task.keys)
        return ps.Answer(rows=np.sum(rows * task.payload, axis=1, keepdims=True))

    def merge(self, answers):
        scores = np.empty(sum(len(answer.rows) for answer in answers), np.float32)
        for answer in answers:
            scores[answer.positions] = answer.rows[:, 0]
        return scores
