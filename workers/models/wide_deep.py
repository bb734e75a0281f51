"""Wide & Deep (Cheng et al., DLRS 2016): a linear model over chosen features beside an MLP over all embeddings.

The paper's cross-product features are fields of their own here: samples make them, `wide` names them.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ps.errors import RequestError
from workers.config.errors import nearest
from workers.models.layers import MLP, LinearPart, MLPParams, flat_input
from workers.models.model import Inputs, Model, Rows


class WideDeepParams(MLPParams):
    """`wide`: the fields of the linear part; all when absent."""

    wide: tuple[str, ...] | None = None


class WideDeep(Model):
    """logit = sum_{f in wide} w_f + dense . u + MLP(v, dense), whose last layer holds the bias."""

    wide: Tensor | None

    segments: ClassVar = {"linear": "per task", "embedding": "any"}
    Params: ClassVar = WideDeepParams

    def __init__(self, params: WideDeepParams, inputs: Inputs) -> None:
        super().__init__()
        self.linear = LinearPart(inputs, bias=False)
        self.mlp = MLP(inputs.embedding_width + inputs.num_dense, inputs.num_tasks, params)
        self.register_buffer("wide", _positions(params.wide, inputs.field_names), persistent=False)

    def forward(self, rows: Rows, dense: Tensor) -> Tensor:
        linear = rows["linear"] if self.wide is None else rows["linear"].index_select(1, self.wide)
        logits: Tensor = self.linear(linear, dense) + self.mlp(flat_input(rows["embedding"], dense))
        return logits


def _positions(wide: tuple[str, ...] | None, field_names: tuple[str, ...]) -> Tensor | None:
    if wide is None:
        return None
    for name in wide:
        if name not in field_names:
            raise RequestError(f"model.wide: no field is called {name!r}{nearest(name, field_names)}")
    return torch.tensor([field_names.index(name) for name in wide], dtype=torch.int64)
