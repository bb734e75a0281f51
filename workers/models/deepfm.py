"""DeepFM (Guo et al., IJCAI 2017): a factorization machine and an MLP over the same embeddings."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from workers.models.layers import MLP, LinearPart, MLPParams, PairwiseSum, flat_input
from workers.models.model import Inputs, Model, Rows


class DeepFM(Model):
    """logit = sum_f w_f + dense . u + sum_{i<j} <v_i, v_j> + MLP(v, dense), whose last layer holds the bias."""

    segments: ClassVar = {"linear": "per task", "embedding": "any"}
    Params: ClassVar = MLPParams

    def __init__(self, params: MLPParams, inputs: Inputs) -> None:
        super().__init__()
        self.linear = LinearPart(inputs, bias=False)
        self.pairwise = PairwiseSum(inputs.segment_dims["embedding"], inputs.num_tasks)
        self.mlp = MLP(inputs.embedding_width + inputs.num_dense, inputs.num_tasks, params)

    def forward(self, rows: Rows, dense: Tensor) -> Tensor:
        embedding = rows["embedding"]
        machine = self.linear(rows["linear"], dense) + self.pairwise(embedding)
        logits: Tensor = machine + self.mlp(flat_input(embedding, dense))
        return logits
