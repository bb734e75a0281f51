"""What a model is: pure torch, from rows and dense values to logits. It knows neither tables nor processes.

The trainer pools bags into one row per field and copies keys into no tensor; a model sees

    rows["linear"]     float32 [n, num_fields, num_tasks]   one weight per task (so [n, num_fields, 1] with one task)
    rows["embedding"]  float32 [n, num_fields, dim]
    dense              float32 [n, num_dense]               num_dense may be 0

each contiguous, fields in the order of the config, and returns logits [n, num_tasks]. There may be segments that a
model does not name; it does not read them. Initial values come from torch's global generator: seed it before building.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from torch import Tensor, nn

from workers.config.section import Section

Rows: TypeAlias = Mapping[str, Tensor]  # segment -> float32 [n, num_fields, dim]
Dim: TypeAlias = int | Literal["any", "per task"]  # what a model asks of a segment's dim


@dataclass(frozen=True)
class Inputs:
    """The shapes that a model is built for. `field_names` is empty or names all fields in their order."""

    num_fields: int
    segment_dims: Mapping[str, int]
    num_dense: int = 0
    num_tasks: int = 1
    field_names: tuple[str, ...] = ()

    @property
    def embedding_width(self) -> int:
        """Floats of a sample's embeddings side by side."""
        return self.num_fields * self.segment_dims["embedding"]


class Model(nn.Module, ABC):
    """`segments` says what the model reads; `Params` is its part of the YAML; built as `Model(params, inputs)`."""

    segments: ClassVar[Mapping[str, Dim]]
    Params: ClassVar[type[Section]]

    @abstractmethod
    def forward(self, rows: Rows, dense: Tensor) -> Tensor:
        """Logits [n, num_tasks]."""
