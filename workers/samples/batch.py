"""A batch of samples: keys per table, dense features, labels. What readers make and the trainer consumes.

Keys of one table lie sample by sample, field by field: bag (i, f) holds the keys of field `fields[f]` of sample i.
Where every field of the table has exactly one key a sample, `offsets` is None and bag (i, f) is keys[i * num_fields +
f].
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ps.types import Floats, Keys, Offsets


@dataclass(frozen=True)
class Bags:
    """The keys of one table.

    keys: uint64 [nnz]; offsets: int64 [size * num_fields + 1], or None for one key a bag; mean: for each field
    whether the rows of a bag are averaged (else summed). An empty bag is a row of zeros.
    """

    keys: Keys
    fields: tuple[str, ...]
    offsets: Offsets | None = None
    mean: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Batch:
    """`size` samples.

    bags: by table name; dense: float32 [size, num_dense]; labels: float32 [size, num_tasks], NaN = masked; weights:
    float32 [size] or None; groups: uint64 [size] or None, the hashed group field of GAUC; event_time: float64 [size]
    seconds or None; probability: float64 [size, num_tasks] or None, the teacher's own click probability in the
    generated log (evaluation only).
    """

    size: int
    bags: dict[str, Bags]
    dense: Floats
    labels: Floats
    weights: Floats | None = None
    groups: Keys | None = None
    event_time: NDArray[np.float64] | None = None
    probability: NDArray[np.float64] | None = field(default=None, repr=False)
