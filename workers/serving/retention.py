"""Which versions stay, and from which offsets on the stream of changes is still needed."""

from __future__ import annotations

from collections.abc import Iterable

from ps.errors import BundleError
from workers.serving.bundle import read_bundle
from workers.serving.versions import Models, Version


def kept(versions: Iterable[Version], current: str | None, previous: str | None, keep: int) -> set[str]:
    """Names of the `keep` newest versions, of the one that serves, of the one that a rollback would take, and of the
    bundles that these stand on.
    """
    known = {version.name: version for version in versions}
    newest = sorted(known.values(), key=lambda version: version.number)[-keep:]
    names = {version.name for version in newest} | {name for name in (current, previous) if name in known and name}
    return names | {known[name].bundle for name in names}


def prune(models: Models, keep: int) -> list[str]:
    """Remove all versions but those that `kept` names; the names of the removed. keep: at least 1."""
    with models.locked():
        pointer, versions = models.current(), models.versions()
        models.sweep()
        if pointer is None:
            return []
        previous = next((each for each in reversed(pointer.history) if each != pointer.version), None)
        stay = kept(versions, pointer.version, previous, max(keep, 1))
        # A dense version goes before the bundle that it stands on.
        gone = sorted((each for each in versions if each.name not in stay), key=lambda each: not each.is_dense)
        for version in gone:
            models.remove(version.name)
    return [version.name for version in gone]


def floor(models: Models) -> dict[int, int]:
    """By partition, the first offset of the stream of changes that some version needs: what is before it may go. A
    bundle without offsets needs none.
    """
    needed: dict[int, int] = {}
    for version in models.versions():
        if version.is_dense:
            continue
        try:
            offsets = read_bundle(models.path(version.name)).offsets or {}
        except BundleError:  # nobody can start from it any more
            continue
        for partition, offset in offsets.items():
            needed[partition] = min(offset, needed.get(partition, offset))
    return needed
