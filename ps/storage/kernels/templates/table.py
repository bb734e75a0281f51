"""The kernels of one row layout: pull, push, first values, table-wide update, rows read and overwritten.

Rows are found as index.py says. A row changes only when every number of its next values and state is finite. Row
functions take an address as it is, flag included, and do nothing for the late segments of an early row.
"""

import numpy as np

from ps.storage.kernels.build import array, deferred_kernel, inlined, readonly_array
from ps.storage.kernels.index import (
    ADDRESSES,
    BUCKETS,
    CHUNK,
    EARLY,
    HASH_RING,
    KEYS,
    PLACE,  # noqa: F401 (generated row functions use it)
    WORDS,
    Shape,
    found_row,
    key_at,
    place_of,
    search_chunk,
)
from ps.storage.kernels.metadata import score_after, touch, touch_time
from ps.storage.kernels.views import borrow, part, stream

# layout
from ps.storage.kernels.templates import segment as segment_0  # isort: skip

SHAPE = Shape(block_shift=6, stride=10, early_shift=0, early_stride=0)
WIDTH = 4  # floats of a decoded row
SCRATCH = 8  # floats of all values and states
MAY_RAISE = False  # a row function is a user's: push remembers what rows were, so that they can be put back
METADATA_WORDS = 0  # of a row, behind its key


@inlined
def read_row(segment, floats, halves, address, out, base):
    if segment < 0 or segment == 0:
        segment_0.read(floats, halves, address, out, base)


@inlined
def read_state_row(segment, floats, halves, address, out, base):
    if segment < 0 or segment == 0:
        segment_0.read_state(floats, halves, address, out, base)


@inlined
def write_state_row(segment, floats, halves, address, state, base):
    saturated = 0
    if segment < 0 or segment == 0:
        saturated += segment_0.write_state(floats, halves, address, state, base)
    return saturated


@inlined
def initial_row(key, hyper, streams, out, base, code_floats, code_halves):
    segment_0.initial(key, hyper, streams, out, base, code_floats, code_halves)


@inlined
def initial_late_row(key, hyper, streams, out, base, code_floats, code_halves):
    return


@inlined
def create_row(floats, halves, address, key, learning_rates, hyper, streams, scratch):
    segment_0.create(floats, halves, address, key, learning_rates, hyper, streams, scratch)


@inlined
def create_late_row(segment, floats, halves, address, key, learning_rates, hyper, streams, scratch):
    return


@inlined
def forget_late_row(segment, values, base, state, state_base):
    return


@inlined
def stage_row(floats, halves, address, key, gradients, base, learning_rates, hyper, step, scratch):
    greatest = np.uint32(0)
    greatest = max(
        greatest, segment_0.stage(floats, halves, address, key, gradients, base, learning_rates, hyper, step, scratch)
    )
    return greatest


@inlined
def commit_row(floats, halves, address, key, streams, step, scratch):
    saturated = 0
    saturated += segment_0.commit(floats, halves, address, key, streams, step, scratch)
    return saturated


@inlined
def stage_sweep_row(floats, halves, address, key, learning_rates, hyper, step, scratch):
    greatest = np.uint32(0)
    return greatest


@inlined
def commit_sweep_row(floats, halves, address, key, streams, step, scratch):
    saturated = 0
    return saturated


@inlined
def stage_overwrite_row(segment, floats, halves, address, values, base, learning_rates, hyper, scratch):
    greatest = np.uint32(0)
    if segment < 0 or segment == 0:
        greatest = max(
            greatest,
            segment_0.stage_overwrite(floats, halves, address, values, base, learning_rates, hyper, scratch),
        )
    return greatest


@inlined
def commit_overwrite_row(segment, floats, halves, address, scratch):
    saturated = 0
    if segment < 0 or segment == 0:
        saturated += segment_0.commit_overwrite(floats, halves, address, scratch)
    return saturated


# end of layout

FLOATS, HALVES = array("float32"), array("uint16")
RATES, HYPERS, STREAMS = readonly_array("float32"), readonly_array("float64"), readonly_array("uint64")
ROWS, OUT_ROWS = readonly_array("float32", 2), array("float32", 2)
COUNTS = array("int64")
# Scratch of the caller: two rings of the search, and a row's values and state as float32 and (the same memory) uint16.
WORKSPACE = (HASH_RING, ADDRESSES, FLOATS, HALVES)
APPLIED, NONFINITE, SATURATED, AT, REMEMBERED, RIPE = 0, 1, 2, 3, 4, 5
INFINITE = np.uint32(0x7F800000)
IMAGE, EARLY_IMAGE = SHAPE.stride - 2, SHAPE.early_stride - 2  # words of an image
LATE = SHAPE.early_stride > 0  # there are late segments
BEFORE, REMEMBERED_KEYS = array("uint32", 2), array("uint64")  # images [n, IMAGE] of rows, and their keys


@inlined
def is_early(address):
    """Whether a row (address >= 0) has no late segments. Where there are none, it is no early row."""
    return address >= EARLY if LATE else False


