"""Whether a version fits: requests of now are requests of it, and its tower scores as the training model did."""

from __future__ import annotations

from pathlib import Path

import numpy as np

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
                f"{found.get(name, 'missing')}, not {old.get(name, 'missing')}; --force-schema publishes it all the same"
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


def _columns(bundle: Bundle) -> dict[str, str]:
    """What requests name, with the types of the fields that read it."""
    types: dict[str, set[str]] = {}
    for name, field in bundle.fields.items():
        types.setdefault(field.column or name, set()).add(field.type)
    return {name: " and ".join(sorted(found)) for name, found in types.items()}


def _labels(bundle: Bundle) -> dict[str, str]:
    return {name: label.type for name, label in bundle.manifest.labels.items()}
