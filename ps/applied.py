"""Which updates a table's buckets have had: the memory behind "exactly once". Single-threaded; time is an argument.

For each client and bucket: the highest sequence applied, and a bitmap of the WINDOW sequences up to it (bit i stands
for highest - i). This is the sliding window of RFC 6479 (anti-replay of IPsec), over all buckets at once. A sequence
inside the window is known to be applied or not; one below it cannot be told and is refused. A client keeps at most
WINDOW updates unsettled, so an update that somebody still waits for is never below it.

A client that has been quiet for long is expired: its window is dropped and its id is remembered as refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ps.errors import ExpiredError
from ps.psfunc import BucketNumbers

WINDOW = 64
MAX_REMEMBERED_EXPIRED = 1 << 20  # ids, oldest forgotten first
ENTRY = np.dtype([("client", "<u8"), ("highest", "<u8"), ("bits", "<u8")])


@dataclass
class _Client:
    highest: NDArray[np.int64]  # [num_buckets]; 0 = none
    bits: NDArray[np.uint64]  # [num_buckets]
    last_seen: float


class Applied:
    """What was applied to the buckets of one table."""

    def __init__(self, num_buckets: int) -> None:
        self._num_buckets = num_buckets
        self._clients: dict[int, _Client] = {}
        self._expired: dict[int, None] = {}

    @property
    def num_clients(self) -> int:
        return len(self._clients)

    def knows(self, client: int) -> bool:
        """Whether it has a window here."""
        return client in self._clients

    def fresh(self, client: int, sequence: int, buckets: BucketNumbers) -> NDArray[np.bool_]:
        """bool [k]: the buckets that have not had this update. Raises ExpiredError when that can no longer be told."""
        if client in self._expired:
            raise ExpiredError(f"client {client:016x} was quiet for too long and has expired; open a new client")
        known = self._clients.get(client)
        if known is None:
            return np.ones(len(buckets), np.bool_)
        age = known.highest[buckets] - sequence
        if len(age) and int(age.max()) >= WINDOW:
            late = int(buckets[int(age.argmax())])
            raise ExpiredError(
                f"update {sequence} of client {client:016x} is {int(age.max())} behind the newest of bucket {late}; "
                f"a client may have at most {WINDOW} updates unsettled"
            )
        shift = np.maximum(age, 0).astype(np.uint64)
        fresh: NDArray[np.bool_] = (age < 0) | (((known.bits[buckets] >> shift) & np.uint64(1)) == 0)
        return fresh

    def mark(self, client: int, sequence: int, buckets: BucketNumbers, *, now: float) -> None:
        """Remember the update as applied to these buckets (unique). One that took so long that a bucket's window has
        passed it is not remembered there: sent again it is refused.
        """
        known = self._clients.get(client)
        if known is None:
            zeros = np.zeros(self._num_buckets, np.int64)
            known = self._clients[client] = _Client(zeros, zeros.astype(np.uint64), now)
        known.last_seen = now
        age = known.highest[buckets] - sequence
        ahead = np.maximum(-age, 0).astype(np.uint64)
        # A shift by 64 is undefined, so a jump past the window is a case of its own.
        kept = np.where(ahead < WINDOW, known.bits[buckets] << np.minimum(ahead, np.uint64(WINDOW - 1)), np.uint64(0))
        own = np.where(age < WINDOW, np.uint64(1) << np.clip(age, 0, WINDOW - 1).astype(np.uint64), np.uint64(0))
        known.bits[buckets] = kept | own
        known.highest[buckets] = np.maximum(known.highest[buckets], sequence)

    def expire(self, *, now: float, max_clients: int, max_idle_seconds: float) -> list[int]:
        """Drop the windows of clients quiet for longer, and the longest quiet ones beyond `max_clients`. Returns their
        ids.
        """
        by_quiet = sorted(self._clients, key=lambda client: self._clients[client].last_seen)
        excess = max(0, len(by_quiet) - max_clients)
        gone = [
            client
            for place, client in enumerate(by_quiet)
            if place < excess or now - self._clients[client].last_seen > max_idle_seconds
        ]
        self.drop_clients(gone)
        return gone

    def drop_clients(self, ids: list[int]) -> None:
        """Drop the windows of these clients and refuse them from now on."""
        for client in ids:
            self._clients.pop(client, None)
            self._remember_expired(client)

    def _remember_expired(self, client: int) -> None:
        self._expired[client] = None
        while len(self._expired) > MAX_REMEMBERED_EXPIRED:
            del self._expired[next(iter(self._expired))]

    def copy(self) -> Applied:
        """What it is now."""
        other = Applied(self._num_buckets)
        for client, known in self._clients.items():
            other._clients[client] = _Client(known.highest.copy(), known.bits.copy(), known.last_seen)
        return other

    def entries(self, bucket: int) -> bytes:
        """What a bucket has had, as packed ENTRY records, by client id: they are saved and moved with the bucket's
        rows.
        """
        present = sorted((c, k) for c, k in self._clients.items() if k.highest[bucket])
        packed = np.array([(c, k.highest[bucket], k.bits[bucket]) for c, k in present], ENTRY)
        return packed.tobytes()

    def load(self, bucket: int, entries: bytes, *, now: float) -> None:
        """Replace what a bucket has had."""
        self.drop_bucket(bucket)
        for client, highest, bits in np.frombuffer(entries, ENTRY).tolist():
            known = self._clients.get(client)
            if known is None:
                zeros = np.zeros(self._num_buckets, np.int64)
                known = self._clients[client] = _Client(zeros, zeros.astype(np.uint64), now)
            known.highest[bucket], known.bits[bucket] = highest, bits

    def drop_bucket(self, bucket: int) -> None:
        """Forget a bucket, because another shard owns it now."""
        for known in self._clients.values():
            known.highest[bucket], known.bits[bucket] = 0, 0

    def expired_ids(self) -> list[int]:
        """Ids that are refused, oldest first; saved with a checkpoint."""
        return list(self._expired)

    def load_expired(self, ids: list[int]) -> None:
        """Refuse these ids as well."""
        for client in ids:
            self._remember_expired(client)

    def clear(self) -> None:
        """Forget everything."""
        self._clients.clear()
        self._expired.clear()
