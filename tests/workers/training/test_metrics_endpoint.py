"""A worker's metrics, scraped over HTTP while it trains."""

import socket
import urllib.request

import pytest

from ps.errors import RequestError
from tests.workers.training.recipe import load
from workers.training.job import train
from workers.training.progress import Reporter


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def scrape(address):
    """{"name{labels}": value}."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
        lines = [line for line in page.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_counters_of_a_running_worker(tmp_path, monkeypatch):
    port = free_port()
    seen = []
    evaluation = Reporter.evaluation

    def scrape_too(self, step, epoch, loss, *rest):
        seen.append((step, epoch, loss, scrape(f"127.0.0.1:{port}")))
        evaluation(self, step, epoch, loss, *rest)

    monkeypatch.setattr(Reporter, "evaluation", scrape_too)
    client = {"staleness": 4, "cache": {"rows": 64, "max_age_steps": 2, "min_count": 1}, "drop_below": 1e-3}
    changes = {"cluster.workers.metrics_port": port, "cluster.placement": "process", "cluster.client": client}
    result = train(load(tmp_path, changes))
    (_, _, _, first), (step, epoch, loss, last) = seen
    assert (step, epoch) == (last["weir_step"], last["weir_epoch"]) == (32, 1)
    assert last["weir_loss"] == pytest.approx(loss)
    assert last["weir_samples_total"] == 2 * first["weir_samples_total"] == result["samples"]
    assert 0 < last["weir_cache_hit_rate"] < 1
    for direction in ("sent", "received"):
        name = f'weir_client_bytes_total{{direction="{direction}"}}'
        assert last[name] > first[name] > 0
    assert last['weir_client_rows_total{outcome="dropped_below"}'] == result["dropped_gradients"] > 0
    assert last['weir_client_rows_total{outcome="nonfinite"}'] == 0
    assert last["weir_client_retries_total"] >= 0
    assert last["weir_samples_per_second"] >= 0
    with pytest.raises(OSError, match="refused"):  # closed with the job
        scrape(f"127.0.0.1:{port}")


def test_a_port_in_use_is_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RequestError, match=rf"metrics cannot listen on 127\.0\.0\.1:{port}: .*choose another port"):
            train(load(tmp_path, {"cluster.workers.metrics_port": port}))
