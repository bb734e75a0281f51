"""A shard process: `python -m ps.process [--host H] [--port P] [--metrics-port P] [--journal DIR [--pair]]
[--security JSON]`.

Prints one line of JSON when it listens, {"port", "address", "metrics_address", "pid"}, and runs until SIGTERM or
Ctrl-C. With
--stop-at-eof it ends as well when its standard input closes, so that it does not outlive whoever started it.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from pydantic import ValidationError

from ps.errors import RequestError, WeirError
from ps.member import Member
from ps.opening import open_shard
from ps.security import SecurityOptions
from ps.server import ShardServer


def main(arguments: list[str] | None = None) -> int:
    """Run a shard. Returns the exit status: 0 ended by a signal, 2 a mistake in the request."""
    parser = argparse.ArgumentParser(prog="python -m ps.process", description="A shard of a parameter server.")
    parser.add_argument("--host", default="127.0.0.1", help="interface to listen on (default: loopback only)")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--metrics-port", type=int, default=0, help="of the Prometheus endpoint; 0 takes a free one")
    parser.add_argument("--journal", type=Path, help="folder of the shard's journal; what it has is recovered")
    parser.add_argument("--pair", action="store_true", help="be one of a pair of primary and standby, as it is told")
    parser.add_argument("--fresh", action="store_true", help="drop what the journal has")
    parser.add_argument("--takes-over", action="store_true", help="end a process that still has the journal")
    parser.add_argument("--stop-at-eof", action="store_true", help="end when standard input closes")
    parser.add_argument("--security", default="{}", help="JSON of ps.security.SecurityOptions: paths and limits")
    options = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        opening = {"takes_over": options.takes_over, "fresh": options.fresh}
        security, is_paired = _read_security(options.security), options.pair
        if is_paired and options.journal is None:
            raise RequestError("--pair needs --journal")
        server = ShardServer(
            host=options.host,
            port=options.port,
            metrics_port=options.metrics_port,
            shard=lambda observe: open_shard(None if is_paired else options.journal, observe=observe, **opening),
            member=(lambda work: Member(work, options.journal, security=security, **opening)) if is_paired else None,
            security=security,
        )
    except WeirError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    gc.freeze()  # of numba alone there are 200,000 objects: a full collection would hold a request up for 0.1 s
    # A pipe and not an Event: its lock could be held by the very thread that the signal interrupts.
    until_end, end = os.pipe()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.write(end, b"."))
    if options.stop_at_eof:
        threading.Thread(target=_watch_stdin, args=(end,), daemon=True).start()
    where = {
        "port": server.port,
        "address": server.address,
        "metrics_address": server.metrics_address,
        "pid": os.getpid(),
    }
    print(json.dumps(where), flush=True)
    os.read(until_end, 1)
    server.stop()
    return 0


def _read_security(text: str) -> SecurityOptions:
    try:
        return SecurityOptions.model_validate_json(text)
    except ValidationError as error:
        raise RequestError(f"--security {text}: {error}") from error


def _watch_stdin(end: int) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.write(end, b".")


if __name__ == "__main__":
    sys.exit(main())
