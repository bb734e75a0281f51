"""One segment of a row: decode, first values, one optimizer step on scratch, encode."""

from collections import namedtuple

import numpy as np

from ps.storage.kernels.build import inlined
from ps.storage.kernels.views import bits_of, part

# layout
from ps.storage.kernels.codecs import fp32 as codec  # isort: skip
from ps.storage.kernels.initializers import zeros as initialize  # isort: skip

Fields = namedtuple("Fields", ["l2"])  # of the optimizer


@inlined
def fields_of(hyper):
    return Fields(np.float32(hyper[1]))


@inlined
def init_state(hyper, values, state, learning_rate, key):
    pass


@inlined
def update(hyper, values, state, gradient, learning_rate, key, step):
    for j in range(values.shape[0]):
        values[j] -= learning_rate * (gradient[j] + fields_of(hyper).l2 * values[j])


@inlined
def sweep(hyper, values, state, learning_rate, key, step):
    pass


@inlined
def rebase_state(hyper, before, values, state, learning_rate):
    pass


ORDINAL = 0  # place among the table's segments: row of learning_rates, hyper and streams
DIM = 4
COLUMN = 0  # of the segment's first value in a decoded row
VALUE_WORD = 2  # words from the start of the row to the codes
STATE_DIM = 4
STATE_WORD = 6
STATE_COLUMN = 0  # of the first float of its state among those of all segments
SCRATCH = 0  # place of values and state in the scratch of a row
HYPER = 0  # place in `hyper` of the initializer's parameter; the optimizer's fields follow
# end of layout

INITIAL_STREAM, ROUNDING_STREAM = 2 * ORDINAL, 2 * ORDINAL + 1


@inlined
def read(floats, halves, address, out, base):
    """Decode to out[base + COLUMN ...]."""
    codec.decode(codec.codes(floats, halves, address + VALUE_WORD, DIM), part(out, base + COLUMN, DIM))


@inlined
def read_state(floats, halves, address, out, base):
    """The state to out[base + STATE_COLUMN ...]."""
    state, stored = part(out, base + STATE_COLUMN, STATE_DIM), part(floats, address + STATE_WORD, STATE_DIM)
    for j in range(STATE_DIM):
        state[j] = stored[j]


@inlined
def write_state(floats, halves, address, state, base):
    """Store state[base + STATE_COLUMN ...]; returns how many elements saturated."""
    given, stored = part(state, base + STATE_COLUMN, STATE_DIM), part(floats, address + STATE_WORD, STATE_DIM)
    for j in range(STATE_DIM):
        stored[j] = given[j]
    return 0


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
    codec.encode_nearest(values, codes)
    codec.decode(codes, values)


@inlined
def create(floats, halves, address, key, learning_rates, hyper, streams, scratch):
    """First values and state of the row at `address`."""
    values = part(scratch, SCRATCH, DIM)
    codes = codec.codes(floats, halves, address + VALUE_WORD, DIM)
    initialize(values, key, streams[INITIAL_STREAM], hyper[HYPER])
    codec.encode_nearest(values, codes)
    codec.decode(codes, values)
    init_state(hyper, values, part(floats, address + STATE_WORD, STATE_DIM), learning_rates[ORDINAL], key)


@inlined
def _load(floats, halves, address, scratch):
    codec.decode(codec.codes(floats, halves, address + VALUE_WORD, DIM), part(scratch, SCRATCH, DIM))
    state, stored = part(scratch, SCRATCH + DIM, STATE_DIM), part(floats, address + STATE_WORD, STATE_DIM)
    for j in range(STATE_DIM):
        state[j] = stored[j]


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
    update(hyper, values, state, part(gradients, base + COLUMN, DIM), learning_rates[ORDINAL], key, step)
    return _greatest(scratch)


@inlined
def stage_sweep(floats, halves, address, key, learning_rates, hyper, step, scratch):
    """As `stage`, for the table-wide update."""
    _load(floats, halves, address, scratch)
    values, state = part(scratch, SCRATCH, DIM), part(scratch, SCRATCH + DIM, STATE_DIM)
    sweep(hyper, values, state, learning_rates[ORDINAL], key, step)
    return _greatest(scratch)


@inlined
def commit(floats, halves, address, key, streams, step, scratch):
    """Encode what was staged; returns how many elements saturated."""
    state, stored = part(scratch, SCRATCH + DIM, STATE_DIM), part(floats, address + STATE_WORD, STATE_DIM)
    for j in range(STATE_DIM):
        stored[j] = state[j]
    codes = codec.codes(floats, halves, address + VALUE_WORD, DIM)
    return codec.encode_stochastic(part(scratch, SCRATCH, DIM), codes, streams[ROUNDING_STREAM], key, step)


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
    state, stored = part(scratch, SCRATCH + DIM, STATE_DIM), part(floats, address + STATE_WORD, STATE_DIM)
    for j in range(STATE_DIM):
        stored[j] = state[j]
    return codec.encode_nearest(part(scratch, SCRATCH, DIM), codec.codes(floats, halves, address + VALUE_WORD, DIM))
