"""FiBiNET (Huang, Zhang and Zhang, RecSys 2019): SENET weighs fields, bilinear layers join pairs."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from workers.models.layers import MLP, LinearPart, MLPParams, flat_input, xavier_linear
from workers.models.model import Inputs, Model, Rows

BilinearKind = Literal["field_all", "field_each", "field_interaction"]
Product = Literal["hadamard", "inner"]


class FiBiNETParams(MLPParams):
    """`bilinear`: one matrix for all pairs, one per left field, one per pair. `product`: what joins v_i W and v_j."""

    reduction_ratio: int = Field(default=3, ge=1)
    excitation: Literal["relu", "sigmoid"] = "relu"
    bilinear: BilinearKind = "field_interaction"
    product: Product = "hadamard"


class SENET(nn.Module):
    """v_f * a_f, a = s(W2 relu(W1 z)), z_f = mean(v_f); W1 shrinks num_fields by `reduction_ratio` (section 3.2)."""

    def __init__(self, num_fields: int, reduction_ratio: int, excitation: str) -> None:
        super().__init__()
        reduced = max(1, num_fields // reduction_ratio)
        self.excite = nn.Sequential(
            xavier_linear(num_fields, reduced, bias=False),
            nn.ReLU(inplace=True),
            xavier_linear(reduced, num_fields, bias=False),
            nn.ReLU(inplace=True) if excitation == "relu" else nn.Sigmoid(),
        )

    def forward(self, embedding: Tensor) -> Tensor:
        """[n, num_fields, dim] -> the same shape."""
        importance: Tensor = self.excite(embedding.mean(2))
        return embedding * importance.unsqueeze(2)


class Bilinear(nn.Module):
    """(v_i W) * v_j (Hadamard) or <v_i W, v_j> (inner), pairs i < j in their order (section 3.3): [n, width]."""

    left: Tensor
    right: Tensor

    def __init__(self, num_fields: int, dim: int, kind: BilinearKind, product: Product) -> None:
        super().__init__()
        left, right = torch.triu_indices(num_fields, num_fields, 1)
        num_pairs = len(left)
        self.register_buffer("left", left, persistent=False)
        self.register_buffer("right", right, persistent=False)
        matrices = {"field_all": (), "field_each": (num_fields,), "field_interaction": (num_pairs,)}[kind]
        self.weight = nn.Parameter(torch.randn(*matrices, dim, dim) * dim**-0.5)  # Xavier-normal, matrix by matrix
        self.kind, self.product = kind, product
        self.width = num_pairs * dim if product == "hadamard" else num_pairs

    def forward(self, embedding: Tensor) -> Tensor:
        """embedding: [n, num_fields, dim]."""
        if self.kind == "field_interaction":
            turned = torch.einsum("npd,pde->npe", embedding.index_select(1, self.left), self.weight)
        elif self.kind == "field_each":
            turned = torch.einsum("nfd,fde->nfe", embedding, self.weight).index_select(1, self.left)
        else:
            turned = (embedding @ self.weight).index_select(1, self.left)
        right = embedding.index_select(1, self.right)
        return (turned * right).flatten(1) if self.product == "hadamard" else torch.linalg.vecdot(turned, right)


class FiBiNET(Model):
    """logit = sum_f w_f + dense . u + MLP(bilinear(v), bilinear'(SENET(v)), dense), whose last layer holds the bias."""

    segments: ClassVar = {"linear": "per task", "embedding": "any"}
    Params: ClassVar = FiBiNETParams

    def __init__(self, params: FiBiNETParams, inputs: Inputs) -> None:
        super().__init__()
        pairs = (inputs.num_fields, inputs.segment_dims["embedding"], params.bilinear, params.product)
        self.linear = LinearPart(inputs, bias=False)
        self.senet = SENET(inputs.num_fields, params.reduction_ratio, params.excitation)
        self.original = Bilinear(*pairs)
        self.weighted = Bilinear(*pairs)
        self.mlp = MLP(2 * self.original.width + inputs.num_dense, inputs.num_tasks, params)

    def forward(self, rows: Rows, dense: Tensor) -> Tensor:
        embedding = rows["embedding"]
        pairs = torch.cat((self.original(embedding), self.weighted(self.senet(embedding))), 1)
        logits: Tensor = self.linear(rows["linear"], dense) + self.mlp(flat_input(pairs, dense))
        return logits
