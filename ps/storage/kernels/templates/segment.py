"""One segment of a row: decode, first values, one optimizer step on scratch, encode."""

from collections import namedtuple

import numpy as np

from ps.storage.kernels.build import inlined
from ps.storage.kernels.metadata import metadata_of
from ps.storage.kernels.views import bits_of, part

# layout
from ps.storage.kernels.codecs import fp32 as codec  # isort: skip
from ps.storage.kernels.codecs import fp32 as state_codec  # isort: skip
from ps.storage.kernels.initializers import zeros as initialize  # isort: skip

Fields = namedtuple("Fields", ["l2"])  # of the optimizer


@inlined
def fields_of(hyper):
    return Fields(np.float32(hyper[1]))


@inlined
def init_state(hyper, values, state, learning_rate, key):
    pass


@inlined
def update(hyper, values, state, gradient, learning_rate, key, step, shows, clicks, last_seen):
    for j in range(values.shape[0]):
        values[j] -= learning_rate * (gradient[j] + fields_of(hyper).l2 * values[j])


@inlined
def sweep(hyper, values, state, learning_rate, key, step, shows, clicks, last_seen):
    pass


@inlined
def rebase_state(hyper, before, values, state, learning_rate):
    pass


ORDINAL = 0  # place among the table's segments: row of learning_rates, hyper and streams
DIM = 4
COLUMN = 0  # of the segment's first value in a decoded row
VALUE_WORD = 2  # words from the start of the row to the codes
STATE_DIM = 4
STATE_COLUMN = 0  # of the segment's first float in the decoded state of a row
STATE_WORD = 6  # words from the start of the row to the codes of the state
SCRATCH = 0  # place of values and state in the scratch of a row
HYPER = 0  # place in `hyper` of the initializer's parameter; the optimizer's fields follow
METADATA_WORDS = 0  # of a row, behind its key
# end of layout

INITIAL_STREAM, ROUNDING_STREAM, STATE_STREAM = 3 * ORDINAL, 3 * ORDINAL + 1, 3 * ORDINAL + 2


@inlined
def read(floats, halves, address, out, base):
    """Decode to out[base + COLUMN ...]."""
    codec.decode(codec.codes(floats, halves, address + VALUE_WORD, DIM), part(out, base + COLUMN, DIM))


@inlined
def read_state(floats, halves, address, out, base):
    """Decode the state to out[base + STATE_COLUMN ...]."""
    codes = state_codec.codes(floats, halves, address + STATE_WORD, STATE_DIM)
    state_codec.decode(codes, part(out, base + STATE_COLUMN, STATE_DIM))


@inlined
def write_state(floats, halves, address, state, base):
    """Store state[base + STATE_COLUMN ...], to the nearest codes; returns how many elements saturated."""
    codes = state_codec.codes(floats, halves, address + STATE_WORD, STATE_DIM)
    return state_codec.encode_nearest(part(state, base + STATE_COLUMN, STATE_DIM), codes)


@inlined
def forget(values, base, state, state_base):
    """Zeros in place of the values and the state of a decoded row."""
    own, own_state = part(values, base + COLUMN, DIM), part(state, state_base + STATE_COLUMN, STATE_DIM)
    for j in range(DIM):
        own[j] = np.float32(0)
    for j in range(STATE_DIM):
        own_state[j] = np.float32(0)


@inlined
def initial(key, hyper, streams, out, base, code_floats, code_halves):
    """The value of a row that does not exist, as it would read if it did."""
    values = part(out, base + COLUMN, DIM)
    initialize(values, key, streams[INITIAL_STREAM], hyper[HYPER])
    codes = codec.codes(code_floats, code_halves, 0, DIM)
    codec.clear(codes)
    codec.encode_nearest(values, codes)
    codec.decode(codes, values)


