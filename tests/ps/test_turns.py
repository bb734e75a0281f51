"""Readers together, the writer alone, and nobody starves."""

import threading
import time

from ps.turns import Turns


def started(run):
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_readers_are_together_and_the_writer_is_alone():
    turns, both = Turns(), threading.Barrier(2)
    inside, torn = [0], []

    def read():
        for _ in range(300):
            with turns.together():
                seen = list(inside)
                if seen[0] % 2:
                    torn.append(seen)

    def meet():
        with turns.together():
            both.wait(10)  # only passes with two readers inside

    threads = [started(meet), started(meet)]
    for thread in threads:
        thread.join(10)
    assert not both.broken
    readers = [started(read) for _ in range(3)]
    for _ in range(300):
        with turns.alone():
            inside[0] += 1
            time.sleep(0)
            inside[0] += 1
    for thread in readers:
        thread.join(20)
        assert not thread.is_alive()
    assert inside == [600]
    assert torn == []


def test_a_reader_comes_in_between_two_turns_of_a_busy_writer():
    turns, end, reads = Turns(), threading.Event(), []

    def write():
        while not end.is_set():
            with turns.alone():
                time.sleep(0.005)

    def read():
        for _ in range(20):
            begun = time.perf_counter()
            with turns.together():
                reads.append(time.perf_counter() - begun)

    writer, reader = started(write), started(read)
    reader.join(20)
    end.set()
    writer.join(20)
    assert len(reads) == 20
    assert sorted(reads)[10] < 0.1


def test_a_writer_comes_in_between_readers_that_never_pause():
    turns, end = Turns(), threading.Event()

    def read():
        while not end.is_set():
            with turns.together():
                time.sleep(0.002)

    readers = [started(read) for _ in range(3)]
    for _ in range(20):
        with turns.alone():
            pass
    end.set()
    for thread in readers:
        thread.join(20)
        assert not thread.is_alive()
