"""A checkpoint read for the tables of one shard: checked, matched by name, converted where layouts differ, and put into
the buckets of here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ps import checkpoint
from ps.chain import live_records, starts_of
from ps.conversion import Converter
from ps.errors import CheckpointError
from ps.keys import bucket_of
from ps.mapping import Sources, TablePlan, plan_restore
from ps.record import Record, layout_digest
from ps.spec import ClusterSpec
from ps.storage.layout import layout_of


class Restoration:
    """From `manifest` into a cluster of `spec`. Making one compiles what a conversion needs. Raises RequestError for
    what does not fit, CheckpointError for files of an unknown layout.
    """

    def __init__(
        self, manifest: checkpoint.Manifest, spec: ClusterSpec, sources: Sources, *, event_time: int = 0
    ) -> None:
        self.manifest, self.spec = manifest, spec
        self.plan = plan_restore(manifest.spec, spec, sources)
        self.expired: dict[str, list[int]] = {}  # by table of here: clients that are refused
        starts = [part.start for member in manifest.chain for part in starts_of(member)]
        for part in starts_of(manifest):
            for table, ids in part.start.get("expired", {}).items():
                if table in self.plan.tables:
                    self.expired.setdefault(self.plan.tables[table].new, []).extend(ids)
        self._converters: dict[str, Converter | None] = {}
        for name, plan in self.plan.tables.items():
            written = {layout_digest(start["layouts"].get(name, "")) for start in starts}
            same_names = all(here == there for here, there in plan.segments.items())
            if same_names and written == {layout_digest(layout_of(spec.tables[plan.new]).text())}:
                self._converters[name] = None
            elif written == {layout_digest(layout_of(manifest.spec.tables[name]).text())}:
                self._converters[name] = Converter(plan, manifest.spec, spec, event_time=event_time)
            else:
                raise CheckpointError(
                    f"{manifest.directory}: rows of table {name!r} have a layout that this weir-ps does not make of "
                    "their spec; restore with the version that wrote them"
                )

    def num_rows(self, owns: NDArray[np.bool_]) -> dict[str, int]:
        """By table of here, about how many rows belong into the buckets that `owns` names."""
        rows, share = self.manifest.rows, float(owns.mean())
        return {plan.new: int(share * rows[name]) for name, plan in self.plan.tables.items()}

    def records(self, owns: NDArray[np.bool_], *, first: int = 0, convert: bool = True) -> Iterator[Record]:
        """What belongs into the buckets that `owns` (bool [num_buckets of here]) names, record by record, each checked.

        first: of which shard of the checkpoint the files come first: best its own, which has most of it, while
        the others make theirs quick to pass over. convert: False only reads, which checks every byte of what would be
        loaded.
        """
        old, new = self.manifest.spec.num_buckets, self.spec.num_buckets
        wider = max(old, new)
        spread = np.repeat(owns, wider // new).reshape(old, wider // old)
        owned = set(np.flatnonzero(spread.any(axis=1)).tolist())  # buckets of the checkpoint

        def wanted(table: str, bucket: int) -> bool:
            return table in self.plan.tables and bucket in owned

        for record, _ in live_records(self.manifest, wanted, first=first):
            if convert:
                yield from self._converted(record, self.plan.tables[record.table], owns)

    def _converted(self, record: Record, plan: TablePlan, owns: NDArray[np.bool_]) -> Iterator[Record]:
        if plan.keeps_buckets:
            yield self._reshaped(record, plan)
            return
        buckets = bucket_of(record.keys, self.spec.num_buckets)
        for bucket in np.unique(buckets).tolist():
            if owns[bucket]:
                chosen = buckets == bucket
                part = replace(
                    record, keys=record.keys[chosen], images=record.images[chosen], bucket=bucket, applied=b""
                )
                yield self._reshaped(part, plan)

    def _reshaped(self, record: Record, plan: TablePlan) -> Record:
        converter = self._converters[record.table]
        images = record.images
        if converter is not None and len(record.keys):
            images = converter.convert(record.keys, images)
        admission = record.admission if plan.keeps_buckets and plan.keeps_admission else b""
        return replace(record, table=plan.new, images=images, admission=admission)
