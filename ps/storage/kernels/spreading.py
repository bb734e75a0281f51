"""Rows put where a batch wants them: segment by segment into one stretch of memory, some of them many times.

    runs      int64 [R, 4]: a run of keys that stand one after another and belong to one field: the first, how many, the
              field, and 1 where each is for the next line, 0 where the one key is for all `number` lines
    segments  int64 [S, 5]: of the segments that are wanted: where line 0 begins in `out`, floats of a line, first
              column in a row, dim, and which of the table's segments it is
    offsets   int64 [S, F]: floats from the start of a line to the field's place

Lines are counted from `first`.
"""

import numpy as np

from ps.storage.kernels.build import array, inlined, readonly_array, typed_kernel
from ps.storage.kernels.views import borrow, part

RUNS = SEGMENTS = OFFSETS = readonly_array("int64", 2)
FIRST, COUNT, FIELD, STEP = 0, 1, 2, 3
BASE, LINE, COLUMN, DIM, SEGMENT = 0, 1, 2, 3, 4


@inlined
def lines_of(key, run, first, number):
    """The first line that a key of the run is for, and how many there are."""
    if run[STEP] != 0:
        return first + key - run[FIRST], np.int64(1)
    return first, number


@inlined
def spread_row(row, key, run, segments, offsets, first, number, out):
    """row: float32 [W], decoded; key: its place among the keys; run: that it belongs to."""
    line, lines = lines_of(key, run, first, number)
    for s in range(segments.shape[0]):
        stride, column, dim = segments[s, LINE], segments[s, COLUMN], segments[s, DIM]
        place = segments[s, BASE] + line * stride + offsets[s, run[FIELD]]
        for _ in range(lines):
            target, source = part(out, place, dim), part(row, column, dim)
            for j in range(dim):
                target[j] = source[j]
            place += stride


@typed_kernel(
    "void",
    readonly_array("float32", 2),
    readonly_array("int64"),
    RUNS,
    SEGMENTS,
    OFFSETS,
    "int64",
    "int64",
    array("float32"),
)
def spread_rows(rows, keys, runs, segments, offsets, first, number, out):
    """Put rows[i], the row of key keys[i], where it is wanted; keys ascend."""
    rows, out, r = borrow(rows), borrow(out), 0
    width = rows.shape[1]
    for i in range(keys.shape[0]):
        while r < runs.shape[0] and keys[i] >= runs[r, FIRST] + runs[r, COUNT]:
            r += 1
        if r == runs.shape[0]:
            return
        if keys[i] >= runs[r, FIRST]:
            run = part(runs, r * 4, 4)
            spread_row(part(rows, i * width, width), keys[i], run, segments, offsets, first, number, out)
