"""The workers of one job as seen by one of them. With one worker nothing is communicated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed


@dataclass(frozen=True)
class World:
    """This worker's rank among `size` workers; sizes above one need an initialised torch process group (gloo)."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def from_first(self, number: int) -> int:
        """The first worker's number, at every worker."""
        if self.size == 1:
            return number
        tensor = torch.tensor(number)
        distributed.broadcast(tensor, 0)
        return int(tensor.item())

    def barrier(self) -> None:
        """Wait until every worker is here."""
        if self.size > 1:
            distributed.barrier()

    def gather(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """All workers' arrays in rank order along the first axis, at every worker. Only lengths may differ."""
        if self.size == 1:
            return array
        # gloo has no unsigned 64-bit type: bytes travel instead, padded to the longest.
        row_bytes = array.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))
        lengths = [torch.zeros((), dtype=torch.int64) for _ in range(self.size)]
        distributed.all_gather(lengths, torch.tensor(len(array)))
        longest = max(int(length) for length in lengths)
        mine = torch.zeros(longest * row_bytes, dtype=torch.uint8)
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        mine[: len(raw)] = torch.from_numpy(raw)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        distributed.all_gather(parts, mine)
        rows = [part.numpy()[: int(n) * row_bytes].view(array.dtype) for part, n in zip(parts, lengths, strict=True)]
        return np.concatenate(rows).reshape(-1, *array.shape[1:])
