"""`weir replica`: a bundle's rows, kept up with a delta stream, looked up over gRPC; until a signal ends it.

Nothing is written down: a replica that is started again takes the bundle's rows, and what the stream says since.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ps.delta_folder import DeltaFolder
from ps.delta_lines import DeltaLines
from ps.errors import RequestError
from ps.following import Follower, Source
from ps.replica_service import ReplicaServer
from ps.security import SecurityOptions
from workers.serving.bundle import read_bundle
from workers.serving.bundled_rows import load_rows
from workers.serving.options import ReplicaOptions
from workers.serving.signals import until_signal


def source_of(follow: str, security: SecurityOptions) -> Source:
    """follow: a directory of partitions, or host:port of one or more shards, with commas between. Raises RequestError
    for what is neither.
    """
    if Path(follow).is_dir():
        return DeltaFolder(follow)
    addresses = [part.strip() for part in follow.split(",")]
    if not all(host and port.isdigit() for host, _, port in (each.rpartition(":") for each in addresses)):
        raise RequestError(
            f"--follow {follow}: no such directory, and no host:port; name cluster.deltas.directory, or a shard"
        )
    return DeltaLines(addresses, security)


def serve_rows(
    directory: Path, follow: str | None, options: ReplicaOptions, ready: Callable[[dict[str, Any]], None]
) -> None:
    """Serve until SIGTERM or Ctrl-C. ready: told once where it listens, and what it serves."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    with until_signal() as end, ExitStack() as stack:
        began = time.perf_counter()
        source = None if follow is None else source_of(follow, options.security)
        bundle = read_bundle(directory)
        replica = load_rows(bundle)
        num_rows, seconds = replica.num_rows, round(time.perf_counter() - began, 3)
        follower = None
        if source is not None:
            follower = Follower(replica, source)
            stack.callback(follower.close)
        server = ReplicaServer(
            replica,
            follower,
            host=options.host,
            port=options.port,
            metrics_port=options.metrics_port,
            num_threads=options.threads,
            security=options.security,
        )
        stack.callback(server.stop)
        gc.freeze()  # of numba alone there are 200,000 objects: a full collection would hold a call up for 0.1 s
        ready(
            {
                "address": server.address,
                "metrics_address": server.metrics_address,
                "model": bundle.name,
                "version": bundle.version,
                "pid": os.getpid(),
                "rows": num_rows,
                "bytes": replica.memory_bytes,
                "seconds": seconds,
            }
        )
        os.read(end, 1)
