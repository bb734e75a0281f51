"""Array aliases: each names its dtype and shape, so that a signature is a contract.

Contracts on contents ("unique", "grouped by bucket") are checked once, at the client, and trusted below.
"""

from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Keys: TypeAlias = NDArray[np.uint64]  # [n]; any order, duplicates allowed
UniqueKeys: TypeAlias = NDArray[np.uint64]  # [n]; unique, grouped by bucket in ascending bucket order
Buckets: TypeAlias = NDArray[np.int32]  # [n]; the bucket of each key
Inverse: TypeAlias = NDArray[np.int64]  # [n]; position of each raw key among the unique ones
Rows: TypeAlias = NDArray[np.float32]  # [n, width]; the segments' values side by side, in the table's segment order
Gradients: TypeAlias = NDArray[np.float32]  # [n, width]; same columns as Rows
Images: TypeAlias = NDArray[np.uint8]  # [n, image_bytes]; encoded values and state of a row, without its key
Floats: TypeAlias = NDArray[np.float32]
Offsets: TypeAlias = NDArray[np.int64]  # [n + 1]; starts of jagged groups, last one the total
CodecName: TypeAlias = Literal["fp32", "fp16", "bf16", "int8"]


class Seen(NamedTuple):
    """What a push says beside its gradients.

    event_time: seconds since 1970, whole. counts: float32 [n, 2], how often each key was shown and clicked; None: each
    shown once, not clicked.
    """

    event_time: int = 0
    counts: Floats | None = None


NOTHING_SEEN = Seen()


class PushCounts(NamedTuple):
    """Rows updated, rows made, rows left as they were because their next value was not finite, and keys that got no
    row: not admitted, or no room.
    """

    applied: int
    created: int
    nonfinite: int
    refused: int = 0
