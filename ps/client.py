"""The client: pull, push, update, get, delete on sharded tables. Thread-safe; one identity per object.

Raw keys may come in any order and with duplicates; gradients of duplicates are summed. For a batch that is pulled and
then pushed, `prepare` does that work once. Which pulls see which pushes: docs/client.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ps import control
from ps.cache import HotCache
from ps.errors import RequestError
from ps.lookup import Lookup, check_payload, check_psfunc, check_rows, count_shown, learning_rates, prepare, table_spec
from ps.mapping import Restored
from ps.marking import mark
from ps.messages import READ, Execute, Identity, Pull
from ps.options import ClientOptions
from ps.psfunc import Counts, Kind, Psfunc
from ps.psfuncs import Clear, Delete, Evict
from ps.pusher import Pusher
from ps.rounds import Connection, Directory, Future
from ps.routing import Routing
from ps.saving import MAX_INCREMENTS, PendingSave, PlannedRestore, start_save
from ps.spec import ClusterSpec
from ps.storage.unique import sum_by_key
from ps.tally import Tally
from ps.transport import Transport
from ps.types import Floats, Gradients, Keys, Rows
from ps.unsettled import Unsettled
from ps.wire.arrays import DTYPES, ITEM_BYTES

Rates: TypeAlias = (
    float | Mapping[str, float]
)  # for all segments, or by segment; where none is given the optimizer's own


class Client:
    """A worker's line to a cluster. Close it, or use it as a context manager."""

    def __init__(
        self,
        spec: ClusterSpec,
        transport: Transport,
        directory: Directory,
        routing: Routing,
        options: ClientOptions | None = None,
        *,
        cluster: str = "local",
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """on_close: ends what this client alone uses, such as shards of its own; called last by `close`."""
        self.spec = spec
        self.options = options or ClientOptions()
        self._tally = Tally()
        self._connection = Connection(
            cluster,
            transport,
            directory,
            routing=routing,
            retry=self.options.retry,
            tally=self._tally,
            share_from_bytes=self.options.share_from_bytes,
            recovery_seconds=spec.durability.recovery_seconds if spec.durability.keeps_journal else 0.0,
        )
        self._unsettled = Unsettled(self._connection)
        self._caches: dict[str, HotCache] = {}
        self._cache_lock = threading.Lock()
        cache = self.options.cache
        if cache is not None:
            self._caches = {
                name: HotCache(cache.rows, table.width, max_age_steps=cache.max_age_steps, min_count=cache.min_count)
                for name, table in spec.tables.items()
            }
        self._pusher = Pusher(spec, self.options, self._unsettled, self._tally, self._caches)
        self._on_close = on_close
        self._closed = False
        self._saving: PendingSave | None = None

    @property
    def routing(self) -> Routing:
        """The newest routing that this client knows."""
        return self._connection.routing

    @property
    def cluster(self) -> str:
        """The cluster's name."""
        return self._connection.cluster

    # One table, raw keys.

    def pull(self, table: str, keys: Keys) -> Rows:
        """float32 [n, width]: the row of each key, uint64 [n]. A missing row reads as its initial value; none is
        created.
        """
        lookup = self.prepare({table: keys})
        rows: Rows = self.start_pull(lookup).wait()[table][lookup.inverse[table]]
        return rows

    def push(
        self,
        table: str,
        keys: Keys,
        gradients: Gradients,
        *,
        step: int,
        learning_rate: Rates | None = None,
        shows: Floats | None = None,
        clicks: Floats | None = None,
        event_time: float | None = None,
    ) -> Future[Counts]:
        """Send gradients, float32 [n, width], of keys, uint64 [n]; those of duplicates are summed.

        shows, clicks: float32 [n], for a table that wants them; default: each key was shown once, not clicked.
        event_time: seconds since 1970; default: now. Raises RequestError for a wrong shape, NonFiniteError for a NaN or
        an infinity unless `on_nonfinite: skip_row`.
        """
        lookup = self.prepare({table: keys})
        rows = check_rows(self.spec, table, gradients, len(lookup.inverse[table]))
        rates = learning_rates(self.spec, table, learning_rate)
        counts = count_shown(self.spec, table, lookup, shows, clicks)
        self._begin()
        sums = sum_by_key(rows, lookup.inverse[table], len(lookup.keys[table]))
        return self._pusher.push(
            lookup,
            {table: sums},
            {} if counts is None else {table: counts},
            step=step,
            event_time=self._event_time(event_time),
            rates={table: rates},
            result=lambda counts: counts[table],
        )

    def update(
        self,
        table: str,
        psfunc: Psfunc,
        keys: Keys | None = None,
        payload: Rows | None = None,
        *,
        step: int = 0,
        learning_rate: Rates | None = None,
        event_time: float | None = None,
    ) -> Any:
        """Run an update psfunc on keys, or on all rows, after all own pushes, and return its merged result.

        payload: float32 [n, w], a row for each key, which then must be unique. event_time: as of `push`.
        """
        lookup = self._check_execute(table, psfunc, "update", keys, payload is not None)
        rows = None if lookup is None or payload is None else check_payload(self.spec, table, psfunc, lookup, payload)
        rates = learning_rates(self.spec, table, learning_rate) if psfunc.takes_learning_rates else []

        def make(identity: Identity) -> Execute:
            return Execute(table, psfunc, identity, lookup, rows, rates)

        self._unsettled.block()  # messages on their way together may arrive in either order
        when = self._event_time(event_time)
        result = self._unsettled.start(step, make, Execute.merge, event_time=when).wait()
        self._forget_cached(table)
        return result

    def get(self, table: str, psfunc: Psfunc, keys: Keys | None = None) -> Any:
        """Run a get psfunc on keys, or on all rows, and return its merged result."""
        lookup = self._check_execute(table, psfunc, "get", keys, False)
        self._before_read()
        work = Execute(table, psfunc, READ, lookup)
        result = self._connection.start(work, work.merge).wait()
        return result[lookup.inverse[table]] if psfunc.gives_rows and lookup is not None else result

    def delete(self, table: str, keys: Keys) -> Counts:
        """Delete the rows of keys; `applied` counts those that existed."""
        counts: Counts = self.update(table, Delete(), keys)
        return counts

    def evict(self, table: str, *, event_time: float | None = None) -> Counts:
        """Evict the rows that the table's `eviction` names at `event_time` (as of `push`); `applied` counts them.

        Waits for the end; shards go on answering meanwhile.
        """
        counts: Counts = self.update(table, Evict(), event_time=event_time)
        return counts

    def clear(self, table: str) -> Counts:
        """Delete all rows of a table; `applied` counts them."""
        counts: Counts = self.update(table, Clear())
        return counts

    # Batches: several tables in one message a shard.

    def prepare(self, keys: Mapping[str, Keys]) -> Lookup:
        """Distinct keys of a batch by table, grouped for the shards. Raises RequestError for an unknown table or
        dtype.
        """
        return prepare(self.spec, keys)

    def start_pull(self, lookup: Lookup, *, fresh: bool = False) -> Future[dict[str, Rows]]:
        """Rows, float32 [u, width], of lookup.keys by table. fresh: pass by the hot-key cache."""
        self._before_read()
        widths = {table: self.spec.tables[table].width for table in lookup.keys}
        out = {table: np.empty((len(keys), widths[table]), np.float32) for table, keys in lookup.keys.items()}
        missing: dict[str, NDArray[np.int64]] = {}
        stamps: dict[str, int] = {}
        dtype = DTYPES[self.options.wire]
        for table, keys in lookup.keys.items():
            if table not in self._caches or fresh:
                continue
            with self._cache_lock:
                missing[table], stamps[table] = self._caches[table].read(keys, out[table])
            hits = len(keys) - len(missing[table])
            saved = hits * (8 + ITEM_BYTES[dtype] * widths[table])
            self._tally.add(cache_lookups=len(keys), cache_hits=hits, bytes_saved=saved)

        def finish() -> dict[str, Rows]:
            with self._cache_lock:
                for table, stamp in stamps.items():
                    self._caches[table].admit(lookup.keys[table], out[table], missing[table], stamp)
            return out

        self._tally.add(pulls=1)
        return self._connection.start(Pull(lookup, out, missing, dtype), finish)

    def start_push(
        self,
        lookup: Lookup,
        gradients: Mapping[str, Gradients],
        *,
        step: int,
        learning_rates: Mapping[str, Rates] | None = None,
        clicks: Mapping[str, Floats] | None = None,
        event_time: float | None = None,
    ) -> Future[dict[str, Counts]]:
        """Send gradients, float32 [u, width] by table, of lookup.keys. A table without gradients is left out.

        clicks: float32 [n] by table, of each raw key of the lookup; tables that want none are passed over. Shows are
        how often a key stands in the batch. event_time: as of `push`.
        """
        rows, rates, shown = {}, {}, {}
        for table, given in gradients.items():
            table_spec(self.spec, table)
            if table not in lookup.keys:
                raise RequestError(f"gradients of table {table!r}, whose keys are not in the lookup")
            rows[table] = check_rows(self.spec, table, given, len(lookup.keys[table]))
            rates[table] = _learning_rates(self.spec, table, (learning_rates or {}).get(table))
            if self.spec.tables[table].wants_counts:
                counts = count_shown(self.spec, table, lookup, None, (clicks or {}).get(table))
                assert counts is not None
                shown[table] = counts
        self._begin()
        when = self._event_time(event_time)
        return self._pusher.push(lookup, rows, shown, step=step, event_time=when, rates=rates, result=dict)

    def settle(self, staleness: int) -> None:
        """Wait until at most `staleness` own pushes are unacknowledged (-1: do not wait), and raise what failed.

        With a cache its greatest age is taken off: a cached row may be that many steps old already.
        """
        if self.options.cache is not None and staleness > 0:
            staleness = max(0, staleness - self.options.cache.max_age_steps)
        if staleness >= 0:
            self._unsettled.block(staleness)
        self._begin()

    def flush(self) -> None:
        """Send what is held back, wait for every own push, and raise what failed."""
        self._pusher.release()
        self.settle(0)

    # The whole cluster.

    def save(self, directory: str, *, since: str | None = None, tracks: bool = False) -> None:
        """`start_save`, and wait for its end."""
        self.start_save(directory, since=since, tracks=tracks).wait()

    def start_save(
        self, directory: str, *, since: str | None = None, tracks: bool = False, max_increments: int = MAX_INCREMENTS
    ) -> PendingSave:
        """Write the rows of all shards, as they are now, under `directory`, which all of them must reach; the manifest
        comes last. Returns when the instant is marked; `wait` of the result when the checkpoint is complete.

        Own pushes are settled first. Where several clients push, all settle, and none pushes until this returns. A save
        that has not ended is waited for. since: the folder of a save before; only what has changed since is written
        where that is known, and `directory` needs it from then on (docs/checkpoints.md). tracks: remember what changes
        from here on, so that the next save can be since this one; implied by `since`.
        """
        self.flush()
        self._finish_save()
        self._saving = start_save(
            *(self._connection, self.spec, directory, since, tracks, max_increments),
            seconds=self.options.retry.control_seconds,
        )
        return self._saving

    def _finish_save(self) -> None:
        saving, self._saving = self._saving, None
        if saving is not None and not saving.is_told:
            saving.wait()

    def restore(
        self, directory: str, *, mapping: Mapping[str, Any] | None = None, event_time: float | None = None
    ) -> Restored:
        """Bring all shards, those that lost their rows too, to the checkpoint in `directory`, of any number of shards.

        Tables and segments match by name; mapping says where they do not (ps/mapping.py). event_time: as of `push`, for
        rows that begin to keep that of their last one. Own pushes that failed or were held back are forgotten. No other
        client may be active meanwhile. Raises RequestError for what does not fit, before anything has changed.
        """
        if self._closed:
            raise RequestError("the client is closed; open a new one")
        planned = PlannedRestore(self.spec, directory, mapping or {}, self._event_time(event_time))
        self._unsettled.forget()
        self._pusher.forget()
        restored = planned.run(self._connection, seconds=self.options.retry.control_seconds)
        for table in self.spec.tables:
            self._forget_cached(table)
        return restored

    def mark(self, version: str, *, step: int, data_time: float) -> dict[int, int]:
        """Publish all own pushes and what else has changed, then a version's marker; by partition the offset of its
        batch (docs/deltas.md). Raises RequestError where the cluster publishes no deltas.
        """
        self.flush()
        return mark(self._connection, version, step, data_time, seconds=self.options.retry.control_seconds)

    def stats(self) -> dict[str, float]:
        """Counts since the client was made: rounds, bytes on the wire, retries, the cache, rows that were not
        applied.
        """
        return self._tally.read()

    def describe(self) -> list[dict[str, Any]]:
        """Each shard's own account: tables with rows and bytes, queue_depth, uptime_seconds.

        Raises UnavailableError when one does not answer.
        """
        return control.describe(self._connection.transport, self._connection.newest_routing().addresses)

    def close(self) -> None:
        """Flush, raise what failed, and give back connections and whatever this client started."""
        if self._closed:
            return
        try:
            self.flush()
            self._finish_save()
        finally:
            self._closed = True
            self._connection.close()
            if self._on_close is not None:
                self._on_close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception:
            if error is None:  # else the error of the block is the one to show
                raise

    def _event_time(self, given: float | None) -> int:
        """Whole seconds. Raises RequestError for what is no time."""
        seconds = time.time() if given is None else given
        if not 0 <= seconds < 1 << 32:
            raise RequestError(f"event_time is {seconds}; it must be seconds since 1970, below 2^32")
        return int(seconds)

    def _begin(self) -> None:
        if self._closed:
            raise RequestError("the client is closed; open a new one")
        self._unsettled.collect()

    def _before_read(self) -> None:
        """At staleness 0 a read sees every own push."""
        if self.options.staleness == 0:
            self._unsettled.block()
        self._begin()

    def _check_execute(
        self, table: str, psfunc: Psfunc, kind: Kind, keys: Keys | None, has_payload: bool
    ) -> Lookup | None:
        check_psfunc(self.spec, table, psfunc, kind, has_keys=keys is not None, has_payload=has_payload)
        self._begin()
        return None if keys is None else self.prepare({table: keys})

    def _forget_cached(self, table: str) -> None:
        if table in self._caches:
            with self._cache_lock:
                self._caches[table].clear()


_learning_rates = learning_rates  # `start_push` has an argument of that name
