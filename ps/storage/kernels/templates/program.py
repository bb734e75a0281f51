"""A psfunc's row function in a loop over rows: in place, into a result of each key, or folded into one vector.

The rows of one segment or of all: `segment` is its place or -1, and `column`, `width`, `state_column`, `state_dim` say
where its values and state stand among all; so one compilation serves every segment. A row that does not exist (address
-1) is made up beside the table, as it would be created; so are the late segments of an early row, and what is made of
them is dropped.
"""

from collections import namedtuple

import numpy as np

from ps.storage.kernels.build import array, inlined, readonly_array, typed_kernel
from ps.storage.kernels.index import ADDRESSES, KEYS, WORDS
from ps.storage.kernels.metadata import metadata_of
from ps.storage.kernels.views import bits_of, borrow, part

# layout
from ps.storage.kernels.templates import table  # isort: skip

Fields = namedtuple("Fields", ["factor"])  # the psfunc's


@inlined
def fields_of(hyper):
    return Fields(np.float32(hyper[0]))


@inlined
def run_row(hyper, values, state, payload, out, total, key, step, shows, clicks, last_seen):
    for j in range(values.shape[0]):
        values[j] *= fields_of(hyper).factor


UPDATES = True  # values are stored
WRITES_STATE = False  # state is stored as the function left it; else what depends on the values follows them
# end of layout

FLOATS, HALVES, REFUSED = array("float32"), array("uint16"), array("bool")
RATES, HYPERS, STREAMS = readonly_array("float32"), readonly_array("float64"), readonly_array("uint64")
ROWS, OUT_ROWS, TOTAL = readonly_array("float32", 2), array("float32", 2), array("float64")
COUNTS = array("int64")
APPLIED, NONFINITE, SATURATED, AT = 0, 1, 2, 3
INFINITE = np.uint32(0x7F800000)


@inlined
def _load(segment, floats, halves, address, column, state_column, values, state):
    table.read_row(segment, floats, halves, address, values, -column)
    table.read_state_row(segment, floats, halves, address, state, -state_column)


@inlined
def _greatest(numbers):
    greatest = np.uint32(0)
    for j in range(numbers.shape[0]):
        greatest = max(greatest, np.uint32(bits_of(numbers[j]) & np.uint32(0x7FFFFFFF)))
    return greatest


@typed_kernel(
    "void",
    WORDS,
    FLOATS,
    HALVES,
    KEYS,
    ADDRESSES,
    ROWS,
    HYPERS,
    "int64",
    "int64",
    "int64",
    "int64",
    "int64",
    "int64",
    "boolean",
    OUT_ROWS,
    TOTAL,
    COUNTS,
    REFUSED,
    RATES,
    HYPERS,
    STREAMS,
    FLOATS,
    FLOATS,
    FLOATS,
    HALVES,
    FLOATS,
)
def run(
    words,
    floats,
    halves,
    keys,
    addresses,
    payload,
    args,
    step,
    segment,
    column,
    width,
    state_column,
    state_dim,
    write,
    out,
    total,
    counts,
    refused,
    learning_rates,
    hyper,
    streams,
    values,
    state,
    lone_floats,
    lone_halves,
    scratch,
):
    """The row function on each row. write: store what it made of them; else only see whether it raises.

    keys, addresses, refused [n]; payload, out [n, ...]; args: RowCode.pack of the psfunc; counts: counts[AT] is the
    row that is at work. values, state: room for the widest row; lone_*: for one encoded row.
    """
    words, floats, halves, keys, addresses = (
        borrow(words),
        borrow(floats),
        borrow(halves),
        borrow(keys),
        borrow(addresses),
    )
    payload, args, out, total, refused = borrow(payload), borrow(args), borrow(out), borrow(total), borrow(refused)
    learning_rates, hyper, streams = borrow(learning_rates), borrow(hyper), borrow(streams)
    lone_floats, lone_halves, scratch = borrow(lone_floats), borrow(lone_halves), borrow(scratch)
    room, room_of_state = borrow(values), borrow(state)
    chosen, chosen_state = part(room, 0, width), part(room_of_state, 0, state_dim)
    for i in range(addresses.shape[0]):
        address, key = addresses[i], keys[i]
        counts[AT] = i
        if address < 0:
            table.create_row(lone_floats, lone_halves, 0, key, learning_rates, hyper, streams, scratch)
            _load(segment, lone_floats, lone_halves, 0, column, state_column, room, room_of_state)
        elif table.is_early(address):
            table.create_late_row(segment, lone_floats, lone_halves, 0, key, learning_rates, hyper, streams, scratch)
            _load(segment, lone_floats, lone_halves, 0, column, state_column, room, room_of_state)
        if address >= 0:
            _load(segment, floats, halves, address, column, state_column, room, room_of_state)
        payload_row = part(payload, i * payload.shape[1], payload.shape[1])
        out_row = part(out, i * out.shape[1], out.shape[1])
        kept = table.METADATA_WORDS if address >= 0 else 0
        shows, clicks, last_seen = metadata_of(floats, table.place_of(address, table.SHAPE), kept)
        run_row(args, chosen, chosen_state, payload_row, out_row, total, key, step, shows, clicks, last_seen)
        if UPDATES:
            if table.is_early(address):
                table.forget_late_row(segment, room, -column, room_of_state, -state_column)
            greatest = max(_greatest(chosen), _greatest(chosen_state) if WRITES_STATE else np.uint32(0))
            rebased = table.stage_overwrite_row(
                segment, floats, halves, address, room, -column, learning_rates, hyper, scratch
            )
            if not WRITES_STATE:
                greatest = max(greatest, rebased)
            refused[i] = greatest >= INFINITE
            if refused[i]:
                counts[NONFINITE] += 1
            else:
                counts[APPLIED] += 1
                if write:
                    counts[SATURATED] += table.commit_overwrite_row(segment, floats, halves, address, scratch)
                    if WRITES_STATE:
                        counts[SATURATED] += table.write_state_row(
                            segment, floats, halves, address, room_of_state, -state_column
                        )
