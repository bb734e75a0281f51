"""What a row remembers beside values and state: when it was last pushed, how often it was shown and clicked.

Words LAST_SEEN (uint32 seconds), SHOWS and CLICKS (float32) of a row, as far as its table keeps them. Counts are those
at the day of LAST_SEEN; `decayed` brings them to a later day. Integer operations and products only: the same bits
everywhere.
"""

import numpy as np

from ps.storage.kernels.build import array, inlined, readonly_array, typed_kernel
from ps.storage.kernels.index import PLACE
from ps.storage.kernels.views import bits_of, borrow

LAST_SEEN, SHOWS, CLICKS = 2, 3, 4  # words from the start of a row
DAY = 86_400


@inlined
def decay_between(decay, earlier, later):
    """float32: decay ** (days from earlier to later, both in seconds), 1 for none or for an earlier `later`."""
    days, result = later // DAY - earlier // DAY, 1.0
    while days > 0:
        if days & 1:
            result *= decay
        decay *= decay
        days >>= 1
    return np.float32(result)


@inlined
def counts_after(words, floats, address, shows, clicks, now, score):
    """shows, clicks (float32) of a row after a push at time `now` (int64 seconds) with so many. score: decay, weights
    of a show and a click.
    """
    factor = decay_between(score[0], np.int64(words[address + LAST_SEEN]), now)
    return shows + floats[address + SHOWS] * factor, clicks + floats[address + CLICKS] * factor


@inlined
def score_after(words, floats, address, shows, clicks, now, score):
    """float64: the score of those counts."""
    shows, clicks = counts_after(words, floats, address, shows, clicks, now, score)
    return score[1] * (np.float64(shows) - np.float64(clicks)) + score[2] * np.float64(clicks)


@inlined
def touch(words, floats, address, shows, clicks, now, score):
    """That push."""
    shows, clicks = counts_after(words, floats, address, shows, clicks, now, score)
    floats[address + SHOWS], floats[address + CLICKS] = shows, clicks
    touch_time(words, address, now)


@inlined
def touch_time(words, address, now):
    """A push at time `now`."""
    if now > np.int64(words[address + LAST_SEEN]):
        words[address + LAST_SEEN] = np.uint32(now)


@inlined
def metadata_of(floats, address, metadata_words):
    """shows, clicks (float32) and last_seen (int64) of a row; 0 what its table does not keep."""
    shows, clicks, last_seen = np.float32(0), np.float32(0), np.int64(0)
    if metadata_words > 0:
        last_seen = np.int64(bits_of(floats[address + LAST_SEEN]))
    if metadata_words > 1:
        shows, clicks = floats[address + SHOWS], floats[address + CLICKS]
    return shows, clicks, last_seen


@typed_kernel(
    "void",
    array("uint32"),
    array("float32"),
    readonly_array("int64"),
    "int64",
    "float64",
    "boolean",
    array("int64"),
    array("float32", 2),
)
def read_metadata(words, floats, addresses, now, decay, keeps_counts, last_seen, counts):
    """last_seen [n] and, where they are kept, counts [n, 2] (shows, clicks) decayed to `now`, of rows that exist."""
    words, floats, addresses = borrow(words), borrow(floats), borrow(addresses)
    for i in range(addresses.shape[0]):
        place = addresses[i] & PLACE
        last_seen[i] = np.int64(words[place + LAST_SEEN])
        if keeps_counts:
            factor = decay_between(decay, last_seen[i], now)
            counts[i, 0] = floats[place + SHOWS] * factor
            counts[i, 1] = floats[place + CLICKS] * factor
