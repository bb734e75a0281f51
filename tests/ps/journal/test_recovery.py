"""Whatever a journal is cut down to, recovery gives the table as it was after the last whole update: rows, their order,
what was applied, and what keys gathered.
"""

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ps.errors import ExpiredError, JournalError, WeirError
from ps.journal.lock import Lock
from ps.journal.recovery import recover
from ps.journal.segments import Acknowledged, find_segments
from tests.ps.driving import keys_of, push
from tests.ps.journal.playing import NUM_BUCKETS, Play, random_calls, recovered_state, spec_of, state_of


def newest(folder):
    return folder / str(find_segments(folder)[-1])


def play_some(folder, rng, updates, **options):
    play = Play(folder, spec_of(folder, **options))
    for step in range(1, updates + 1):
        play.send(*random_calls(rng, step), step=step, event_time=10 * step, client=int(rng.integers(1, 4)))
        for _ in range(rng.integers(0, 6)):
            play.shard.run_slice()
    play.run()
    return play


@given(seed=st.integers(0, 1 << 32), cuts=st.lists(st.floats(0, 1), min_size=4, max_size=4))
@settings(max_examples=60)
def test_any_cut_recovers_to_the_same_bits(tmp_path_factory, seed, cuts):
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("journal")
    play = play_some(folder, rng, 12)
    play.settle()
    play.close()
    path = newest(folder)
    whole = path.read_bytes()
    for cut in cuts:
        length = round(cut * len(whole))
        copy = tmp_path_factory.mktemp("cut")
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        (copy / path.name).write_bytes(whole[:length])
        (copy / Acknowledged.NAME).unlink()  # nobody was told of what is cut off
        found = recovered_state(copy)
        if found is not None:
            number, state = found
            assert state == play.states[number]
    assert recovered_state(folder) == (max(play.states), state_of(play.shard.holding))


