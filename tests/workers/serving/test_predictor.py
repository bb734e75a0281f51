"""Requests on their way: scored together, dropped when late, refused when too many, answered before the end."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from ps.errors import OverloadedError, WeirError
from tests.workers.serving.processes import wait_for
from workers.serving.client import encode
from workers.serving.errors import DrainingError, LateError, UnknownVersionError, UnscorableError
from workers.serving.predictor import Predictor
from workers.serving.request import read_message

USERS = ["0", "7", "19", "none"]


class HeldTower:
    """A tower that waits until it may run. sizes, threads: of its runs."""

    def __init__(self, tower):
        self.inputs, self._tower = tower.inputs, tower
        self.may_run, self.error = threading.Event(), None
        self.sizes, self.threads = [], []

    def run(self, feeds):
        assert self.may_run.wait(20)
        if self.error is not None:
            raise self.error
        self.threads.append(threading.get_ident())
        self.sizes.append(len(next(iter(feeds.values()))))
        return self._tower.run(feeds)


@pytest.fixture
def tower(model):
    return HeldTower(model.tower)


@pytest.fixture
def predictor(model, tower):
    made = Predictor(
        replace(model, tower=tower), capacity=3, candidate_capacity=100, batch_candidates=8, observe=lambda *_: None
    )
    yield made
    tower.may_run.set()
    made.close()


def request(users=USERS, **fields):
    return read_message(encode({"tags": "", "price": 0.0}, {"user": users}, **fields), 1000)


def ask(predictor, users=USERS, timeout=20.0, **fields):
    return predictor.submit(request(users, **fields), time.perf_counter(), timeout)


def occupy(predictor):
    """A request that is being scored, and holds the thread."""
    first = ask(predictor, ["0"])
    wait_for(lambda: predictor.queue == (0, 0))
    return first


def test_what_waits_is_scored_together_up_to_the_limit(model, predictor, tower):
    first = occupy(predictor)
    others = [ask(predictor, users) for users in (USERS, USERS[1:], USERS[:2])]
    assert predictor.queue == (3, 9)
    tower.may_run.set()
    found = [each.result(20) for each in (first, *others)]
    assert tower.sizes == [1, 7, 2]  # 4 + 3 fit into 8, the last does not
    alone = model.score([model.features.read(request())])[0][0]
    assert found[1].scores.tobytes() == alone.scores.tobytes()
    assert found[2].scores.tobytes() == alone.scores[1:].tobytes()
    assert found[1].num_unknown_keys == alone.num_unknown_keys == 1
    assert found[1].tasks == ("click",)


def test_a_lone_request_may_be_scored_by_its_own_thread(predictor, tower):
    tower.may_run.set()
    assert len(predictor.predict(request(), time.perf_counter()).scores) == 4
    assert tower.threads == [threading.get_ident()]
    tower.error = WeirError("no rows")
    with pytest.raises(WeirError, match="no rows"):
        predictor.predict(request(), time.perf_counter())
    with pytest.raises(LateError, match="the time was over"):
        predictor.predict(request(), time.perf_counter(), timeout_seconds=0.0)
    assert predictor.drain(5)


def test_who_finds_another_at_work_waits_for_it(predictor, tower):
    first = occupy(predictor)
    with ThreadPoolExecutor(1) as asking:
        second = asking.submit(predictor.predict, request(), time.perf_counter())
        wait_for(lambda: predictor.queue == (1, 4))
        assert not second.done()
        tower.may_run.set()
        assert len(first.result(20).scores) == 1
        assert len(second.result(20).scores) == 4


def test_several_runs_at_once(model, tower):
    made = Predictor(replace(model, tower=tower), capacity=3, candidate_capacity=100, batch_candidates=8, runs=2)
    try:
        first, second = occupy(made), occupy(made)
        third = ask(made)
        assert made.queue == (1, 4)
        tower.may_run.set()
        assert [len(each.result(20).scores) for each in (first, second, third)] == [1, 1, 4]
        assert sorted(tower.sizes) == [1, 1, 4]
        assert len(made.predict(request(), time.perf_counter()).scores) == 4
    finally:
        tower.may_run.set()
        made.close()
    assert made.num_runs == 4


def test_late_requests_cost_nothing(predictor, tower):
    first, late = occupy(predictor), ask(predictor, timeout=0.01)
    time.sleep(0.05)
    tower.may_run.set()
    with pytest.raises(LateError, match="the time was over"):
        late.result(20)
    assert len(first.result(20).scores) == 1
    assert (predictor.num_late, tower.sizes) == (1, [1])


def test_beyond_the_queue_requests_are_refused(predictor, tower):
    occupied, waiting = occupy(predictor), [ask(predictor) for _ in range(3)]
    with pytest.raises(OverloadedError, match="3 requests of 12 candidates wait already; back off"):
        ask(predictor)
    assert predictor.num_shed == 1
    tower.may_run.set()
    assert [len(each.result(20).scores) for each in (occupied, *waiting)] == [1, 4, 4, 4]


def test_candidates_count_too(predictor, tower):
    occupied = occupy(predictor)
    large = ask(predictor, ["0"] * 200)  # alone: let in, whatever its size
    with pytest.raises(OverloadedError, match="1 requests of 200 candidates"):
        ask(predictor)
    tower.may_run.set()
    assert len(large.result(20).scores) == 200
    assert len(occupied.result(20).scores) == 1


def test_an_answer_is_of_the_version_that_the_request_met(model, predictor, tower):
    first, second = occupy(predictor), ask(predictor)
    before = predictor.replace(replace(model, version="v2"))
    third = ask(predictor)
    tower.may_run.set()
    assert before.version == "v1"
    assert [each.result(20).version for each in (first, second, third)] == ["v1", "v1", "v2"]
    with pytest.raises(UnknownVersionError, match="'v1' is not served here; 'v2' is"):
        ask(predictor, version="v1")
    assert ask(predictor, version="v2").result(20).version == "v2"


def test_what_was_taken_is_answered_before_the_end(predictor, tower):
    first, second = occupy(predictor), ask(predictor)
    assert not predictor.drain(0.05)
    assert not predictor.is_ready
    with pytest.raises(DrainingError, match="about to end"):
        ask(predictor)
    tower.may_run.set()
    assert predictor.drain(20)
    assert first.done()
    assert second.done()


def test_a_failed_run_fails_its_requests_alone(predictor, tower):
    tower.error = WeirError("no rows")
    tower.may_run.set()
    with pytest.raises(WeirError, match="no rows"):
        ask(predictor).result(20)
    tower.error = None
    assert len(ask(predictor).result(20).scores) == 4


def test_scores_that_are_not_finite_are_refused_alone(predictor, tower):
    first = occupy(predictor)
    message = encode({"tags": ""}, {"user": ["0"], "price": np.array([1.0])})
    good = predictor.submit(read_message(message, 10), time.perf_counter(), 20)
    broken = ask(predictor)
    broken_request = predictor._queue[-1]
    broken_request.sample.dense[:] = np.nan
    tower.may_run.set()
    assert np.isfinite(good.result(20).scores).all()
    with pytest.raises(UnscorableError, match="not finite"):
        broken.result(20)
    assert len(first.result(20).scores) == 1
