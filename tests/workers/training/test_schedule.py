"""Patience, learning-rate drops, the end; and that a saved schedule goes on as if nothing had happened."""

from workers.training.schedule import Schedule


def observed(schedule, values):
    return [schedule.observe(value, step) for step, value in enumerate(values)]


def test_ends_after_patience_stalls_in_a_row():
    schedule = Schedule(maximize=True, patience=2)
    assert observed(schedule, [0.5, 0.6, 0.6, 0.7, 0.69]) == [True, True, False, True, False]
    assert not schedule.finished
    assert not schedule.observe(0.68, 9)
    assert schedule.finished
    assert (schedule.best, schedule.best_step) == (0.7, 3)


def test_an_improvement_within_min_delta_is_a_stall():
    schedule = Schedule(maximize=False, patience=1, min_delta=0.01)
    assert observed(schedule, [1.0, 0.995]) == [True, False]
    assert schedule.finished


def test_drops_then_ends_where_one_more_drop_would_be_due():
    schedule = Schedule(maximize=True, patience=99, drop_factor=0.1, drop_patience=2, max_drops=2)
    scales = []
    for step, value in enumerate([0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]):
        schedule.observe(value, step)
        scales.append((round(schedule.learning_rate_scale, 6), schedule.finished))
    assert scales == [(1, False), (1, False), (0.1, False), (0.1, False), (0.01, False), (0.01, False), (0.01, True)]


def test_state_round_trip():
    values = [0.5, 0.6, 0.55, 0.7, 0.6, 0.6, 0.6]
    whole = Schedule(True, 3, drop_factor=0.5, max_drops=9)
    observed(whole, values)
    first = Schedule(True, 3, drop_factor=0.5, max_drops=9)
    observed(first, values[:3])
    second = Schedule(True, 3, drop_factor=0.5, max_drops=9)
    second.load(first.state())
    for step, value in enumerate(values[3:], start=3):
        second.observe(value, step)
    assert second == whole
