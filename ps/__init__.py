"""Weir's state: sharded tables of embedding rows, without vocabulary and without fixed size.

with ps.local({"user": ps.TableSpec(segments={"embedding": ps.SegmentSpec(dim=16)})}) as client:
    rows = client.pull("user", keys)
    client.push("user", keys, gradients, step=1).wait()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ps.client import Client
    from ps.delta_folder import DeltaFolder
    from ps.delta_lines import DeltaLines
    from ps.durability import Durability
    from ps.errors import (
        CheckpointError,
        ExpiredError,
        JournalError,
        MemoryLimitError,
        NonFiniteError,
        NotAllowedError,
        OverloadedError,
        RequestError,
        RowsLostError,
        UnavailableError,
        WeirError,
        WrongEpochError,
    )
    from ps.following import Follower
    from ps.lifetime import ByCount, ByScore, Chance, Eviction, Score
    from ps.lookup import Lookup
    from ps.options import CacheOptions, ClientOptions, GroupOptions, RetryOptions
    from ps.placement import LocalCluster, connect, local
    from ps.psfunc import Answer, Counts, Psfunc, Task, register
    from ps.psfuncs import (
        Aggregate,
        Delete,
        Evict,
        Fill,
        FoldRows,
        Map,
        Max,
        Min,
        Nnz,
        Nrm2,
        ReadRow,
        RowUpdate,
        Scale,
        SegmentStatistics,
        Size,
        SlotStatistics,
        SlotSummary,
        Sum,
        UpdateRow,
    )
    from ps.replica import Replica
    from ps.rounds import Future
    from ps.row_code import Float64
    from ps.rows_client import RowsClient
    from ps.security import Limits, SecurityOptions, TlsOptions
    from ps.spec import (
        FTRL,
        SGD,
        AdaGrad,
        Adam,
        ClusterSpec,
        Constant,
        Normal,
        RowOptimizer,
        RowWiseAdaGrad,
        SegmentSpec,
        TableSpec,
        Uniform,
        Zeros,
    )

__all__ = [
    "FTRL",
    "SGD",
    "AdaGrad",
    "Adam",
    "Aggregate",
    "Answer",
    "ByCount",
    "ByScore",
    "CacheOptions",
    "Chance",
    "CheckpointError",
    "Client",
    "ClientOptions",
    "ClusterSpec",
    "Constant",
    "Counts",
    "Delete",
    "DeltaFolder",
    "DeltaLines",
    "Durability",
    "Evict",
    "Eviction",
    "ExpiredError",
    "Fill",
    "Float64",
    "FoldRows",
    "Follower",
    "Future",
    "GroupOptions",
    "JournalError",
    "Limits",
    "LocalCluster",
    "Lookup",
    "Map",
    "Max",
    "MemoryLimitError",
    "Min",
    "Nnz",
    "NonFiniteError",
    "Normal",
    "NotAllowedError",
    "Nrm2",
    "OverloadedError",
    "Psfunc",
    "ReadRow",
    "Replica",
    "RequestError",
    "RetryOptions",
    "RowOptimizer",
    "RowUpdate",
    "RowWiseAdaGrad",
    "RowsClient",
    "RowsLostError",
    "Scale",
    "Score",
    "SecurityOptions",
    "SegmentSpec",
    "SegmentStatistics",
    "Size",
    "SlotStatistics",
    "SlotSummary",
    "Sum",
    "TableSpec",
    "Task",
    "TlsOptions",
    "UnavailableError",
    "Uniform",
    "UpdateRow",
    "WeirError",
    "WrongEpochError",
    "Zeros",
    "connect",
    "local",
    "register",
]

# Imported on first use: a configuration file is read, or a message parsed, without the kernels' compiler.
_PLACES: dict[str, tuple[str, ...]] = {
    "ps.client": ("Client",),
    "ps.durability": ("Durability",),
    "ps.errors": (
        "CheckpointError",
        "ExpiredError",
        "JournalError",
        "MemoryLimitError",
        "NonFiniteError",
        "NotAllowedError",
        "OverloadedError",
        "RequestError",
        "RowsLostError",
        "UnavailableError",
        "WeirError",
        "WrongEpochError",
    ),
    "ps.placement": ("LocalCluster", "connect", "local"),
    "ps.lifetime": ("ByCount", "ByScore", "Chance", "Eviction", "Score"),
    "ps.lookup": ("Lookup",),
    "ps.options": ("CacheOptions", "ClientOptions", "GroupOptions", "RetryOptions"),
    "ps.psfunc": ("Answer", "Counts", "Psfunc", "Task", "register"),
    "ps.psfuncs": (
        "Aggregate",
        "Delete",
        "Evict",
        "Fill",
        "FoldRows",
        "Map",
        "Max",
        "Min",
        "Nnz",
        "Nrm2",
        "ReadRow",
        "RowUpdate",
        "Scale",
        "SegmentStatistics",
        "Size",
        "SlotStatistics",
        "SlotSummary",
        "Sum",
        "UpdateRow",
    ),
    "ps.delta_folder": ("DeltaFolder",),
    "ps.delta_lines": ("DeltaLines",),
    "ps.following": ("Follower",),
    "ps.replica": ("Replica",),
    "ps.rows_client": ("RowsClient",),
    "ps.row_code": ("Float64",),
    "ps.rounds": ("Future",),
    "ps.security": ("Limits", "SecurityOptions", "TlsOptions"),
    "ps.spec": (
        "AdaGrad",
        "Adam",
        "ClusterSpec",
        "Constant",
        "FTRL",
        "Normal",
        "RowOptimizer",
        "RowWiseAdaGrad",
        "SGD",
        "SegmentSpec",
        "TableSpec",
        "Uniform",
        "Zeros",
    ),
}
_PLACE_OF = {name: module for module, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _PLACE_OF:
        raise AttributeError(f"module 'ps' has no attribute {name!r}")
    value = getattr(import_module(_PLACE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
