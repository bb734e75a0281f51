"""A bundle's rows in memory, as a replica that a delta stream may keep up."""

from __future__ import annotations

from ps.replica import Replica
from workers.serving.bundle import Bundle


def load_rows(bundle: Bundle) -> Replica:
    """Raises CheckpointError for damaged rows."""
    replica, manifest = Replica(bundle.training_spec, bundle.serving_spec), bundle.manifest
    at = manifest.data_time if 0 < manifest.data_time < manifest.created else manifest.created
    replica.load(bundle.rows_directory, bundle.offsets, at=at)
    return replica
