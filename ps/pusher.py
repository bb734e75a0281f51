"""From gradients of unique keys to a push: rows that must not be sent are left out, hot ones may be held back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ps.cache import HotCache
from ps.errors import NonFiniteError
from ps.hot import HotGradients
from ps.lookup import Lookup, sweeps
from ps.messages import Identity, Push
from ps.options import ClientOptions
from ps.psfunc import Counts
from ps.rounds import Future
from ps.spec import ClusterSpec
from ps.tally import Tally
from ps.thresholds import first_not_finite, judge
from ps.types import Floats, Gradients
from ps.unsettled import Unsettled
from ps.wire.arrays import DTYPES

_SHOWN = 2  # columns: shows, clicks
T = TypeVar("T")
Subsets = Mapping[str, NDArray[np.int64]]  # by table, ascending positions; a table without an entry: all of them


class Pusher:
    """The push side of a client."""

    def __init__(
        self,
        spec: ClusterSpec,
        options: ClientOptions,
        unsettled: Unsettled,
        tally: Tally,
        caches: Mapping[str, HotCache],
    ) -> None:
        self._spec = spec
        self._options = options
        self._unsettled = unsettled
        self._tally = tally
        self._caches = caches
        self._lock = threading.Lock()
        self._hot: dict[str, HotGradients] = {}
        self._held_step, self._held_time, self._held_rates = 0, 0, dict[str, list[float]]()
        if options.cache is not None and options.cache.aggregate_hot_gradients_steps:
            for name, table in spec.tables.items():
                self._hot[name] = HotGradients(
                    table.width + (_SHOWN if table.wants_counts else 0),
                    num_steps=options.cache.aggregate_hot_gradients_steps,
                    num_buckets=spec.num_buckets,
                )

    def push(
        self,
        lookup: Lookup,
        gradients: Mapping[str, Gradients],
        shown: Mapping[str, Floats],
        *,
        step: int,
        event_time: int,
        rates: Mapping[str, list[float]],
        result: Callable[[dict[str, Counts]], T],
    ) -> Future[T]:
        """Send checked gradients, float32 [u, width] by table, and of tables that want them shows and clicks, float32
        [u, 2]. Raises NonFiniteError before anything is sent.
        """
        subsets: dict[str, NDArray[np.int64]] = {}
        refused: dict[str, Counts] = {}
        if not self._options.is_synchronous_group:  # else the shard judges the sum over the group
            for table, rows in gradients.items():
                subset, refused[table] = self._judge(lookup, table, rows, step)
                if subset is not None:
                    subsets[table] = subset
        if self._hot:
            with self._lock:
                self._held_step, self._held_time, self._held_rates = step, event_time, self._held_rates | dict(rates)
                lookup, gradients, shown, subsets = self._hold_back(lookup, gradients, shown, subsets)
        sweeping = [table for table in gradients if sweeps(self._spec.tables[table])]
        when = {"step": step, "event_time": event_time}
        return self._send(
            lookup, gradients, shown, subsets, **when, rates=rates, sweeping=sweeping, refused=refused, result=result
        )

    def release(self) -> None:
        """Push what is held back."""
        with self._lock:
            held = {table: hot.drain() for table, hot in self._hot.items() if len(hot)}
        if held:
            lookup = Lookup({t: keys for t, (keys, _, _) in held.items()}, {}, {t: s for t, (_, s, _) in held.items()})
            rows, shown = self._apart({table: gradients for table, (_, _, gradients) in held.items()})
            when = {"step": self._held_step, "event_time": self._held_time}
            self._send(lookup, rows, shown, {}, **when, rates=self._held_rates, sweeping=[], refused={}, result=dict)

    def forget(self) -> None:
        """Drop what is held back."""
        with self._lock:
            for hot in self._hot.values():
                hot.drain()

    def _judge(self, lookup: Lookup, table: str, rows: Gradients, step: int) -> tuple[NDArray[np.int64] | None, Counts]:
        """Positions of the rows to push (None: all), and counts of the others."""
        options = self._options
        if options.on_nonfinite == "stop" and (bad := first_not_finite(rows)) >= 0:
            raise NonFiniteError(
                f"push of step {step}: the gradient of key {int(lookup.keys[table][bad])} of table {table!r} is not "
                "finite; look at the loss, or set on_nonfinite: skip_row"
            )
        if options.on_nonfinite == "stop" and not (options.drop_above or options.drop_below):
            return None, Counts()
        judged = judge(rows, drop_above=options.drop_above, drop_below=options.drop_below)
        if judged.keep is None:
            return None, Counts()
        counts = Counts(nonfinite=judged.num_nonfinite, dropped_above=judged.num_above, dropped_below=judged.num_below)
        return np.flatnonzero(judged.keep), counts

    def _hold_back(
        self, lookup: Lookup, gradients: Mapping[str, Gradients], shown: Mapping[str, Floats], subsets: Subsets
    ) -> tuple[Lookup, dict[str, Gradients], dict[str, Floats], dict[str, NDArray[np.int64]]]:
        """What to push instead: without the hot rows, or with all that they have gathered."""
        keys, starts, rows = {}, {}, {}
        for table, all_rows in gradients.items():
            if table in shown:
                all_rows = np.hstack((all_rows, shown[table]))
            chosen = subsets.get(table, np.arange(len(all_rows)))
            wanted = lookup.keys[table][chosen]
            keys[table], starts[table], rows[table] = self._hot[table].exchange(
                wanted,
                np.searchsorted(chosen, lookup.starts[table]).astype(np.int64),
                all_rows[chosen],
                self._caches[table].contains(wanted),
            )
        return Lookup(keys, {}, starts), *self._apart(rows), {}

    def _apart(self, rows: Mapping[str, Floats]) -> tuple[dict[str, Gradients], dict[str, Floats]]:
        """Gradients, and shows and clicks, that were held back side by side."""
        counted = {table for table in rows if self._spec.tables[table].wants_counts}
        gradients = {t: np.ascontiguousarray(r[:, :-_SHOWN]) if t in counted else r for t, r in rows.items()}
        return gradients, {table: np.ascontiguousarray(rows[table][:, -_SHOWN:]) for table in counted}

    def _send(
        self,
        lookup: Lookup,
        gradients: Mapping[str, Gradients],
        shown: Mapping[str, Floats],
        subsets: Subsets,
        *,
        step: int,
        event_time: int,
        rates: Mapping[str, list[float]],
        sweeping: list[str],
        refused: Mapping[str, Counts],
        result: Callable[[dict[str, Counts]], T],
    ) -> Future[T]:
        options = self._options
        group = options.group if options.is_synchronous_group else None
        drops = (options.drop_above, options.drop_below) if group is not None else (0.0, 0.0)
        dtype = DTYPES[options.wire]

        def make(identity: Identity) -> Push:
            return Push(lookup, gradients, shown, subsets, rates, sweeping, identity, dtype, group, *drops)

        def finish(push: Push) -> T:
            counts = {table: push.counts.get(table, Counts()) + refused.get(table, Counts()) for table in gradients}
            for table, each in counts.items():
                self._tally.add(
                    dropped_above=each.dropped_above,
                    dropped_below=each.dropped_below,
                    nonfinite_skipped=each.nonfinite,
                    keys_refused=each.refused,
                )
                if each.nonfinite and options.on_nonfinite == "stop":
                    raise NonFiniteError(
                        f"{push.what}: {each.nonfinite} rows of table {table!r} were left as they are, for they would "
                        "not be finite; lower the learning rate, or set on_nonfinite: skip_row"
                    )
            return result(counts)

        self._tally.add(pushes=1)
        return self._unsettled.start(step, make, finish, event_time=event_time)
