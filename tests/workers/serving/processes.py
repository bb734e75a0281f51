"""`weir serve` as a process, and requests to it over HTTP."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request


class ServerProcess:
    """Ready when it is entered; ended by SIGTERM. address: of gRPC; url: of HTTP; said: what it printed on stderr."""

    def __init__(self, bundle, *options):
        command = [sys.executable, "-m", "workers.cli", "serve", str(bundle), "--json"]
        self.process = subprocess.Popen(
            [*command, "--grpc-port", "0", "--http-port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said = None

    def __enter__(self):
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.ready = json.loads(line)
        self.address, self.url = self.ready["grpc"], self.ready["http"]
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """Exit status after SIGTERM."""
        self.process.terminate()
        if self.said is None:
            _, self.said = self.process.communicate(timeout=60)
        return self.process.returncode

    def call(self, path, body=None, headers=None, context=None):
        """(status, headers, body) of a request; body: bytes, or what JSON can hold."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers or {})
        try:
            with urllib.request.urlopen(request, timeout=30, context=context) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def metrics(self):
        """Numbers by name with labels."""
        lines = self.call("/metrics")[2].decode().splitlines()
        return {name: float(value) for name, _, value in (x.rpartition(" ") for x in lines if not x.startswith("#"))}


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.01)
    return found
