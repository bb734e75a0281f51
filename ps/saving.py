"""A checkpoint of a whole cluster, and the way back. Every shard marks, then all write while training goes on, and the
manifest comes last.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from ps import control
from ps.checkpoint import Manifest, read_manifest, write_manifest
from ps.errors import CheckpointError, RequestError
from ps.mapping import Restored, encode_mapping, plan_restore, read_mapping
from ps.places import absolute, relative
from ps.rounds import Connection
from ps.routing import Routing
from ps.spec import ClusterSpec
from ps.transport import Transport
from ps.wire import weir_pb2 as pb

MAX_INCREMENTS = 8  # on one full checkpoint


class PendingSave:
    """A save whose cut is made. Made by `start_save`."""

    def __init__(
        self,
        transport: Transport,
        routing: Routing,
        spec: ClusterSpec,
        directory: str,
        number: int,
        base: Manifest | None,
        seconds: float,
    ) -> None:
        self.directory = directory
        self.is_told = False  # somebody has waited for it
        self._error: BaseException | None = None

        def finish() -> None:
            request = pb.SaveRequest(directory=directory, cut=number)
            try:
                replies = control.call_all(
                    transport, routing.addresses, "Save", [request] * routing.num_shards, seconds
                )
                parts = [reply.manifest for reply in replies]
                self._manifest = write_manifest(directory, spec, parts, id=number, base=base)
            except BaseException as error:  # belongs to who waits
                self._error = error

        self._thread = threading.Thread(target=finish, name="weir-save", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether `wait` would return, or raise, at once."""
        return not self._thread.is_alive()

    def wait(self) -> Manifest:
        """Block until the checkpoint is complete. Raises CheckpointError and what else went wrong; then there is
        none.
        """
        self._thread.join()
        self.is_told = True
        if self._error is not None:
            raise self._error
        return self._manifest


def start_save(
    connection: Connection,
    spec: ClusterSpec,
    directory: str,
    since: str | None,
    tracks: bool,
    max_increments: int,
    *,
    seconds: float,
) -> PendingSave:
    """Have all shards mark, and begin to write. Whoever pushes has settled and waits until this returns.

    seconds: patience with each shard. since, tracks: as Client.start_save has them. max_increments: on one full
    checkpoint; then a full one is written, as it is where increments have half its bytes together, where `since` cannot
    be read, and by shards that do not know what has changed since. Raises what a shard raises; then nothing is saved.
    """
    directory, transport, routing = absolute(directory), connection.transport, connection.newest_routing()
    number = int.from_bytes(os.urandom(7), "little") + 1
    base = None if since is None else _base(absolute(since), directory, max_increments)
    id_of_base = 0 if base is None else base.id
    tracks = tracks or since is not None
    request = pb.SaveRequest(directory=directory, cut=number, begin=True, since=id_of_base, tracks=tracks)
    control.call_all(transport, routing.addresses, "Save", [request] * routing.num_shards, seconds)
    return PendingSave(transport, routing, spec, directory, number, base, seconds)


def _base(since: str, directory: str, max_increments: int) -> Manifest | None:
    """The checkpoint to write an increment of; None where a full one is due, or that one cannot be read any more."""
    if relative(since, directory) == "./.":
        raise RequestError(f"{directory} cannot be saved since itself; save into another folder")
    try:
        found = read_manifest(since)
    except CheckpointError:
        return None
    full, *increments = found.chain
    is_due = len(increments) >= max_increments or 2 * sum(each.num_bytes for each in increments) > full.num_bytes
    return None if is_due else found


class PlannedRestore:
    """A restore that fits. Raises RequestError where it does not, CheckpointError for what is no checkpoint."""

    def __init__(self, spec: ClusterSpec, directory: str, mapping: Mapping[str, Any], event_time: int) -> None:
        self._spec, directory, sources = spec, absolute(directory), read_mapping(mapping)
        self._plan = plan_restore(read_manifest(directory).spec, spec, sources)
        self._request = pb.RestoreRequest(directory=directory, mapping=encode_mapping(sources), event_time=event_time)

    def run(self, connection: Connection, *, seconds: float) -> Restored:
        """Give every shard its place at a new epoch, have all load, commit the epoch. seconds: patience with each."""
        routing = connection.directory.propose()
        control.assign(connection.transport, self._spec, routing)
        requests = [self._request] * routing.num_shards
        replies = control.call_all(connection.transport, routing.addresses, "Restore", requests, seconds)
        connection.directory.commit(routing)
        connection.routing = routing
        return Restored(sum(int(reply.num_rows) for reply in replies), self._plan.changes)
