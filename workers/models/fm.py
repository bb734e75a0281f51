"""FM: factorization machines (Rendle, ICDM 2010), equation 1, of degree 2."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from workers.config.section import Section
from workers.models.layers import LinearPart, PairwiseSum
from workers.models.model import Inputs, Model, Rows


class FMParams(Section):
    """No parameters."""


class FM(Model):
    """logit = bias + sum_f w_f + dense . u + sum_{i<j} <v_i, v_j>"""

    segments: ClassVar = {"linear": "per task", "embedding": "any"}
    Params: ClassVar = FMParams

    def __init__(self, params: FMParams, inputs: Inputs) -> None:
        super().__init__()
        self.linear = LinearPart(inputs, bias=True)
        self.pairwise = PairwiseSum(inputs.segment_dims["embedding"], inputs.num_tasks)

    def forward(self, rows: Rows, dense: Tensor) -> Tensor:
        logits: Tensor = self.linear(rows["linear"], dense) + self.pairwise(rows["embedding"])
        return logits
