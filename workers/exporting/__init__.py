"""From training to serving: a checkpoint's rows and tower as a bundle, or the tower of a live model alone."""

from workers.exporting.bundling import export
from workers.exporting.tower import TowerInputs, export_tower

__all__ = ["TowerInputs", "export", "export_tower"]
