"""LR: logistic regression over all features (Richardson, Dominowska and Ragno 2007 use it for clicks)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from workers.config.section import Section
from workers.models.layers import LinearPart
from workers.models.model import Inputs, Model, Rows


class LRParams(Section):
    """No parameters."""


class LR(Model):
    """logit = bias + sum_f w_f + dense . u"""

    segments: ClassVar = {"linear": "per task"}
    Params: ClassVar = LRParams

    def __init__(self, params: LRParams, inputs: Inputs) -> None:
        super().__init__()
        self.linear = LinearPart(inputs, bias=True)

    def forward(self, rows: Rows, dense: Tensor) -> Tensor:
        logits: Tensor = self.linear(rows["linear"], dense)
        return logits
