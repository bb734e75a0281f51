"""Serving: bundles, replicas of rows and towers, predictions. Imports neither torch nor ray nor pyarrow."""
