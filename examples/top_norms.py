"""The rows of a slot with the greatest norms: `client.get("user", TopNorms(slot=3, k=10, segment="embedding"))`."""

from dataclasses import dataclass

import numpy as np

import ps

ID_MASK = (1 << 52) - 1


@ps.register("top_norms")
@dataclass(frozen=True)
class TopNorms(ps.FoldRows):
    """[(feature id, L2 norm)], the greatest first; equal norms by id.

    total: k norms, falling, then their k ids, which a float64 holds exactly; norm -1 where there are fewer rows.
    """

    slot: int
    k: int = 10

    def start(self):
        return np.concatenate([np.full(self.k, -1.0), np.zeros(self.k)])

    def fold_row(self, values, total, key, slot):
        if slot != self.slot:
            return
        squares = np.float64(0)
        for value in values:
            squares += np.float64(value) * np.float64(value)
        insert(total, self.k, np.sqrt(squares), np.float64(key & np.uint64(ID_MASK)))

    def combine(self, left, right):
        joined = left.copy()
        for norm, key in zip(right[: self.k], right[self.k :]):
            if norm >= 0:
                insert(joined, self.k, norm, key)
        return joined

    def finish(self, total):
        return [(int(key), float(norm)) for norm, key in zip(total[: self.k], total[self.k :]) if norm >= 0]


def insert(total, k, norm, key):
    """Put a row into its place among the k greatest, if it belongs there."""
    place = k
    while place > 0 and (norm > total[place - 1] or (norm == total[place - 1] and key < total[k + place - 1])):
        place -= 1
        if place + 1 < k:
            total[place + 1], total[k + place + 1] = total[place], total[k + place]
    if place < k:
        total[place], total[k + place] = norm, key
