"""A standby has, bit for bit, what its primary acknowledged: while it is filled, when messages come twice, after
restores; and when the primary may not know any more whether it is one, it acknowledges nothing.
"""

from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ps.delta_options import DeltaOptions
from ps.errors import WrongEpochError
from ps.journal.frames import with_checksum
from ps.journal.lock import Lock
from ps.journal.recovery import recover
from ps.journal.role import read_role
from ps.routing import Routing
from tests.ps.driving import keys_of, push
from tests.ps.journal.following import Follower, follow, until
from tests.ps.journal.playing import NUM_BUCKETS, Play, random_calls, recovered_state, spec_of, state_of

KEYS = keys_of(*range(1, 20), num_buckets=NUM_BUCKETS)


@pytest.fixture
def pair(tmp_path):
    """A shard, and the standby that it is to fill."""
    play, follower = Play(tmp_path / "primary"), Follower(tmp_path / "standby")
    yield play, follower
    play.close()
    follower.close()


def run_some(play, rng, step, slices=6):
    play.send(*random_calls(rng, step), step=step, event_time=10 * step, client=int(rng.integers(1, 4)))
    for _ in range(rng.integers(0, slices)):
        play.shard.run_slice()


def joined(play, follower):
    def is_standby():
        play.run()
        return follower.standby.role == "standby"

    until(is_standby)


@given(seed=st.integers(0, 1 << 32), repeats=st.integers(0, 3))
@settings(max_examples=25)
def test_filled_under_updates_it_equals_the_primary(tmp_path_factory, seed, repeats):
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("pair")
    options = {"snapshot_after_bytes": 4096 if seed % 2 else 1 << 40}
    play = Play(folder / "primary", spec_of(folder / "primary", **options))
    follower = Follower(folder / "standby")
    for step in range(1, 8):
        run_some(play, rng, step)
    follower.repeats = repeats
    follow(play, follower)
    for step in range(8, 20):
        run_some(play, rng, step)
    joined(play, follower)
    for step in range(20, 24):
        run_some(play, rng, step)
    play.run()
    play.settle()
    expected = state_of(play.shard.holding)
    assert state_of(follower.standby.recovered().holding) == expected
    assert list(follower.standby.recovered().journal.group_steps) == list(play.journal.group_steps)
    last = play.journal.next_number - 1
    play.close()
    follower.close()
    # What it wrote says the same, to a process that knows nothing else.
    assert recovered_state(folder / "standby") == (last, expected)
    assert read_role(folder / "standby") == (2, "standby")


def test_filled_anew_after_a_restore(pair):
    play, follower = pair
    play.do(push(KEYS, 1.0))
    stream = follow(play, follower)
    joined(play, follower)
    follower.is_silent = True
    answer = play.restore()
    until(lambda: stream.backlog_bytes > 0)
    play.run()
    assert not answer.done()  # the standby could yet take over with what it had
    follower.is_silent = False
    answer.result(10)
    assert read_role(follower.standby._folder).role == "filling" or follower.standby.role == "standby"
    joined(play, follower)
    play.do(push(KEYS[:4], 1.0))
    assert state_of(follower.standby.recovered().holding) == state_of(play.shard.holding)


def test_alone_until_it_is_filled_then_never(pair):
    play, follower = pair
    follower.is_silent = True
    follow(play, follower)
    play.do(push(KEYS, 1.0))  # by the journal alone
    follower.is_silent = False
    joined(play, follower)
    follower.is_silent = True
    answer = play.send(push(KEYS, 1.0))
    play.run()
    with pytest.raises(TimeoutError):
        answer.result(0.3)
    follower.is_silent = False
    answer.result(5)


def test_a_standby_that_was_removed_is_not_waited_for(pair):
    play, follower = pair
    stream = follow(play, follower)
    joined(play, follower)
    follower.is_silent = True
    answer = play.send(push(KEYS, 1.0))
    play.run()
    stream.release()
    answer.result(5)
    play.do(push(KEYS, 1.0))
    assert play.journal.stream is None


def test_a_primary_that_was_replaced_acknowledges_nothing(pair):
    play, follower = pair
    follow(play, follower)
    joined(play, follower)
    play.do(push(KEYS, 1.0))
    follower.refuses = True
    answer = play.send(push(KEYS, 1.0))
    play.run()
    with pytest.raises(WrongEpochError, match="taken over"):
        answer.result(5)
    with pytest.raises(WrongEpochError, match="replaced"):
        play.journal.check_leads()
    later = play.send(push(KEYS, 1.0))
    play.run()
    with pytest.raises(WrongEpochError):
        later.result(5)


