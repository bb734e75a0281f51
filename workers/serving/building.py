"""A version of a model directory becomes a model that answers: rows, as it has them or as they go on, and tower.

What is there already is used: a tower that goes with the rows that serve is loaded beside them. Other rows are built in
a replica of their own, while the ones that serve go on, so memory holds both until the old ones are let go.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace

import numpy as np

from ps.following import Follower, Source
from ps.replica import Replica
from workers.serving.bundle import Bundle, read_bundle
from workers.serving.fitting import check_tower
from workers.serving.loading import example_sample, load
from workers.serving.manifest import TOWER_FILE
from workers.serving.model import Model
from workers.serving.recorded import read_recorded
from workers.serving.tower import Tower
from workers.serving.versions import Models, Pointer, Version, VersionError, check_files

Sources = Callable[[], Source]  # of the stream of changes; whoever follows it closes it


@dataclass(frozen=True)
class Served:
    """What answers. follower: keeps the rows up; None where they stay as they are."""

    pointer: Pointer
    version: Version
    model: Model
    replica: Replica
    follower: Follower | None


class Behind(VersionError):
    """The rows have not come to a version's markers yet; they will."""


def build(
    models: Models,
    pointer: Pointer,
    sources: Sources | None,
    before: Served | None,
    *,
    threads: int,
    stalled_seconds: float,
) -> Served:
    """The version that a pointer names, ready to answer. before: what serves now. threads: of one run of the tower.
    stalled_seconds: for how long a stream may bring nothing, short of what is waited for.

    Rows that go on have come to the version's markers, and to where those are that serve now, so that no answer goes
    back in time. Raises VersionError, BundleError, CheckpointError and DeltaError for what cannot be served as it is,
    Behind for what may be later. What serves now is as it was then.
    """
    version = models.version(pointer.version)
    bundle = read_bundle(models.bundle_path(version))
    if sources is None and version.is_dense:
        raise VersionError(f"version {version.name!r} stands on a stream of changes: where is it? --deltas or --shards")
    # Rows that stay as they are never go on again: they would not be those of their version while another is built.
    if before is not None and before.version.bundle == version.bundle and not (pointer.pinned or before.pointer.pinned):
        model, replica, follower = before.model, before.replica, before.follower
    else:
        loaded = load(bundle, threads=threads)
        model, replica, follower = loaded.model, loaded.replica, None
    model = _with_tower(models, bundle, version, model, threads)
    markers = {partition: offset + 1 for partition, offset in (version.markers or {}).items()}
    started = None
    try:
        if sources is not None and (markers or not pointer.pinned):
            if follower is None:
                follower = started = Follower(replica, sources(), stop_at=version.markers if pointer.pinned else None)
            # Where nothing serves yet, older rows are better than none; but those of a rollback are exact.
            with suppress(Behind) if before is None and not pointer.pinned else nullcontext():
                _wait(replica, follower, markers, version, stalled_seconds)
            if before is not None and before.replica is not replica and not pointer.pinned:
                with suppress(Behind):  # partitions may be gone by now
                    _wait(replica, follower, before.replica.positions, version, stalled_seconds)
    except BaseException:
        if started is not None:
            started.close()
        raise
    if pointer.pinned and follower is not None:
        follower.close()
        follower = None
    return Served(pointer, version, model, replica, follower)


def _wait(
    replica: Replica, follower: Follower, positions: Mapping[int, int], version: Version, stalled_seconds: float
) -> None:
    """Until the replica has all before these next offsets. Raises VersionError where that is gone from the stream.

    A partition that nobody has any more brings nothing: those who took its buckets have published them whole since, so
    then all is waited for that they have published by now.
    """
    missing, moved_at, began = None, time.monotonic(), time.time()
    while not replica.wait_until(positions, 0.1):
        gone = replica.retired
        if (
            not gone.isdisjoint(positions)
            and replica.wait_until({each: end for each, end in positions.items() if each not in gone}, 0)
            and (now := time.time()) - replica.age(now) > began
        ):
            return
        if follower.needs_bundle:
            raise VersionError(f"the stream has no longer all that version {version.name!r} needs: {follower.trouble}")
        found = replica.positions
        before, missing = (
            missing,
            {each: found.get(each) for each, end in positions.items() if found.get(each, 0) < end},
        )
        if missing != before:
            moved_at = time.monotonic()
        if time.monotonic() - moved_at > stalled_seconds:
            raise Behind(
                f"the rows have not come to the markers of version {version.name!r}, and for {stalled_seconds:g} s "
                f"nothing came; waiting on {follower.trouble}".rstrip()
            )


def _with_tower(models: Models, bundle: Bundle, version: Version, model: Model, threads: int) -> Model:
    """The model with the version's own tower and name, after a first run."""
    folder = models.path(version.name)
    if version.is_dense:
        check_files(folder, version)
        check_tower(folder, read_recorded(folder))
    tower = Tower(folder / TOWER_FILE, model.tower.inputs, len(model.labels), threads=threads)
    model = replace(model, version=version.name, tower=tower)
    scores = model.score([example_sample(bundle, model)])[0][0].scores
    if not np.isfinite(scores).all():
        raise VersionError(f"version {version.name!r} scores its bundle's examples with NaN or infinity")
    return model
