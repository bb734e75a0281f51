"""The client processes of a chaos run: started, killed and replaced, watched for progress, and ended."""

import os
import subprocess
import sys
import time

from tests.chaos.ledger import read_ledger

_TIMEOUTS = (30.0, 1.5, 30.0)  # seconds, of clients in turn: an impatient one has updates of unknown outcome
_PROGRESS_SECONDS, _END_SECONDS = 90.0, 150.0


class Clients:
    """The client processes. A context manager: kills what is left of them."""

    def __init__(self, folder, addresses, count, pause):
        self._folder, self._addresses, self._pause = folder, addresses, pause
        self._processes, self._num_started = {}, 0  # by number of the client
        for _ in range(count):
            self._start()

    def kill_one(self, rng):
        """SIGKILL, of any but the one that evicts; and another one."""
        number = sorted(self._processes)[int(rng.integers(1, len(self._processes)))]
        process = self._processes.pop(number)
        process.kill()
        process.wait()
        process.stdin.close()
        self._start()

    def wait_for_progress(self):
        """Until each client had an update acknowledged from now on. Raises RuntimeError for one that has not."""
        before = {number: len(read_ledger(self._path(number)).acknowledged) for number in self._processes}
        deadline = time.monotonic() + _PROGRESS_SECONDS
        while before:
            for number in list(before):
                if self._processes[number].poll() is not None:
                    raise RuntimeError(f"client {number} ended; its output is above")
                if len(read_ledger(self._path(number)).acknowledged) > before[number]:
                    del before[number]
            if time.monotonic() > deadline:
                raise RuntimeError(f"clients {sorted(before)} got nothing done for {_PROGRESS_SECONDS:g} s")
            time.sleep(0.02)

    def finish(self):
        """End them, and read what all clients were told, those that were killed too: {number: Ledger}."""
        for process in self._processes.values():
            process.stdin.close()
        for number, process in self._processes.items():
            if process.wait(_END_SECONDS) != 0:
                raise RuntimeError(f"client {number} failed; its output is above")
        return {number: read_ledger(self._path(number)) for number in range(self._num_started)}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stdin.close()

    def _start(self):
        number = self._num_started
        self._num_started += 1
        self._path(number).touch()
        options = {"number": number, "ledger": self._path(number), "pause": self._pause}
        options["timeout"] = _TIMEOUTS[number % len(_TIMEOUTS)]
        command = [sys.executable, "-m", "tests.chaos.worker", "--addresses", *self._addresses]
        command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
        self._processes[number] = subprocess.Popen(
            command, stdin=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )

    def _path(self, number):
        return self._folder / f"client-{number}"
