"""The end of a server, and too much load: what was accepted is answered, what cannot be is told so at once."""

import collections
import json
import threading
import time

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ps.errors import OverloadedError, UnavailableError
from tests.workers.serving.processes import ServerProcess, wait_for
from workers.serving.client import PredictionClient, encode
from workers.serving.errors import DrainingError

REQUEST = encode({"tags": "", "price": 0.0}, {"user": ["0", "7", "19"] * 100})


class Load:
    """Clients that ask one request after another. outcomes: how many ended how; wrong: what should not happen."""

    def __init__(self, server, *, clients, request=REQUEST, allowed=(), post=None):
        self.outcomes, self.wrong, self._ends = collections.Counter(), [], threading.Event()
        self._allowed, self._server, self._post = allowed, server, post
        self._request, self._lock = request, threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self):
        with PredictionClient(self._server.address) as client:
            while not self._ends.is_set():
                try:
                    assert np.isfinite(client.send(self._request, 20).scores).all()
                    outcome = "answered"
                except self._allowed as error:
                    outcome = type(error).__name__
                    time.sleep(0.01)
                except Exception as error:
                    self.wrong.append(repr(error))
                    outcome = "wrong"
                with self._lock:
                    self.outcomes[outcome] += 1

    def stop(self):
        self._ends.set()
        for thread in self._threads:
            thread.join()


def test_sigterm_under_load_loses_no_accepted_request(bundle):
    server = ServerProcess(bundle.directory, "--set", "drain_delay_seconds=0.5")
    with server:
        load = Load(server, clients=6, allowed=(DrainingError, UnavailableError))
        wait_for(lambda: load.outcomes["answered"] > 100)
        server.process.terminate()
        _, _, body = wait_for(lambda: (found := server.call("/readyz"))[0] == 503 and found)
        assert json.loads(body)["ready"] is False
        with grpc.insecure_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
        answered = load.outcomes["answered"]
        wait_for(lambda: load.outcomes["answered"] > answered)  # it goes on while balancers look elsewhere
        assert server.process.wait(30) == 0
        load.stop()
    assert not load.wrong
    assert load.outcomes["UnavailableError"] + load.outcomes["DrainingError"] > 0
    assert "Traceback" not in server.said


def test_overload_is_refused_at_once_and_then_over(bundle):
    large = encode({"tags": "", "price": 0.0}, {"user": ["0", "7", "19"] * 3000})
    with ServerProcess(bundle.directory, "--queue", "1") as server:
        load = Load(server, clients=8, request=large, allowed=(OverloadedError,))
        wait_for(lambda: load.outcomes["OverloadedError"] > 20 and load.outcomes["answered"] > 20)

        def shed():
            status, headers, body = server.call(
                "/v1/predict", {"shared": {"tags": "", "price": 0}, "candidates": {"user": ["0"]}}
            )
            return status == 503 and (headers, json.loads(body)["error"])

        headers, error = wait_for(shed)
        assert headers["retry-after"] == "1"
        assert error["status"] == "RESOURCE_EXHAUSTED"
        load.stop()
        assert not load.wrong
        assert server.metrics()['weir_serving_shed_total{reason="queue"}'] > 20
        with PredictionClient(server.address) as client:
            assert len(client.send(large).scores) == 9000
