"""The psfuncs that every shard knows. Importing this package registers them."""

from ps.psfuncs.aggregates import Aggregate, Max, Min, Nnz, Nrm2, Size, Sum
from ps.psfuncs.compiled import FoldRows, ReadRow, UpdateRow
from ps.psfuncs.rows import Clear, Delete, Evict, Pull, Push, Sweep
from ps.psfuncs.statistics import SegmentStatistics, SlotStatistics, SlotSummary
from ps.psfuncs.updates import Fill, Map, RowUpdate, Scale

__all__ = [
    "Aggregate",
    "Clear",
    "Delete",
    "Evict",
    "Fill",
    "FoldRows",
    "Map",
    "Max",
    "Min",
    "Nnz",
    "Nrm2",
    "Pull",
    "Push",
    "ReadRow",
    "RowUpdate",
    "Scale",
    "SegmentStatistics",
    "Size",
    "SlotStatistics",
    "SlotSummary",
    "Sum",
    "Sweep",
    "UpdateRow",
]
