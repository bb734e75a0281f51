"""A model with the tables that its rows come from: one batch in, logits out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ps.spec import TableSpec
from workers.training.feed import Feed
from workers.training.lookup import RowLeaves


@dataclass(frozen=True)
class Scorer:
    """model: `forward(rows, dense) -> logits`, possibly wrapped in DDP; field_order: the config's order of fields."""

    model: nn.Module
    tables: Mapping[str, TableSpec]
    field_order: tuple[str, ...]

    @property
    def bare_model(self) -> nn.Module:
        """The model itself, without DDP around it."""
        return self.model.module if isinstance(self.model, DistributedDataParallel) else self.model

    def score(self, feed: Feed, *, train: bool) -> tuple[Tensor, RowLeaves]:
        """Logits [size, num_tasks] and the leaves that collect the rows' gradients."""
        leaves = RowLeaves(
            feed.batch, feed.pull.wait(), feed.lookup.inverse, self.tables, self.field_order, train=train
        )
        # DDP's forward may be a collective, and workers may have different numbers of batches to evaluate.
        model = self.model if train else self.bare_model
        logits: Tensor = model(leaves.segments, torch.from_numpy(feed.batch.dense))
        return logits, leaves
