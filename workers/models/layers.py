"""Layers that several models share: the linear part, the pairwise sum of factorization machines, the MLP."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from workers.config.section import Section
from workers.models.model import Inputs


class LinearPart(nn.Module):
    """sum of the fields' linear rows + dense @ weight (+ bias): [n, num_tasks]. Starts at zero."""

    def __init__(self, inputs: Inputs, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs.num_dense, inputs.num_tasks))
        self.bias = nn.Parameter(torch.zeros(inputs.num_tasks)) if bias else None

    def forward(self, rows: Tensor, dense: Tensor) -> Tensor:
        """rows: [n, num_fields, num_tasks]; dense: [n, num_dense]."""
        linear = torch.addmm(rows.sum(1), dense, self.weight)
        return linear if self.bias is None else linear + self.bias


class PairwiseSum(nn.Module):
    """Sum over pairs of fields i < j of <v_i, v_j>, in O(fields * dim) (Rendle 2010, lemma 3.1): [n, num_tasks].

    Several tasks share the embeddings: task t then weighs the dims by a learned h_t, which starts at ones:
    <h_t, v_i * v_j>.
    """

    def __init__(self, dim: int, num_tasks: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim, num_tasks)) if num_tasks > 1 else None

    def forward(self, embedding: Tensor) -> Tensor:
        """embedding: [n, num_fields, dim]."""
        total = embedding.sum(1)
        if self.weight is None:
            flat = embedding.flatten(1)
            pairwise: Tensor = 0.5 * (torch.linalg.vecdot(total, total) - torch.linalg.vecdot(flat, flat))
            return pairwise.unsqueeze(1)
        return 0.5 * (total.square() - embedding.square().sum(1)) @ self.weight


class MLPParams(Section):
    """The multilayer part of a model.

    clip_activation: activations are cut at this value. output_std: initial weights of the last layer are normal with
    this deviation, say 1e-4, so that the part starts near zero.
    """

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (400, 400, 400)
    batch_norm: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1)
    clip_activation: float | None = Field(default=None, gt=0)
    output_std: float | None = Field(default=None, ge=0)


class MLP(nn.Sequential):
    """Per hidden layer Linear, batch norm, ReLU (cut at `clip_activation`), dropout; then Linear to the tasks.

    Weights start Xavier-normal (Glorot and Bengio 2010), biases at zero. Input [n, width], output [n, num_tasks].
    """

    def __init__(self, width: int, num_tasks: int, params: MLPParams) -> None:
        layers: list[nn.Module] = []
        for hidden in params.hidden:
            layers.append(xavier_linear(width, hidden))
            if params.batch_norm:
                layers.append(nn.BatchNorm1d(hidden))
            clip = params.clip_activation
            layers.append(nn.ReLU(inplace=True) if clip is None else nn.Hardtanh(0.0, clip, inplace=True))
            if params.dropout:
                layers.append(nn.Dropout(params.dropout))
            width = hidden
        output = xavier_linear(width, num_tasks)
        if params.output_std is not None:
            nn.init.normal_(output.weight, std=params.output_std)
        super().__init__(*layers, output)


def xavier_linear(width: int, out: int, *, bias: bool = True) -> nn.Linear:
    """A Linear with Xavier-normal weights and zero bias."""
    linear = nn.Linear(width, out, bias=bias)
    nn.init.xavier_normal_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


def flat_input(embedding: Tensor, dense: Tensor) -> Tensor:
    """[n, num_fields * dim + num_dense]: the input of an MLP. Without dense values a view, no copy."""
    flat = embedding.flatten(1)
    return torch.cat((flat, dense), 1) if dense.shape[1] else flat
