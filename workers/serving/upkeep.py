"""A model, and what keeps it up while it answers: the stream of its rows' changes, the pointer of a model directory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ps.delta_folder import DeltaFolder
from ps.delta_lines import DeltaLines
from ps.following import Follower, Source
from workers.serving.bundle import is_bundle, read_bundle
from workers.serving.loading import Loaded, load
from workers.serving.metrics import Metrics
from workers.serving.options import ServeOptions
from workers.serving.predictor import Predictor
from workers.serving.switching import Switcher
from workers.serving.versions import Models


class Upkeep:
    """Of one server. It keeps no model that another one has replaced."""

    def __init__(self, follower: Follower | None, switcher: Switcher | None) -> None:
        self._follower, self._switcher = follower, switcher

    def start(self, predictor: Predictor, metrics: Metrics) -> None:
        """Switch the predictor from version to version from now on, and say why it does not."""
        if self._switcher is not None:
            metrics.watch_switches(self._switcher)
            self._switcher.start(predictor)
        if self._follower is not None:
            follower = self._follower
            predictor.trouble = lambda: follower.trouble

    def close(self) -> None:
        """Follow nothing any more."""
        for each in (self._switcher, self._follower):
            if each is not None:
                each.close()


def open_model(directory: Path, options: ServeOptions) -> tuple[Loaded, Upkeep]:
    """The model of a bundle, or the one that a model directory points to. Raises BundleError, VersionError and what
    else loading finds wrong.
    """
    sources = _sources_of(options)
    if is_bundle(directory):
        loaded = load(read_bundle(directory), threads=options.threads)
        return loaded, Upkeep(sources and Follower(loaded.replica, sources()), None)
    switcher = Switcher(Models(directory), sources, threads=options.threads)
    return Loaded(switcher.served.model, switcher.served.replica), Upkeep(None, switcher)


def _sources_of(options: ServeOptions) -> Callable[[], Source] | None:
    """The stream of changes that the options name."""
    if options.deltas is not None:
        return partial(DeltaFolder, options.deltas)
    if options.shards is not None:
        return partial(DeltaLines, options.shards.split(","), options.shard_security)
    return None
