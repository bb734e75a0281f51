"""A shard takes rows of the buckets that were announced, and of no others, whatever a part says."""

from concurrent.futures import Future

import msgpack
import numpy as np
import pytest

from ps.errors import RequestError, WrongEpochError
from ps.journal.frames import NO_KEYS, NO_ROWS, NOTHING_GATHERED, RowsFrame, encode_rows, with_checksum
from ps.moving import take
from ps.record import layout_digest
from tests.ps.driving import NUM_BUCKETS, Driver, keys_in, push

OWN, COMING = 0, NUM_BUCKETS - 1


@pytest.fixture
def driver():
    """Shard 0 of two; its rows are there."""
    driver = Driver(shards=2)
    driver.do(push(keys_in([OWN])), sequence=1)
    return driver


def give(driver, buckets=(), frames=b"", windows=b""):
    answer = Future()
    part = np.array(buckets, np.int64)
    driver.shard.run("update", lambda holding: take(holding, part, frames, windows, now=0.0), answer)
    driver.run()
    return answer.result(0)


def dropping(driver, bucket):
    layout = layout_digest(driver.table.image_layout())
    frame = RowsFrame(0, "user", layout, NO_ROWS, NO_ROWS, NO_KEYS, NOTHING_GATHERED, (bucket,))
    return b"".join(with_checksum(encode_rows(frame)))


def test_buckets_that_it_owns_are_not_taken(driver):
    with pytest.raises(WrongEpochError, match="owns some of buckets"):
        give(driver, [OWN])


@pytest.mark.parametrize("bucket", [OWN, NUM_BUCKETS])
def test_a_part_drops_no_other_bucket(driver, bucket):
    give(driver, [COMING])
    with pytest.raises(WrongEpochError, match="does not expect"):
        give(driver, frames=dropping(driver, bucket))
    assert driver.table.contains(keys_in([OWN])).all()


def test_what_was_applied_to_other_buckets_stays(driver):
    give(driver, [COMING])
    applied = driver.shard.holding.applied["user"]
    before = applied.entries(OWN)
    assert before
    give(driver, windows=msgpack.packb({"windows": [["user", OWN, b"", b""]], "expired": {}}))
    assert applied.entries(OWN) == before


@pytest.mark.parametrize("windows", [b"\xc1", msgpack.packb([]), msgpack.packb({"windows": [[1]], "expired": {}})])
def test_what_cannot_be_read_is_a_mistake_of_the_request(driver, windows):
    give(driver, [COMING])
    with pytest.raises(RequestError, match="cannot be read"):
        give(driver, windows=windows)