@inlined
def _remember(words, address, key, before, before_keys, place):
    """What the row of `key` at `address` is now, so that it can be put back."""
    before_keys[place] = key
    kept, row = part(before, place * IMAGE, IMAGE), part(words, place_of(address, SHAPE) + 2, IMAGE)
    if is_early(address):
        for j in range(EARLY_IMAGE):
            stream(kept, j, row[j])
    else:
        for j in range(IMAGE):
            stream(kept, j, row[j])


@deferred_kernel("int64", WORDS, FLOATS, HALVES, BUCKETS, KEYS, "int64", HYPERS, STREAMS, OUT_ROWS, *WORKSPACE)
def pull(
    words, floats, halves, buckets, keys, bucket_bits, hyper, streams, out, hashes, addresses, scratch, halves_scratch
):
    """out[i]: the decoded row of keys[i], or its initial value. Returns how many keys have no row."""
    words, floats, halves, buckets = borrow(words), borrow(floats), borrow(halves), borrow(buckets)
    keys, hyper, streams, out = borrow(keys), borrow(hyper), borrow(streams), borrow(out)
    hashes, addresses = borrow(hashes), borrow(addresses)
    code_floats, code_halves = borrow(scratch), borrow(halves_scratch)
    num_absent = 0
    for start in range(0, keys.shape[0], CHUNK):
        length = min(CHUNK, keys.shape[0] - start)
        search_chunk(words, buckets, keys, start, length, bucket_bits, SHAPE, hashes, addresses)
        for i in range(length):
            key, base = keys[start + i], (start + i) * WIDTH
            address = found_row(words, buckets, key, hashes[i], addresses[i], bucket_bits, SHAPE)
            if address >= 0:
                read_row(-1, floats, halves, address, out, base)
                if is_early(address):
                    initial_late_row(key, hyper, streams, out, base, code_floats, code_halves)
            else:
                num_absent += 1
                initial_row(key, hyper, streams, out, base, code_floats, code_halves)
    return num_absent


@deferred_kernel(
    "int64",
    WORDS,
    FLOATS,
    HALVES,
    BUCKETS,
    KEYS,
    ROWS,
    "int64",
    RATES,
    HYPERS,
    STREAMS,
    "int64",
    COUNTS,
    COUNTS,
    BEFORE,
    REMEMBERED_KEYS,
    ROWS,
    "int64",
    HYPERS,
    *WORKSPACE,
)
def push(
    words,
    floats,
    halves,
    buckets,
    keys,
    gradients,
    bucket_bits,
    learning_rates,
    hyper,
    streams,
    step,
    missing,
    counts,
    before,
    before_keys,
    seen,
    now,
    score,
    hashes,
    addresses,
    scratch,
    halves_scratch,
):
    """Update the rows that exist, but for early ones that reach the score with this push, which are left as they are.

    The first places in missing [n] are those of the keys without a row, and the last counts[RIPE], in reverse order,
    those of the rows that are left. Returns how many keys have no row.

    seen: [n, 2], shows and clicks of each key, where rows keep them; now: event time in seconds; score: as
    layout.score_of. Where MAY_RAISE, the first counts[REMEMBERED] of `before` and `before_keys` are what rows were, and
    counts[AT] is the key at work.
    """
    words, floats, halves, buckets = borrow(words), borrow(floats), borrow(halves), borrow(buckets)
    keys, gradients, learning_rates = borrow(keys), borrow(gradients), borrow(learning_rates)
    hyper, streams, hashes, addresses = borrow(hyper), borrow(streams), borrow(hashes), borrow(addresses)
    before, before_keys, seen = borrow(before), borrow(before_keys), borrow(seen)
    scratch, score, num_missing = borrow(scratch), borrow(score), np.int64(0)
    for start in range(0, keys.shape[0], CHUNK):
        length = min(CHUNK, keys.shape[0] - start)
        search_chunk(words, buckets, keys, start, length, bucket_bits, SHAPE, hashes, addresses)
        for i in range(length):
            key, base = keys[start + i], (start + i) * WIDTH
            address = found_row(words, buckets, key, hashes[i], addresses[i], bucket_bits, SHAPE)
            if address < 0:
                missing[num_missing] = start + i
                num_missing += 1
                continue
            if is_early(address):
                shows, clicks = seen[start + i, 0], seen[start + i, 1]
                reached = score_after(words, floats, place_of(address, SHAPE), shows, clicks, now, score)
                if reached >= score[3]:
                    counts[RIPE] += 1
                    missing[missing.shape[0] - counts[RIPE]] = start + i
                    continue
            if MAY_RAISE:
                counts[AT] = start + i
            greatest = stage_row(floats, halves, address, key, gradients, base, learning_rates, hyper, step, scratch)
            if MAY_RAISE:
                _remember(words, address, key, before, before_keys, counts[REMEMBERED])
                counts[REMEMBERED] += 1
            if METADATA_WORDS > 1:
                shows, clicks = seen[start + i, 0], seen[start + i, 1]
                touch(words, floats, place_of(address, SHAPE), shows, clicks, now, score)
            elif METADATA_WORDS:
                touch_time(words, place_of(address, SHAPE), now)
            if greatest >= INFINITE:
                counts[NONFINITE] += 1
            else:
                counts[APPLIED] += 1
                counts[SATURATED] += commit_row(floats, halves, address, key, streams, step, scratch)
    return num_missing


