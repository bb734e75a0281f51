"""A bundle becomes a version, and a version is checked before it serves: its files, its fields, its recorded scores.

A folder of a bundle is linked, file by file, and copied where it lies on another filesystem: a bundle never changes.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from workers.serving.bundle import Bundle, is_bundle, read_bundle
from workers.serving.fitting import check_examples, check_schema, check_tower
from workers.serving.recorded import read_recorded
from workers.serving.versions import Models, Pointer, Version, VersionError, check_files


def publish(models: Models, what: str, *, name: str | None = None, forces_schema: bool = False) -> Pointer:
    """Check a version and have it serve. what: a bundle's folder, which becomes a version called `name` (default: as
    the bundle says), or the name of one that is there.

    Raises VersionError and BundleError for one that does not fit; the pointer stays then.
    """
    if not is_bundle(what):
        if os.sep in what:
            raise VersionError(f"{what} is no bundle's folder; `weir export` makes one")
        if name is not None:
            raise VersionError(f"--as {name}: {what!r} is a version already, and keeps its name")
        version = models.version(what)
        check(models, version, forces_schema=forces_schema)
        return models.publish(version.name)
    bundle = read_bundle(what)
    bundle.verify()
    check_bundle(models, bundle, forces_schema=forces_schema)
    return models.publish(register(models, bundle, name).name)


def check(models: Models, version: Version, *, forces_schema: bool) -> None:
    """Raises VersionError or BundleError where a version of the directory is damaged, answers other requests than the
    one that serves, or does not score its examples as training did.
    """
    bundle = read_bundle(models.bundle_path(version))
    if not version.is_dense:
        bundle.verify()
        check_bundle(models, bundle, forces_schema=forces_schema)
        return
    check_files(models.path(version.name), version)
    _check_against_current(models, bundle, forces_schema=forces_schema)
    check_tower(models.path(version.name), read_recorded(models.path(version.name)))


def check_bundle(models: Models, bundle: Bundle, *, forces_schema: bool) -> None:
    """As `check`, of a bundle wherever it lies."""
    _check_against_current(models, bundle, forces_schema=forces_schema)
    check_examples(bundle)


def register(models: Models, bundle: Bundle, name: str | None = None) -> Version:
    """Make a version of a bundle."""
    with models.staging() as staged:
        _link_tree(bundle.directory, staged)
        manifest = bundle.manifest
        return models.add(
            staged, name or manifest.version, step=manifest.step, data_time=manifest.data_time, markers=None
        )


def _check_against_current(models: Models, bundle: Bundle, *, forces_schema: bool) -> None:
    pointer = models.current()
    if pointer is None or forces_schema:
        return
    check_schema(read_bundle(models.bundle_path(models.version(pointer.version))), bundle, serving=pointer.version)


def _link_tree(source: Path, target: Path) -> None:
    for parent, _, names in os.walk(source):
        folder = target / Path(parent).relative_to(source)
        folder.mkdir(exist_ok=True)
        for name in names:
            try:
                os.link(Path(parent, name), folder / name)
            except OSError:  # another filesystem, or one without links
                shutil.copyfile(Path(parent, name), folder / name)
