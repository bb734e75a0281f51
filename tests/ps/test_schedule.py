"""The order of work: as lists of events, with a clock that ends every slice after one step."""

from hypothesis import given
from hypothesis import strategies as st

from ps.schedule import Job, Schedule
from tests.ps.driving import steps


class Trace:
    """Jobs that write down each of their steps."""

    def __init__(self):
        self.schedule = Schedule(steps(), 0.5)
        self.events = []
        self.open = {}  # name -> mode, of jobs that have begun

    def add(self, name, mode, num_steps):
        def work():
            self.open[name] = mode
            for step in range(num_steps):
                self.events.append(f"{name}{step}")
                if step + 1 < num_steps:
                    yield
            return name

        def finished(result, error):
            assert (result, error) == (name, None)
            self.events.append(f"{name}.")
            del self.open[name]

        self.schedule.add(Job(mode, work(), finished))

    def run(self):
        while self.schedule.run_slice():
            pass
        return " ".join(self.events)


def trace(*jobs):
    made = Trace()
    for job in jobs:
        made.add(*job)
    return made.run()


def test_short_jobs_run_in_order_of_arrival():
    assert trace(("a", "update", 1), ("b", "read", 1), ("c", "update", 1)) == "a0 a. b0 b. c0 c."


def test_reads_overtake_a_long_update_and_updates_do_not():
    found = trace(("u", "update", 3), ("w", "update", 1), ("r", "read", 1), ("s", "read", 1))
    assert found == "u0 u1 r0 r. u2 u. w0 w. s0 s."


def test_two_long_reads_take_turns():
    assert trace(("r", "read", 3), ("s", "read", 2)) == "r0 r1 s0 r2 r. s1 s."


def test_alone_waits_for_all_before_it_and_holds_all_behind_it():
    found = trace(("u", "update", 2), ("a", "alone", 2), ("r", "read", 1), ("w", "update", 1))
    assert found == "u0 u1 u. a0 a1 a. r0 r. w0 w."


def test_a_read_does_not_slip_past_a_job_that_waits_to_be_alone():
    found = trace(("u", "update", 3), ("w", "update", 1), ("a", "alone", 1), ("r", "read", 1))
    assert found == "u0 u1 u2 u. w0 w. a0 a. r0 r."


def test_a_yielding_job_lets_updates_run_between_its_slices():
    found = trace(("e", "yielding", 4), ("u", "update", 1), ("r", "read", 1), ("w", "update", 1))
    assert found == "e0 e1 u0 u. e2 r0 r. e3 e. w0 w."


def test_a_yielding_job_stands_still_while_an_update_is_suspended():
    """A save is an update: what it writes is one cut."""
    found = trace(("e", "yielding", 3), ("s", "update", 3), ("a", "alone", 1))
    start, end = found.index("s0"), found.index("s.")
    assert "e" not in found[start:end]
    assert found.endswith("a0 a.")


def test_an_error_belongs_to_its_job():
    schedule, outcomes = Schedule(steps(), 0.5), []

    def broken():
        yield
        raise ZeroDivisionError

    def fine():
        yield
        return 7

    for work in (broken(), fine()):
        schedule.add(Job("update", work, lambda result, error: outcomes.append((result, type(error)))))
    while schedule.run_slice():
        pass
    assert outcomes == [(None, ZeroDivisionError), (7, type(None))]
    assert schedule.num_jobs == 0


jobs = st.lists(
    st.tuples(st.sampled_from(["read", "update", "yielding", "alone"]), st.integers(1, 4), st.booleans()), max_size=12
)


@given(jobs)
def test_every_job_ends_and_the_rules_hold(events):
    """Jobs arrive while others run (the flag: a slice runs in between)."""
    made = Trace()
    add = made.schedule.run_slice
    for number, (mode, num_steps, run_now) in enumerate(events):
        made.add(f"{number}_", mode, num_steps)
        if run_now:
            add()
            modes = list(made.open.values())
            assert modes.count("update") <= 1
            assert "alone" not in modes or len(modes) == 1
    made.run()
    assert made.schedule.num_jobs == 0
    ended = [int(event[:-2]) for event in made.events if event.endswith(".")]
    assert sorted(ended) == list(range(len(events)))
    writers = [number for number in ended if events[number][0] in ("update", "alone")]
    assert writers == sorted(writers)
