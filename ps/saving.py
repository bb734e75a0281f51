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
from ps.mapping import Restored, encode_mapping, plan_restore, read_mapping
from ps.places import absolute
from ps.rounds import Connection
from ps.routing import Routing
from ps.spec import ClusterSpec
from ps.transport import Transport
from ps.wire import weir_pb2 as pb


class PendingSave:
    """A save whose cut is made. Made by `start_save`."""

    def __init__(
        self, transport: Transport, routing: Routing, spec: ClusterSpec, directory: str, number: int, seconds: float
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
                self._manifest = write_manifest(directory, spec, [reply.manifest for reply in replies])
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
    transport: Transport, routing: Routing, spec: ClusterSpec, directory: str, *, seconds: float
) -> PendingSave:
    """Have all shards mark, and begin to write. Whoever pushes has settled and waits until this returns.

    seconds: patience with each shard. Raises what a shard raises; then nothing is being saved.
    """
    directory = absolute(directory)
    number = int.from_bytes(os.urandom(7), "little") + 1
    request = pb.SaveRequest(directory=directory, cut=number, begin=True)
    control.call_all(transport, routing.addresses, "Save", [request] * routing.num_shards, seconds)
    return PendingSave(transport, routing, spec, directory, number, seconds)


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