@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=25)
def test_a_crash_at_any_moment_of_snapshots_loses_nothing(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("journal")
    play = Play(folder, spec_of(folder, snapshot_after_bytes=4096))
    for step in range(1, 25):
        play.send(*random_calls(rng, step), step=step, event_time=10 * step)
        for _ in range(rng.integers(0, 8)):
            play.shard.run_slice()
        if rng.random() < 0.15:
            play.run()  # a job may be halfway
            written = play.journal.next_number - 1
            play.settle()
            copy = tmp_path_factory.mktemp("crash")
            shutil.copytree(folder, copy, dirs_exist_ok=True)
            number, state = recovered_state(copy)
            assert number == written
            assert state == play.states[number]
    play.run()
    play.settle()
    play.close()
    number, state = recovered_state(folder)
    assert state == play.states[number] == state_of(play.shard.holding)
    assert play.journal.num_snapshots > 0 or play.journal.bytes_since_snapshot < 2 * 4096


def test_going_on_after_recovery_gives_what_going_on_would_have_given(tmp_path):
    rng = np.random.default_rng(5)
    play = play_some(tmp_path / "one", rng, 10)
    play.settle()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    lock = Lock(tmp_path / "two", takes_over=False)
    other = Play(tmp_path / "two", recovered=recover(tmp_path / "two", lock, now=0.0))
    other.sequences = play.sequences
    for step in range(11, 21):
        state = rng.bit_generator.state
        sequence = next(play.sequences)
        for each in (play, other):
            rng.bit_generator.state = state
            each.sequences = iter([sequence])
            each.do(*random_calls(rng, step), step=step, event_time=10 * step)
        play.sequences = iter(range(sequence + 1, sequence + 2))
    assert state_of(play.shard.holding) == state_of(other.shard.holding)
    play.close()
    other.close()
    number, state = recovered_state(tmp_path / "two")
    assert state == other.states[number]


def test_an_update_that_is_sent_again_after_recovery_is_not_applied_again(tmp_path):
    play = Play(tmp_path)
    keys = keys_of(*range(1, 20), num_buckets=NUM_BUCKETS)
    play.do(push(keys, 1.0))
    play.close()
    again = Play(tmp_path, recovered=recover(tmp_path, Lock(tmp_path, takes_over=False), now=0.0))
    before = state_of(again.shard.holding)
    reply = again.do(push(keys, 1.0))  # the same client and sequence
    assert reply.results[0].num_skipped == len(keys)
    assert state_of(again.shard.holding) == before
    again.close()


def test_expired_clients_stay_refused(tmp_path):
    play = Play(tmp_path)
    keys = keys_of(*range(1, 20), num_buckets=NUM_BUCKETS)
    play.do(push(keys, 1.0))
    play.shard._max_clients, play.shard._expired_at = 0, -1e9
    play.run()
    play.close()
    again = Play(tmp_path, recovered=recover(tmp_path, Lock(tmp_path, takes_over=False), now=0.0))
    with pytest.raises(ExpiredError):
        again.do(push(keys, 1.0))
    again.close()


@pytest.mark.parametrize("group", [0, 1])
def test_steps_of_a_group_are_remembered(tmp_path, group):
    play = Play(tmp_path)
    keys = keys_of(*range(1, 20), num_buckets=NUM_BUCKETS)
    answers = [play.send(push(keys[:9], 1.0), group=(7, 0, 2), client=1)]
    answers.append(play.send(push(keys[:0], 1.0), group=(7, 1, 2), client=2))
    play.run()
    for answer in answers:
        answer.result(5)
    play.close()
    again = Play(tmp_path, recovered=recover(tmp_path, Lock(tmp_path, takes_over=False), now=0.0))
    before = state_of(again.shard.holding)
    again.sequences = iter([1, 2])
    # Each rank alone: the step was applied, so nobody is waited for.
    assert again.do(push(keys[:9], 1.0), group=(7, 0, 2), client=1).results[0].num_skipped == 9
    again.do(push(keys[:0], 1.0), group=(7, 1, 2), client=2)
    assert state_of(again.shard.holding) == before
    again.close()


@given(seed=st.integers(0, 1 << 32), flip=st.integers(1, 255), place=st.floats(0, 1, exclude_max=True))
@settings(max_examples=40)
def test_damage_to_acknowledged_bytes_is_refused_by_file_and_byte(tmp_path_factory, seed, flip, place):
    folder = tmp_path_factory.mktemp("journal")
    play = play_some(folder, np.random.default_rng(seed), 6)
    play.settle()
    play.close()
    path = newest(folder)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= flip
    path.write_bytes(data)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(JournalError, match=f"{path.name} at byte"):
        recovered_state(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "LOCK"} == {
        name: data for name, data in before.items() if name != "LOCK"
    }


@pytest.mark.parametrize("lost", [1, 10, 200])
def test_acknowledged_bytes_that_are_gone_are_refused(tmp_path, lost):
    play = play_some(tmp_path, np.random.default_rng(3), 6)
    play.settle()
    play.close()
    path = newest(tmp_path)
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(JournalError, match=f"{path.name}"):
        recovered_state(tmp_path)


@pytest.mark.parametrize("has_snapshot", [False, True])
def test_a_segment_that_is_gone_is_refused(tmp_path, has_snapshot):
    for number in range(4):
        found = recover(tmp_path, Lock(tmp_path, takes_over=False), now=0.0) if number else None
        play = Play(tmp_path, recovered=found)
        play.sequences = iter([number + 1])
        play.do(push(keys_of(1, 2, 3, num_buckets=NUM_BUCKETS), 1.0))
        if has_snapshot and number == 0:
            snapshot = play.journal.begin_snapshot()
            for bucket in range(NUM_BUCKETS):
                for _ in snapshot.write_bucket(bucket, play.journal.next_number):
                    pass
            snapshot.finish()
            play.settle()
        play.close()
    assert len(find_segments(tmp_path)) == 4
    for gone in find_segments(tmp_path):
        kept = (tmp_path / str(gone)).read_bytes()
        (tmp_path / str(gone)).unlink()
        with pytest.raises(WeirError, match="gone"):
            recovered_state(tmp_path)
        (tmp_path / str(gone)).write_bytes(kept)
    assert recovered_state(tmp_path) is not None


def test_what_a_process_thought_dead_writes_later_is_not_read(tmp_path):
    play = Play(tmp_path)
    play.do(push(keys_of(1, 2, 3, num_buckets=NUM_BUCKETS), 1.0))
    play.settle()
    shutil.copytree(tmp_path, tmp_path.parent / "late")
    play.close()
    old = newest(tmp_path)
    again = Play(tmp_path, recovered=recover(tmp_path, Lock(tmp_path, takes_over=False), now=0.0))
    with old.open("ab") as file:
        file.write(b"written by a zombie")
    again.close()
    number, state = recovered_state(tmp_path)
    assert state == again.states[number]
