"""Stages' seconds against the histogram of prometheus_client itself."""

import random
import re
import threading

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from workers.serving.stages import _AT_ONCE, _BOUNDS, StageSeconds

STAGES = ("rows", "tower")


def shown(registry):
    """Each sample's value, by its name and labels."""
    lines = [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_counts_are_those_of_a_histogram():
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    stages = StageSeconds("seconds", "of stages", STAGES)
    ours.register(stages)
    histogram = Histogram("seconds", "of stages", ["stage"], buckets=_BOUNDS, registry=theirs)
    for stage in STAGES:
        histogram.labels(stage)
    assert shown(ours) == shown(theirs)
    rng = random.Random(1)
    for number in range(2 * _AT_ONCE + 100):
        seconds = rng.choice([rng.expovariate(100), rng.expovariate(0.5), *_BOUNDS])  # bounds belong to what is below
        stages.observe("rows", seconds)
        histogram.labels("rows").observe(seconds)
        if number in (0, 77, 5000):
            assert shown(ours).keys() == shown(theirs).keys()
    found, expected = shown(ours), shown(theirs)
    for name, value in expected.items():
        assert abs(found[name] - value) <= 1e-9 * value, name
    assert [line for line in generate_latest(ours).decode().splitlines() if re.match("# TYPE", line)] == [
        "# TYPE seconds histogram"
    ]


def test_nothing_is_lost_or_doubled_between_threads():
    stages = StageSeconds("seconds", "of stages", STAGES)

    def observe():
        for _ in range(20_000):
            stages.observe("tower", 0.25)

    threads = [threading.Thread(target=observe) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        list(stages.collect())
    registry = CollectorRegistry()
    registry.register(stages)
    assert shown(registry)['seconds_count{stage="tower"}'] == 80_000
    assert shown(registry)['seconds_sum{stage="tower"}'] == 20_000.0