@deferred_kernel("void", FLOATS, HALVES, KEYS, ADDRESSES, RATES, HYPERS, STREAMS, FLOATS, "boolean")
def create(floats, halves, keys, addresses, learning_rates, hyper, streams, scratch, late):
    """First values and state of new rows; late: of the late segments of rows that have just become full."""
    floats, halves, keys, addresses = borrow(floats), borrow(halves), borrow(keys), borrow(addresses)
    learning_rates, hyper, streams, scratch = borrow(learning_rates), borrow(hyper), borrow(streams), borrow(scratch)
    for i in range(keys.shape[0]):
        if late:
            create_late_row(-1, floats, halves, addresses[i], keys[i], learning_rates, hyper, streams, scratch)
        else:
            create_row(floats, halves, addresses[i], keys[i], learning_rates, hyper, streams, scratch)


@deferred_kernel("void", WORDS, FLOATS, HALVES, ADDRESSES, RATES, HYPERS, STREAMS, "int64", COUNTS, FLOATS, "boolean")
def sweep_rows(words, floats, halves, addresses, learning_rates, hyper, streams, step, counts, scratch, write):
    """The table-wide update of these rows. write: store it; else only see whether it raises."""
    words, floats, halves, addresses = borrow(words), borrow(floats), borrow(halves), borrow(addresses)
    learning_rates, hyper, streams, scratch = borrow(learning_rates), borrow(hyper), borrow(streams), borrow(scratch)
    for i in range(addresses.shape[0]):
        address, key = addresses[i], key_at(words, place_of(addresses[i], SHAPE))
        if MAY_RAISE:
            counts[AT] = i
        greatest = stage_sweep_row(floats, halves, address, key, learning_rates, hyper, step, scratch)
        if greatest >= INFINITE:
            counts[NONFINITE] += 1
        elif write:
            counts[APPLIED] += 1
            counts[SATURATED] += commit_sweep_row(floats, halves, address, key, streams, step, scratch)


@deferred_kernel(
    "void",
    WORDS,
    FLOATS,
    HALVES,
    ADDRESSES,
    "int64",
    "int64",
    "int64",
    OUT_ROWS,
    OUT_ROWS,
    RATES,
    HYPERS,
    STREAMS,
    FLOATS,
    HALVES,
    FLOATS,
)
def read_rows(
    words,
    floats,
    halves,
    addresses,
    segment,
    column,
    state_column,
    values,
    state,
    learning_rates,
    hyper,
    streams,
    lone_floats,
    lone_halves,
    scratch,
):
    """values[i], state[i]: the decoded row, or one segment of it (its place and first columns; else -1 and 0).

    What an early row has not is as it would be made. lone_*: room for one encoded row.
    """
    words, floats, halves, addresses = borrow(words), borrow(floats), borrow(halves), borrow(addresses)
    values, state, hyper, streams = borrow(values), borrow(state), borrow(hyper), borrow(streams)
    learning_rates, lone_floats, lone_halves = borrow(learning_rates), borrow(lone_floats), borrow(lone_halves)
    scratch = borrow(scratch)
    for i in range(addresses.shape[0]):
        address = addresses[i]
        base, state_base = i * values.shape[1] - column, i * state.shape[1] - state_column
        if is_early(address):
            key = key_at(words, place_of(address, SHAPE))
            create_late_row(segment, lone_floats, lone_halves, 0, key, learning_rates, hyper, streams, scratch)
            read_row(segment, lone_floats, lone_halves, 0, values, base)
            read_state_row(segment, lone_floats, lone_halves, 0, state, state_base)
        read_row(segment, floats, halves, address, values, base)
        read_state_row(segment, floats, halves, address, state, state_base)


@deferred_kernel("void", FLOATS, HALVES, ADDRESSES, "int64", "int64", ROWS, RATES, HYPERS, COUNTS, FLOATS)
def overwrite_rows(floats, halves, addresses, segment, column, values, learning_rates, hyper, counts, scratch):
    """The reverse of read_rows, to the nearest codes; state that depends on the values follows them."""
    floats, halves, addresses, values = borrow(floats), borrow(halves), borrow(addresses), borrow(values)
    learning_rates, hyper, scratch = borrow(learning_rates), borrow(hyper), borrow(scratch)
    for i in range(addresses.shape[0]):
        address, base = addresses[i], i * values.shape[1] - column
        greatest = stage_overwrite_row(segment, floats, halves, address, values, base, learning_rates, hyper, scratch)
        if greatest >= INFINITE:
            counts[NONFINITE] += 1
        else:
            counts[APPLIED] += 1
            counts[SATURATED] += commit_overwrite_row(segment, floats, halves, address, scratch)
