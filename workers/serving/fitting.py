"""Whether a version fits: requests of now are requests of it, and its tower scores as the training model did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ps.chain import live_records
from ps.checkpoint import read_manifest
from ps.keys import bucket_of
from ps.replica import Replica
from ps.serving_rows import RowEncoder
from ps.storage.spreading import Spread
from ps.types import Keys, Rows
from workers.serving.bundle import Bundle
from workers.serving.manifest import TOWER_FILE
from workers.serving.recorded import Recorded
from workers.serving.versions import VersionError

# Of logits, relative to the greatest of them (at least 1): ONNX Runtime sums in another order than torch, and two
# machines in yet others. Serving codecs do not enter: the inputs are recorded.
TOLERANCE = 1e-4


def check_schema(current: Bundle, new: Bundle, *, serving: str) -> None:
    """Raises VersionError where a request of the current version could not be answered, or would mean another thing.
    serving: the current version's name.
    """
    for what, old, found in (
        ("columns", _columns(current), _columns(new)),
        ("labels", _labels(current), _labels(new)),
    ):
        differ = sorted(name for name in old.keys() | found.keys() if old.get(name) != found.get(name))
        if differ:
            name = differ[0]
            raise VersionError(
                f"version {new.version!r} answers other requests than {serving!r}, which serves: {what}.{name} is "
                f"{found.get(name, 'missing')}, not {old.get(name, 'missing')}; --force-schema publishes it anyway"
            )


def check_tower(folder: Path, recorded: Recorded) -> float:
    """The greatest difference between the logits of a folder's tower.onnx and the recorded ones, relative as TOLERANCE.
    Raises VersionError where it is beyond that.
    """
    from workers.serving.tower import Tower

    shapes = {name: values.shape[1:] for name, values in recorded.inputs.items()}
    logits = Tower(folder / TOWER_FILE, shapes, recorded.logits.shape[1], threads=1).run(recorded.inputs)
    if logits.shape != recorded.logits.shape:
        raise VersionError(f"{folder}: the tower answers {logits.shape}, recorded were {recorded.logits.shape}")
    difference = float(np.abs(logits - recorded.logits).max() / max(1.0, np.abs(recorded.logits).max()))
    if not difference <= TOLERANCE:  # NaN, too
        raise VersionError(
            f"{folder}: the tower scores its recorded examples otherwise than training did, by {difference:.2g} of the "
            f"greatest logit, {TOLERANCE:g} is allowed; publish another version"
        )
    return difference


def check_examples(bundle: Bundle) -> float:
    """Score the examples of a bundle that nobody serves yet; the greatest difference from what training answered. Reads
    all rows, and keeps those of the examples. Raises BundleError.
    """
    from workers.serving.loading import check_examples as check
    from workers.serving.loading import make_model

    replica = Replica(bundle.training_spec, bundle.serving_spec)
    return check(bundle, replace(make_model(bundle, replica, threads=1), rows=_RowsOfFiles(bundle, replica)))


class _RowsOfFiles:
    """Rows of a bundle without loading it: every pull reads the files to their end."""

    def __init__(self, bundle: Bundle, empty: Replica) -> None:
        self._bundle, self._empty = bundle, empty

    def pull(self, table: str, keys: Keys) -> tuple[Rows, int]:
        """float32 [n, width], and how many of the keys have no row."""
        spec = self._bundle.serving_spec
        wanted = np.zeros(spec.num_buckets, np.bool_)
        wanted[bucket_of(keys, spec.num_buckets)] = True
        rows, _ = self._empty.pull(table, keys)
        encoder, is_found = RowEncoder(spec.tables[table]), np.zeros(len(keys), np.bool_)
        records = live_records(
            read_manifest(self._bundle.rows_directory), lambda name, bucket: name == table and bool(wanted[bucket])
        )
        for record, _ in records:
            order = np.argsort(record.keys)
            at = order[np.minimum(np.searchsorted(record.keys, keys, sorter=order), len(order) - 1)]
            here = record.keys[at] == keys
            rows[here] = encoder.decode(record.images[at[here]])
            is_found |= here
        return rows, int((~is_found).sum())

    def spread(self, table: str, keys: Keys, spread: Spread) -> int:
        """Put the rows where they are wanted; how many of the keys have no row."""
        rows, num_unknown = self.pull(table, keys)
        spread.put(rows)
        return num_unknown


def _columns(bundle: Bundle) -> dict[str, str]:
    """What requests name, with the types of the fields that read it."""
    types: dict[str, set[str]] = {}
    for name, field in bundle.fields.items():
        types.setdefault(field.column or name, set()).add(field.type)
    return {name: " and ".join(sorted(found)) for name, found in types.items()}


def _labels(bundle: Bundle) -> dict[str, str]:
    return {name: label.type for name, label in bundle.manifest.labels.items()}
