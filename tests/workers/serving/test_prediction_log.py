"""The prediction log: the same requests everywhere, bounded files, and never in the way."""

import json
import threading

import numpy as np
import pytest

from tests.workers.serving.processes import wait_for
from workers.serving.client import encode
from workers.serving.options import LogOptions
from workers.serving.prediction_log import PredictionLog, RotatingFiles, is_chosen
from workers.serving.predictor import Prediction
from workers.serving.request import read_message


def prediction(request_id="r"):
    request = read_message(encode({"tags": ["x"]}, {"user": ["0", "7"]}, request_id=request_id), 10)
    scores = np.array([[0.25], [0.5]], np.float32)
    return Prediction(request, scores, ("click",), "v1", 1.0, 0, 0.0, 0.0, 0.0, 0.0)


def test_sampling_depends_on_the_request_id_alone():
    ids = [f"request-{i}" for i in range(20_000)]
    chosen = {name for name in ids if is_chosen(name, 0.1)}
    assert len(chosen) == pytest.approx(2000, abs=200)
    assert chosen == {name for name in ids if is_chosen(name, 0.1)}
    assert {name for name in ids if is_chosen(name, 0.05)} < chosen
    assert all(is_chosen(name, 1.0) for name in ids)


def test_files_rotate_and_the_oldest_go(tmp_path):
    files = RotatingFiles(LogOptions(directory=str(tmp_path), rate=1, file_bytes=1 << 16, files=3))
    for number in range(10):
        files.append(json.dumps({"number": number, "filler": "x" * 40_000}).encode())
    files.close()
    paths = sorted(tmp_path.iterdir())
    assert [json.loads(path.read_text())["number"] for path in paths] == [7, 8, 9]
    assert all(path.stat().st_size <= 1 << 16 for path in paths)


class Stuck:
    def __init__(self):
        self.may_go, self.records, self.error = threading.Event(), [], None

    def append(self, record):
        assert self.may_go.wait(20)
        if self.error is not None:
            raise self.error
        self.records.append(json.loads(record))

    def close(self):
        pass


def test_a_stream_that_is_stuck_costs_records_and_no_time():
    stream = Stuck()
    log = PredictionLog(stream, 1.0, max_waiting=4)
    for number in range(20):
        log.offer(prediction(f"r{number}"))
    assert 15 <= log.num_dropped <= 16  # one may be in the thread's hands
    stream.may_go.set()
    log.close()
    assert log.num_written == len(stream.records) == 20 - log.num_dropped
    assert stream.records[0]["scores"] == {"click": [0.25, 0.5]}
    assert stream.records[0]["candidates"] == {"user": ["0", "7"]}


def test_a_full_disk_drops_records_and_then_goes_on():
    stream = Stuck()
    stream.may_go.set()
    stream.error = OSError(28, "No space left on device")
    log = PredictionLog(stream, 1.0)
    log.offer(prediction())
    wait_for(lambda: log.num_dropped == 1)
    stream.error = None
    log.offer(prediction())
    log.close()
    assert (log.num_written, log.num_dropped) == (1, 1)
