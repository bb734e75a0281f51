"""From the unique rows of a batch to the tensors that a model reads, and back to gradients per unique key.

The rows of each segment become one leaf tensor [num_unique, dim]; `torch.nn.functional.embedding` (one key a bag) or
`embedding_bag` (jagged, pooled) spreads them over samples and fields. Autograd then sums each key's gradient in batch
order, so nothing here is written twice for the way back.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding, embedding_bag

from ps.spec import TableSpec
from ps.types import Gradients, Inverse, Rows
from workers.samples.batch import Bags, Batch


class RowLeaves:
    """The unique rows of one batch as leaf tensors, spread over samples and fields.

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
        self._tables = tables
        spread: dict[str, dict[str, Tensor]] = {}
        for table, bags in batch.bags.items():
            positions = torch.from_numpy(inverse[table])
            for segment, columns in tables[table].columns().items():
                leaf = torch.from_numpy(np.ascontiguousarray(rows[table][:, columns])).requires_grad_(train)
                self._leaves[table, segment] = leaf
                spread.setdefault(segment, {})[table] = _spread(leaf, positions, bags, batch.size)
        self.segments = {segment: _in_order(by_table, batch.bags, field_order) for segment, by_table in spread.items()}

    def gradients(self) -> dict[str, Gradients]:
        """By table, float32 [num_unique, width]; after `backward`. A segment that the model did not use has zeros."""
        parts: dict[str, list[np.ndarray]] = {}
        for (table, _), leaf in self._leaves.items():
            grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            parts.setdefault(table, []).append(grad.numpy())
        return {table: np.concatenate(grads, axis=1) if len(grads) > 1 else grads[0] for table, grads in parts.items()}


def _spread(leaf: Tensor, positions: Tensor, bags: Bags, size: int) -> Tensor:
    """float32 [size, num_fields, dim] from the unique rows and the position of each key among them."""
    if bags.offsets is None:
        return embedding(positions.view(size, len(bags.fields)), leaf)
    lengths = np.diff(bags.offsets)
    weights = None
    if any(bags.mean):
        is_mean = np.tile(np.array(bags.mean, bool), size)
        bag_weights = np.where(is_mean, 1.0 / np.maximum(lengths, 1), 1.0).astype(np.float32)
        weights = torch.from_numpy(np.repeat(bag_weights, lengths))
    pooled = embedding_bag(positions, leaf, torch.from_numpy(bags.offsets[:-1]), mode="sum", per_sample_weights=weights)
    return pooled.view(size, len(bags.fields), leaf.shape[1])


def _in_order(by_table: dict[str, Tensor], bags: Mapping[str, Bags], field_order: tuple[str, ...]) -> Tensor:
    """The tables' fields in config order."""
    if len(by_table) == 1:
        return next(iter(by_table.values()))
    fields = [field for table in by_table for field in bags[table].fields]
    order = sorted(range(len(fields)), key=lambda i: field_order.index(fields[i]))
    together = torch.cat(list(by_table.values()), dim=1)
    return together if order == list(range(len(fields))) else together[:, order]
