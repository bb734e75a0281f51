"""One process a folder. A shard that is started anew takes it over: the process that had it before is killed first.

    LOCK     held by flock for the life of the process; says who holds it: {pid, started, host}

`started` is the kernel's start time of the process, so that a pid that another process has by now is not killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from ps.errors import JournalError

_WAIT_SECONDS = 10.0


class Lock:
    """Held from the call to `close`, or to the end of the process."""

    NAME = "LOCK"

    def __init__(
        self, folder: Path, *, takes_over: bool, what: str = "journal", option: str = "durability.directory"
    ) -> None:
        """takes_over: kill a live holder. what: the folder is of a shard, option: names it. Raises JournalError when
        the folder cannot be taken.
        """
        self._path, self._takes_over, self._what, self._option = folder / self.NAME, takes_over, what, option
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file: BinaryIO = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")
        except OSError as error:
            raise JournalError(
                f"the {what}'s folder {folder} cannot be used: {error.strerror}; choose another"
            ) from error
        try:
            self._take()
        except BaseException:
            self._file.close()
            raise
        self._file.truncate(0)
        self._file.write(json.dumps(_identity(os.getpid())).encode())
        self._file.flush()

    def close(self) -> None:
        """Let go."""
        self._file.close()

    def _take(self) -> None:
        deadline, killed = time.monotonic() + _WAIT_SECONDS, False
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                holder = self._holder()
            is_ours = holder.get("pid") == os.getpid()
            if self._takes_over and not killed and not is_ours and holder and holder == _identity(holder["pid"]):
                with suppress(ProcessLookupError):
                    os.kill(holder["pid"], signal.SIGKILL)
                killed = True
            if is_ours or time.monotonic() > deadline or not self._takes_over:
                who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
                raise JournalError(
                    f"{self._path.parent} is the {self._what} of a shard that runs ({who}); end its cluster first, or "
                    f"name another {self._option}"
                )
            time.sleep(0.02)

    def _holder(self) -> dict[str, Any]:
        self._file.seek(0)
        with suppress(ValueError):
            found = json.loads(self._file.read(4096) or b"{}")
            if isinstance(found, dict) and found.keys() == {"pid", "started", "host"}:
                return found
        return {}


def _identity(pid: Any) -> dict[str, Any]:
    """Who a process is, or {} when there is none of that pid here."""
    try:
        fields = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError, TypeError):
        return {}
    return {"pid": int(pid), "started": int(fields[19]), "host": socket.gethostname()}
