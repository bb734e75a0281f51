"""Reads of rows that go straight to where a batch wants them, as kernels/spreading.py says. No late segments."""

import numpy as np

from ps.storage.kernels.build import array, typed_kernel
from ps.storage.kernels.index import BUCKETS, CHUNK, KEYS, WORDS, found_row, search_chunk
from ps.storage.kernels.spreading import (
    BASE,
    COLUMN,
    COUNT,
    FIELD,
    FIRST,
    LINE,
    OFFSETS,
    RUNS,
    SEGMENT,
    SEGMENTS,
    lines_of,
    spread_row,
)
from ps.storage.kernels.views import borrow, part

# layout
from ps.storage.kernels.templates import table  # isort: skip

# end of layout

FLOATS, HALVES, COUNTS = array("float32"), array("uint16"), array("int64")


@typed_kernel(
    "int64",
    WORDS,
    FLOATS,
    HALVES,
    BUCKETS,
    KEYS,
    "int64",
    "int64",
    table.HYPERS,
    table.STREAMS,
    RUNS,
    SEGMENTS,
    OFFSETS,
    "int64",
    "int64",
    FLOATS,
    COUNTS,
    FLOATS,
    *table.WORKSPACE,
)
def pull_spread(
    words,
    floats,
    halves,
    buckets,
    keys,
    begin,
    bucket_bits,
    hyper,
    streams,
    runs,
    segments,
    offsets,
    first,
    number,
    out,
    absent,
    row,
    hashes,
    addresses,
    scratch,
    halves_scratch,
):
    """As pull, but each row goes where it is wanted; keys are those from place `begin` on, and each is in a run. The
    first in absent [n] are the places of those without a row; row [WIDTH] is scratch. Returns how many have none.
    """
    words, floats, halves, buckets = borrow(words), borrow(floats), borrow(halves), borrow(buckets)
    keys, hyper, streams, out, row = borrow(keys), borrow(hyper), borrow(streams), borrow(out), borrow(row)
    runs, segments, offsets = borrow(runs), borrow(segments), borrow(offsets)
    hashes, addresses = borrow(hashes), borrow(addresses)
    code_floats, code_halves = borrow(scratch), borrow(halves_scratch)
    num_absent, r = 0, 0
    for start in range(0, keys.shape[0], CHUNK):
        length = min(CHUNK, keys.shape[0] - start)
        search_chunk(words, buckets, keys, start, length, bucket_bits, table.SHAPE, hashes, addresses)
        for i in range(length):
            key, place = keys[start + i], begin + start + i
            while place >= runs[r, FIRST] + runs[r, COUNT]:
                r += 1
            run = part(runs, r * 4, 4)
            address = found_row(words, buckets, key, hashes[i], addresses[i], bucket_bits, table.SHAPE)
            if address < 0:
                absent[num_absent] = place
                num_absent += 1
                table.initial_row(key, hyper, streams, row, 0, code_floats, code_halves)
                spread_row(row, place, run, segments, offsets, first, number, out)
                continue
            line, lines = lines_of(place, run, first, number)
            for s in range(segments.shape[0]):
                base = segments[s, BASE] + line * segments[s, LINE] + offsets[s, run[FIELD]] - segments[s, COLUMN]
                for _ in range(lines):
                    table.read_row(segments[s, SEGMENT], floats, halves, address, out, base)
                    base += segments[s, LINE]
    return np.int64(num_absent)