def test_without_answers_there_is_no_lease(pair):
    play, follower = pair
    stream = follow(play, follower, seconds=0.3)
    joined(play, follower)
    play.journal.check_leads()
    assert not play.journal.trouble
    follower.is_silent = True
    until(lambda: not stream.has_lease)
    with pytest.raises(WrongEpochError, match="not heard"):
        play.journal.check_leads()
    assert "beside:0" in play.journal.trouble
    follower.is_silent = False
    until(lambda: stream.has_lease)
    play.journal.check_leads()


def test_a_second_standby_after_the_first(pair, tmp_path):
    play, first = pair
    follow(play, first)
    joined(play, first)
    play.do(push(KEYS, 1.0))
    first.is_silent = True
    second = Follower(tmp_path / "second", term=3)
    answer = play.send(push(KEYS, 1.0))  # waits for the first one, and is in the way of the second
    play.run()
    follow(play, second)
    joined(play, second)
    answer.result(5)
    play.do(push(KEYS[:7], 1.0))
    assert state_of(second.standby.recovered().holding) == state_of(play.shard.holding)
    second.close()


def test_an_update_without_its_end_is_left_out_by_who_takes_over(pair):
    play, follower = pair
    play.do(push(KEYS, 1.0))
    follow(play, follower)
    joined(play, follower)
    before = state_of(follower.standby.recovered().holding)
    number = follower.standby._number
    frames = b"".join(bytes(piece) for piece in rows_without_commit(play))
    for _ in follower.standby.receive(number + 1, frames, _Ignored()):
        pass
    assert state_of(follower.standby.recovered().holding) == before


@pytest.mark.parametrize(("gap", "frames", "said"), [(2, b"", "fill it anew"), (1, bytes(64), "filled anew")])
def test_a_gap_or_damage_breaks_it(pair, gap, frames, said):
    play, follower = pair
    follow(play, follower)
    joined(play, follower)
    ignored = _Ignored()
    for _ in follower.standby.receive(follower.standby._number + gap, frames, ignored) or ():
        pass
    assert follower.standby.role == "broken"
    assert said in str(ignored.error)


def test_going_on_after_a_take_over(pair, tmp_path):
    play, follower = pair
    rng = np.random.default_rng(7)
    follow(play, follower)
    joined(play, follower)
    for step in range(1, 10):
        run_some(play, rng, step)
    play.run()
    play.settle()
    heir = Play(tmp_path / "standby", recovered=follower.standby.recovered())
    follower.standby.journal = None  # it is the heir's now
    heir.sequences = iter([100, 101])
    heir.do(push(KEYS, 1.0), step=10)
    number, state = heir.journal.next_number - 1, state_of(heir.shard.holding)
    heir.close()
    assert recovered_state(tmp_path / "standby") == (number, state)
    again = recover(tmp_path / "standby", Lock(tmp_path / "standby", takes_over=False), now=0.0)
    again.journal.close()


class _Ignored:
    error = None

    def set_result(self, result):
        pass

    def set_exception(self, error):
        self.error = error


def rows_without_commit(play):
    """The frames of an update that a primary was about to commit."""
    play.shard.holding.tables["user"].write_values(KEYS, np.ones((len(KEYS), 3), np.float32))
    frames = [pieces for pieces, is_last in play.journal.changes.frames(play.journal.next_number) if not is_last]
    return [piece for pieces in frames for piece in with_checksum(pieces)]


def test_other_options_reach_a_standby_that_was_filled_before(tmp_path):
    """It publishes what the cluster publishes when it takes over, and so does whoever reads its journal."""
    play, follower = Play(tmp_path / "primary"), Follower(tmp_path / "standby")
    play.do(push(KEYS))
    follow(play, follower)
    joined(play, follower)
    holding, answer = play.shard.holding, Future()
    other = holding.spec.model_copy(update={"deltas": DeltaOptions(directory=str(tmp_path / "deltas"), codec="fp16")})
    routing = Routing(2, holding.routing.owners, holding.routing.addresses)
    play.shard.assign(other, routing, 0, answer)
    play.run()
    answer.result(5)
    play.do(push(KEYS), epoch=2)
    play.settle()
    play.shard.outlet.close()
    assert follower.standby.recovered().holding.spec == other
    play.close()
    follower.close()
    lock = Lock(tmp_path / "standby", takes_over=False)
    assert recover(tmp_path / "standby", lock, now=0.0).holding.spec == other
    lock.close()
