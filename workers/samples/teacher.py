"""The teacher behind the generated click log: the probability of a click, from parameters that no table holds.

    p     = (1 - noise) * P(seen | position) * sigmoid(z) + noise / 2             P(seen | position) = (1 + position)
    ** -bias z     = bias + linear * L + pairs * P + crosses * C + numeric * N             L, P, C, N: about mean 0,
    deviation 1 L     = sum of the fields' weights / sqrt(num_fields) P     = sum over pairs of fields of scale_f
    scale_g <v_f, v_g> / sqrt(dim), normed: a factorization machine. The first two
            fields (user, item) have scale 1, the others 1/2
    C     = a weight of its own for each pair of values of adjacent fields, from the third field on: no product of
    vectors N     = (log(price)^2 - 1) / sqrt(2): a hump, no line

Every weight and vector element is a standard normal (a sum of four uniforms) from a hash of (seed, field, key,
element). Drift turns weights and vectors of L and P by the angle drift * time * pi/2 towards a second set of them;
time runs from 0 at the first row of train to 1 at the last row of test.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ps.keys import hash_texts, mix
from ps.types import Keys
from workers.config import Generated

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
TABLE_KEYS = 1 << 16  # parameters of fields up to this size are kept; larger ones are hashed anew for each row

Float64s = NDArray[np.float64]


def salt(*names: object) -> np.uint64:
    """A 64-bit number that stands for the names."""
    return np.uint64(hash_texts([" ".join(map(str, names))])[0])


def normals(keys: Keys, own_salt: np.uint64, count: int) -> Float64s:
    """float64 [n, count]: standard normals of each key; each a normed sum of the four 16-bit parts of a hash."""
    with np.errstate(over="ignore"):
        steps = np.arange(count, dtype=np.uint64) * GOLDEN
        counters = mix(keys + own_salt)[:, None] + steps
    parts = mix(counters.ravel()).view(np.uint16).reshape(-1, 4)
    total = parts[:, 0].astype(np.int32) + parts[:, 1] + parts[:, 2] + parts[:, 3]
    # A uniform on 0..65535 has the variance (65536^2 - 1) / 12; the sum of four has four times that.
    values: Float64s = (total - 131070.0) / np.sqrt((65536.0**2 - 1) / 3)
    return values.reshape(-1, count)


@dataclass(frozen=True)
class Draws:
    """What the click of n rows depends on.

    keys: int64 [n] of each field; tags: int64, all rows' tags end to end, num_tags: int64 [n] of them; log_price:
    float64 [n]; position: int64 [n]; time: float64 [n], 0..1.
    """

    keys: dict[str, NDArray[np.int64]]
    tags: NDArray[np.int64]
    num_tags: NDArray[np.int64]
    log_price: Float64s
    position: NDArray[np.int64]
    time: Float64s


class Teacher:
    """The click probability of rows. Immutable but for a cache of parameters."""

    def __init__(self, log: Generated) -> None:
        self.log = log
        self.names = [*log.keys, *(["tags"] if log.tag_keys else [])]
        self._tables: dict[str, Float64s] = {}

    def propensity(self, position: NDArray[np.int64]) -> Float64s:
        """float64 [n]: the probability that a position is seen."""
        seen: Float64s = np.power(1.0 + position, -self.log.position_bias)
        return seen

    def probability(self, draws: Draws) -> Float64s:
        """float64 [n]: P(click)."""
        log, time = self.log, draws.time
        angle = log.drift * time * (np.pi / 2)
        turn = np.cos(angle), np.sin(angle)
        linear = np.zeros(len(time))
        total = np.zeros((len(time), log.dim))
        squares = np.zeros(len(time))
        scales = [1.0 if i < 2 else 0.5 for i in range(len(self.names))]
        for name, scale in zip(self.names, scales):
            if name == "tags":
                rows = np.repeat(np.arange(len(time)), draws.num_tags)
                own = self._turned("tags", draws.tags, (turn[0][rows], turn[1][rows]))
                starts = np.cumsum(draws.num_tags) - draws.num_tags
                own = np.add.reduceat(own, starts, axis=0) / np.sqrt(draws.num_tags)[:, None]
            else:
                own = self._turned(name, draws.keys[name], turn)
            linear += own[:, 0]
            vector = own[:, 1:] * scale
            total += vector
            squares += np.einsum("nd,nd->n", vector, vector)
        norm = np.sqrt(sum((a * b) ** 2 for a, b in itertools.combinations(scales, 2)) * log.dim)
        pairs = (np.einsum("nd,nd->n", total, total) - squares) / (2 * norm)
        hump = (draws.log_price**2 - 1) / np.sqrt(2)
        logit = log.bias + log.linear / np.sqrt(len(self.names)) * linear + log.pairs * pairs
        logit += log.crosses * self._crosses(draws.keys) + log.numeric * hump
        clicked = self.propensity(draws.position) / (1 + np.exp(-logit))
        probability: Float64s = (1 - log.noise) * clicked + log.noise / 2
        return probability

    def _turned(self, name: str, keys: NDArray[np.int64], turn: tuple[Float64s, Float64s]) -> Float64s:
        """float64 [n, 1 + dim]: weight and vector of each key at its row's time."""
        width = 1 + self.log.dim
        both = self._parameters(name, keys, 2 * width)
        return both[:, :width] * turn[0][:, None] + both[:, width:] * turn[1][:, None]

    def _parameters(self, name: str, keys: NDArray[np.int64], count: int) -> Float64s:
        own_salt = salt("teacher", self.log.seed, name)
        size = self.log.tag_keys if name == "tags" else self.log.keys[name]
        if size > TABLE_KEYS:
            return normals(keys.view(np.uint64), own_salt, count)
        if name not in self._tables:
            self._tables[name] = normals(np.arange(size, dtype=np.uint64), own_salt, count)
        return self._tables[name].take(keys, axis=0)

    def _crosses(self, keys: dict[str, NDArray[np.int64]]) -> Float64s | float:
        adjacent = list(itertools.pairwise(list(keys)[2:]))
        if not adjacent:
            return 0.0
        total: Float64s = np.zeros(len(next(iter(keys.values()))))
        for first, second in adjacent:
            with np.errstate(over="ignore"):
                both = mix(keys[first].view(np.uint64) + GOLDEN) + keys[second].view(np.uint64)
            total += normals(both, salt("cross", self.log.seed, first, second), 1)[:, 0]
        total /= np.sqrt(len(adjacent))
        return total
