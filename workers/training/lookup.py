"""From the unique rows of a batch to the tensors that a model reads, and back to gradients per unique key.

The rows of each segment are spread over the batch's keys and become one leaf tensor, pooled where bags are jagged.
After `backward` each key's gradients are summed in batch order.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ps.spec import TableSpec
from ps.storage.unique import sum_by_key, take_by_key
from ps.types import Gradients, Inverse, Rows
from workers.samples.batch import Bags, Batch


class RowLeaves:
    """The rows of one batch as leaf tensors, spread over samples and fields.

    segments: name -> float32 [size, num_fields, dim], fields in `field_order`, only those whose table has the segment.
    """

    def __init__(
        self,
        batch: Batch,
        rows: Mapping[str, Rows],
        inverse: Mapping[str, Inverse],
        tables: Mapping[str, TableSpec],
        field_order: tuple[str, ...],
        *,
        train: bool,
    ) -> None:
        self._leaves: dict[tuple[str, str], Tensor] = {}
        self._tables, self._inverse = tables, inverse
        self._num_unique = {table: len(unique) for table, unique in rows.items()}
        spread: dict[str, dict[str, Tensor]] = {}
        for table, bags in batch.bags.items():
            for segment, columns in tables[table].columns().items():
                leaf = torch.from_numpy(take_by_key(rows[table], inverse[table], columns)).requires_grad_(train)
                self._leaves[table, segment] = leaf
                spread.setdefault(segment, {})[table] = _pooled(leaf, bags, batch.size)
        self.segments = {segment: _in_order(by_table, batch.bags, field_order) for segment, by_table in spread.items()}

    def gradients(self) -> dict[str, Gradients]:
        """By table, float32 [num_unique, width]; after `backward`. A segment that the model did not use has zeros."""
        sums = {
            table: np.zeros((num_unique, self._tables[table].width), np.float32)
            for table, num_unique in self._num_unique.items()
        }
        for (table, segment), leaf in self._leaves.items():
            if leaf.grad is not None:
                column = self._tables[table].columns()[segment].start
                out = sums[table]
                sum_by_key(leaf.grad.numpy(), self._inverse[table], len(out), out=out, column=column)
        return sums


def _pooled(leaf: Tensor, bags: Bags, size: int) -> Tensor:
    """float32 [size, num_fields, dim] from the row of each key, [nnz, dim]."""
    num_bags, dim = size * len(bags.fields), leaf.shape[1]
    if bags.offsets is not None:
        lengths = np.diff(bags.offsets)
        if any(bags.mean):
            is_mean = np.tile(np.array(bags.mean, bool), size)
            weights = np.where(is_mean, 1.0 / np.maximum(lengths, 1), 1.0).astype(np.float32)
            leaf = leaf * torch.from_numpy(np.repeat(weights, lengths))[:, None]
        bag_of_key = torch.from_numpy(np.repeat(np.arange(num_bags), lengths))
        leaf = torch.zeros(num_bags, dim).index_add(0, bag_of_key, leaf)
    return leaf.view(size, len(bags.fields), dim)


def _in_order(by_table: dict[str, Tensor], bags: Mapping[str, Bags], field_order: tuple[str, ...]) -> Tensor:
    """The tables' fields in config order."""
    if len(by_table) == 1:
        return next(iter(by_table.values()))
    fields = [field for table in by_table for field in bags[table].fields]
    order = sorted(range(len(fields)), key=lambda i: field_order.index(fields[i]))
    together = torch.cat(list(by_table.values()), dim=1)
    return together if order == list(range(len(fields))) else together[:, order]
