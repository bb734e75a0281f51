"""A mistake in the data, as one line: where, what was found, what is allowed."""

from __future__ import annotations

import socket
from pathlib import Path

from ps.errors import RequestError


class DataError(RequestError):
    """A mistake in the data: a missing file or column, a value outside its type, an empty file."""


def node() -> str:
    """The name of this machine: in a cluster, data can be missing on one node only."""
    return socket.gethostname()


def missing(path: Path | str) -> DataError:
    """No such file here."""
    return DataError(f"{path}: no such file on node {node()}; set data.root to the directory that has it on every node")