@inlined
def create(floats, halves, address, key, learning_rates, hyper, streams, scratch):
    """First values and state of the row at `address`."""
    values, state = part(scratch, SCRATCH, DIM), part(scratch, SCRATCH + DIM, STATE_DIM)
    codes = codec.codes(floats, halves, address + VALUE_WORD, DIM)
    initialize(values, key, streams[INITIAL_STREAM], hyper[HYPER])
    codec.clear(codes)
    codec.encode_nearest(values, codes)
    codec.decode(codes, values)
    for j in range(STATE_DIM):
        state[j] = np.float32(0)
    init_state(hyper, values, state, learning_rates[ORDINAL], key)
    write_state(floats, halves, address, scratch, SCRATCH + DIM - STATE_COLUMN)


@inlined
def _load(floats, halves, address, scratch):
    codec.decode(codec.codes(floats, halves, address + VALUE_WORD, DIM), part(scratch, SCRATCH, DIM))
    read_state(floats, halves, address, scratch, SCRATCH + DIM - STATE_COLUMN)


@inlined
def _greatest(scratch):
    """The greatest magnitude in scratch, as bits: from 0x7F800000 up it is not finite."""
    staged, greatest = part(scratch, SCRATCH, DIM + STATE_DIM), np.uint32(0)
    for j in range(DIM + STATE_DIM):
        greatest = max(greatest, np.uint32(bits_of(staged[j]) & np.uint32(0x7FFFFFFF)))
    return greatest


@inlined
def stage(floats, halves, address, key, gradients, base, learning_rates, hyper, step, scratch):
    """Decode, apply the gradient gradients[base + COLUMN ...] on scratch; returns _greatest."""
    _load(floats, halves, address, scratch)
    values, state = part(scratch, SCRATCH, DIM), part(scratch, SCRATCH + DIM, STATE_DIM)
    gradient = part(gradients, base + COLUMN, DIM)
    shows, clicks, last_seen = metadata_of(floats, address, METADATA_WORDS)
    update(hyper, values, state, gradient, learning_rates[ORDINAL], key, step, shows, clicks, last_seen)
    return _greatest(scratch)


@inlined
def stage_sweep(floats, halves, address, key, learning_rates, hyper, step, scratch):
    """As `stage`, for the table-wide update."""
    _load(floats, halves, address, scratch)
    values, state = part(scratch, SCRATCH, DIM), part(scratch, SCRATCH + DIM, STATE_DIM)
    shows, clicks, last_seen = metadata_of(floats, address, METADATA_WORDS)
    sweep(hyper, values, state, learning_rates[ORDINAL], key, step, shows, clicks, last_seen)
    return _greatest(scratch)


@inlined
def commit(floats, halves, address, key, streams, step, scratch):
    """Encode what was staged; returns how many elements saturated."""
    values, state = part(scratch, SCRATCH, DIM), part(scratch, SCRATCH + DIM, STATE_DIM)
    codes = codec.codes(floats, halves, address + VALUE_WORD, DIM)
    state_codes = state_codec.codes(floats, halves, address + STATE_WORD, STATE_DIM)
    saturated = codec.encode_stochastic(values, codes, streams[ROUNDING_STREAM], key, step)
    return saturated + state_codec.encode_stochastic(state, state_codes, streams[STATE_STREAM], key, step)


@inlined
def stage_overwrite(floats, halves, address, values, base, learning_rates, hyper, scratch):
    """Put values[base + COLUMN ...] on scratch, the state following them; returns _greatest."""
    _load(floats, halves, address, scratch)
    new, state = part(values, base + COLUMN, DIM), part(scratch, SCRATCH + DIM, STATE_DIM)
    rebase_state(hyper, part(scratch, SCRATCH, DIM), new, state, learning_rates[ORDINAL])
    before = part(scratch, SCRATCH, DIM)
    for j in range(DIM):
        before[j] = new[j]
    return _greatest(scratch)


@inlined
def commit_overwrite(floats, halves, address, scratch):
    """As `commit`, to the nearest codes."""
    saturated = write_state(floats, halves, address, scratch, SCRATCH + DIM - STATE_COLUMN)
    codes = codec.codes(floats, halves, address + VALUE_WORD, DIM)
    return saturated + codec.encode_nearest(part(scratch, SCRATCH, DIM), codes)
