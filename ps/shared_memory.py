"""Memory that a client and the shards of the same machine share, so that rows and gradients pass no socket.

The client owns buffers: anonymous files in memory (memfd), sealed so that nobody can shrink them under a reader. A
message names its buffer; the shard opens it through /proc and keeps it mapped. Elsewhere than on Linux, on another
machine or under another user there is no such path, and arrays travel inside the messages.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import socket
import sys
import threading
from collections import OrderedDict, defaultdict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ps.errors import NotSharedError, RequestError

Bytes = NDArray[np.uint8]

IS_AVAILABLE = sys.platform == "linux"
ALIGNMENT = 64  # of arrays in a buffer
_MIN_BYTES = 1 << 16
_MAX_BYTES = 1 << 30  # that a shard maps of one buffer
_MAX_IDLE_PER_SIZE = 8
_MAX_MAPPED = 64  # buffers that a shard keeps mapped; the one that was not used for longest goes
_SEALS = 0 if not IS_AVAILABLE else fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class BufferName(NamedTuple):
    """How a message names a buffer: where its owner holds it open, the random id that proves it, and its size."""

    pid: int
    descriptor: int
    id: int
    size: int


class Buffer:
    """One anonymous file, mapped. size: bytes, a power of two."""

    def __init__(self, size: int) -> None:
        number = secrets.randbits(64)
        self._descriptor = os.memfd_create(_label(number), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._descriptor, size)
            fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _SEALS)
            self._map = mmap.mmap(self._descriptor, size)
        except BaseException:
            os.close(self._descriptor)
            raise
        self.name = BufferName(os.getpid(), self._descriptor, number, size)
        self.bytes: Bytes = np.frombuffer(self._map, np.uint8)

    def close(self, *, clear: bool) -> None:
        """Let go of it. clear: give its memory back at once, though shards have it mapped, for none reads it."""
        if clear:
            self._map.madvise(mmap.MADV_REMOVE)
        os.close(self._descriptor)


class Pool:
    """A client's buffers. Thread-safe. from_bytes: arrays of a message below that are not worth sharing."""

    def __init__(self, from_bytes: int) -> None:
        self.from_bytes = from_bytes
        self._idle: dict[int, list[Buffer]] = defaultdict(list)
        self._lock = threading.Lock()
        self._closed = False

    def lease(self, num_bytes: int) -> Buffer:
        """A buffer of at least so many bytes, that nobody else has. Contents are arbitrary."""
        size = max(_MIN_BYTES, 1 << (num_bytes - 1).bit_length())
        with self._lock:
            if self._idle[size]:
                return self._idle[size].pop()
        return Buffer(size)

    def give_back(self, buffer: Buffer, *, reusable: bool) -> None:
        """reusable: no shard can still read or write it. Else its contents stay as they are, for that shard."""
        with self._lock:
            idle = self._idle[buffer.name.size]
            if reusable and not self._closed and len(idle) < _MAX_IDLE_PER_SIZE:
                idle.append(buffer)
                return
        buffer.close(clear=reusable)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            buffers = [buffer for idle in self._idle.values() for buffer in idle]
            self._idle.clear()
        for buffer in buffers:
            buffer.close(clear=True)


class Mappings:
    """A shard's view of its clients' buffers. Thread-safe."""

    def __init__(self) -> None:
        self._maps: OrderedDict[BufferName, Bytes] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, name: BufferName) -> Bytes:
        """uint8 [size], shared with the owner. Raises NotSharedError when it cannot be reached from here."""
        with self._lock:
            known = self._maps.get(name)
            if known is None:
                for old in [old for old in self._maps if not os.path.exists(f"/proc/{old.pid}/fd/{old.descriptor}")]:
                    del self._maps[old]  # its client has ended; what still reads it holds it
                known = self._maps[name] = _map(name)
                if len(self._maps) > _MAX_MAPPED:
                    self._maps.popitem(last=False)
            self._maps.move_to_end(name)
            return known


def is_this_machine(address: str) -> bool:
    """Whether host:port is an address of this machine: only those can be bound."""
    if not IS_AVAILABLE:
        return False
    host = address.rpartition(":")[0].strip("[]")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(place)
    except OSError:
        return False
    return True


def _label(number: int) -> str:
    return f"weir-{number:016x}"


def _map(name: BufferName) -> Bytes:
    """The numbers come over the wire: nothing is opened but a sealed anonymous file that carries the id."""
    if not 0 < name.size <= _MAX_BYTES:
        raise RequestError(f"a shared buffer of {name.size} bytes; the limit is {_MAX_BYTES}")
    path, expected = f"/proc/{name.pid}/fd/{name.descriptor}", f"/memfd:{_label(name.id)} (deleted)"
    try:
        if os.readlink(path) != expected:
            raise NotSharedError(f"{path} is not the buffer {_label(name.id)}")
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if (
                os.readlink(f"/proc/self/fd/{descriptor}") != expected
                or fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS
                or os.fstat(descriptor).st_size != name.size
            ):
                raise NotSharedError(f"{path} is not the sealed buffer {_label(name.id)} of {name.size} bytes")
            return np.frombuffer(mmap.mmap(descriptor, name.size), np.uint8)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise NotSharedError(f"the client's buffer {path} cannot be opened here: {error}") from error
