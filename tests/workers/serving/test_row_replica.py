"""`weir replica` as a process: it answers through kills and pauses, and restarts at the right offset."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from ps.errors import RequestError, UnavailableError
from ps.rows_client import RowsClient
from ps.security import SecurityOptions
from ps.serving_rows import serving_spec
from tests.chaos.cluster import freeze
from tests.ps.publishing import Publisher, keys_from
from tests.test_structure import ROOT
from tests.workers.serving.making import TRAINED, make_bundle
from workers.serving.bundle import described_files, write_manifest
from workers.serving.row_replica import source_of

ALL_KEYS = keys_from(1, 20_000)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A cluster's stream, and a bundle of what it had at first."""
    folder = tmp_path_factory.mktemp("published")
    publisher = Publisher(TRAINED, serving_spec(TRAINED, "fp32"), shards=2, folder=folder / "deltas")
    publisher.set("main", ALL_KEYS[:500])
    publisher.mark("v1", 1)
    bundle = make_bundle(folder / "bundle")
    for path in bundle.rows_directory.iterdir():
        path.unlink()
    publisher.save(bundle.rows_directory)
    offsets = {str(partition): offset for partition, offset in publisher.positions().items()}
    changes = {"files": described_files(bundle.directory), "offsets": offsets, "created": time.time()}
    changes["tables"] = {"main": bundle.manifest.tables["main"].model_copy(update={"rows": 500})}
    write_manifest(bundle.directory, bundle.manifest.model_copy(update=changes))
    yield publisher, bundle.directory
    publisher.close()


class Process:
    """`weir replica`, and a client of it."""

    def __init__(self, bundle, *arguments):
        command = [sys.executable, "-m", "workers.cli", "replica", str(bundle), "--port", "0", "--json", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True)
        line = self.process.stdout.readline()
        assert line, f"it ended with status {self.process.wait(10)}"
        self.said = json.loads(line)
        self.client = RowsClient(self.said["address"])

    def catch_up(self, positions, seconds=60.0):
        deadline = time.monotonic() + seconds
        while any(self.client.status().positions[number] < offset for number, offset in positions.items()):
            assert time.monotonic() < deadline, self.client.status()
            time.sleep(0.02)

    def pull(self, table, keys):
        found = self.client.ask(table, keys)
        return found.rows, found.num_unknown

    def end(self, number=signal.SIGTERM):
        self.client.close()
        self.process.send_signal(number)
        status = self.process.wait(20)
        self.process.stdout.close()
        return status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.end(signal.SIGKILL)


def test_a_bundle_and_what_the_stream_says_since(published):
    publisher, bundle = published
    publisher.set("main", ALL_KEYS[:1000])
    publisher.delete("main", ALL_KEYS[:100])
    publisher.mark("v2", 2)
    with Process(bundle, "--follow", str(publisher.folder)) as replica:
        assert (replica.said["rows"], replica.said["model"], replica.said["version"]) == (500, "small", "step-3")
        replica.catch_up(publisher.positions())
        publisher.assert_served_by(replica.pull)
        assert replica.pull("main", ALL_KEYS[:100])[1] == 100
        found = replica.client.ask("main", ALL_KEYS[:200])
        assert found.version == "v2"
        assert found.age_seconds < 30
        text = urllib.request.urlopen(f"http://{replica.said['metrics_address']}/metrics", timeout=5).read().decode()
        assert 'weir_replica_rows{table="main"} 900.0' in text
        assert "weir_replica_needs_bundle 0.0" in text
        assert replica.end() == 0


def test_kill_9_in_the_middle_of_a_batch_and_a_start_anew(published):
    publisher, bundle = published
    with Process(bundle, "--follow", str(publisher.folder)) as replica:
        end = threading.Event()

        def publish():
            while not end.is_set():
                publisher.set("main", ALL_KEYS)
                publisher.delete("main", ALL_KEYS[15_000:])

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            before = dict(replica.client.status().positions)
            deadline = time.monotonic() + 30
            while dict(replica.client.status().positions) == before:  # it applies
                assert time.monotonic() < deadline
            os.kill(replica.said["pid"], signal.SIGKILL)
        finally:
            end.set()
            thread.join()
        assert replica.process.wait(20) == -signal.SIGKILL
        with pytest.raises(UnavailableError):
            replica.pull("main", ALL_KEYS)
    with Process(bundle, "--follow", str(publisher.folder)) as replica:
        replica.catch_up(publisher.positions())
        publisher.assert_served_by(replica.pull)
        assert replica.client.status().tables["main"].rows == 15_000


def test_a_frozen_replica_catches_up(published):
    publisher, bundle = published
    with Process(bundle, "--follow", str(publisher.folder)) as replica:
        publisher.set("main", ALL_KEYS[:15_000])
        replica.catch_up(publisher.positions())
        freeze(replica.said["pid"])
        publisher.set("main", ALL_KEYS[:3000])
        publisher.delete("main", ALL_KEYS[10_000:])
        time.sleep(0.5)
        os.kill(replica.said["pid"], signal.SIGCONT)
        replica.catch_up(publisher.positions())
        publisher.assert_served_by(replica.pull)
        assert replica.pull("main", ALL_KEYS)[1] == len(ALL_KEYS) - 10_000


def test_without_a_stream_its_age_is_that_of_the_bundle(published):
    _, bundle = published
    with Process(bundle) as replica:
        first = replica.client.ask("main", ALL_KEYS[:600])
        assert first.num_unknown == 100
        assert first.age_seconds > 1
        assert replica.client.status().records_behind == 0


def test_a_mistake_ends_it_with_one_line(published):
    command = [sys.executable, "-m", "workers.cli", "replica", str(published[1]), "--follow", "nowhere"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert "--follow nowhere: no such directory, and no host:port; name cluster.deltas.directory" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_what_is_followed(tmp_path):
    security = SecurityOptions()
    assert type(source_of(str(tmp_path), security)).__name__ == "DeltaFolder"
    source = source_of("127.0.0.1:1, 127.0.0.1:2", security)
    assert type(source).__name__ == "DeltaLines"
    source.close()
    with pytest.raises(RequestError, match="no such directory, and no host:port"):
        source_of(str(Path(tmp_path / "missing")), security)


def test_it_loads_without_torch_ray_pyarrow_and_onnxruntime():
    check = (
        "import workers.serving.row_replica, sys;"
        "print(*sorted({'torch', 'ray', 'pyarrow', 'onnxruntime'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True, capture_output=True).stdout == b"\n"
