"""A small recipe that every training test starts from, and runs of it in this process."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from workers.config import Config, load_config

RECIPE: dict[str, Any] = {
    "name": "small",
    "seed": 5,
    "data": {
        "format": "generated",
        "batch_size": 128,
        "generated": {
            "train_rows": 2000,
            "valid_rows": 500,
            "test_rows": 500,
            "keys": {"user": 50, "item": 30, "hour": 24},
        },
    },
    "labels": {"click": "binary"},
    "fields": {
        "user": "categorical",
        "item": "categorical",
        "hour": "categorical",
        "tags": {"type": "multi", "pooling": "mean"},
        "price": {"type": "numeric", "transform": "log"},
    },
    "group": "user",
    "tables": {
        "main": {
            "segments": {
                "linear": {"dim": 1, "optimizer": {"name": "ftrl", "learning_rate": 0.1}},
                "embedding": {
                    "dim": 4,
                    "codec": "bf16",
                    "initializer": {"name": "normal", "std": 0.05},
                    "optimizer": {"name": "adagrad", "learning_rate": 0.1},
                },
            }
        }
    },
    "model": {"name": "deepfm", "hidden": [16], "batch_norm": True, "dropout": 0.2},
    "train": {"epochs": 2, "learning_rate": 0.01, "threads": 1},
    "cluster": {"shards": 2, "placement": "inprocess", "num_buckets": 16},
}


def write(path: Path, changes: dict[str, Any] | None = None) -> Path:
    """The recipe as a file; changes: {"train.epochs": 3, ...}, None removes."""
    recipe = copy.deepcopy(RECIPE)
    for dotted, value in (changes or {}).items():
        *parents, last = dotted.split(".")
        section = recipe
        for parent in parents:
            section = section.setdefault(parent, {})
        if value is None:
            section.pop(last, None)
        else:
            section[last] = copy.deepcopy(value)
    recipe.setdefault("runs", str(path / "runs"))
    file = path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return file


def load(path: Path, changes: dict[str, Any] | None = None) -> Config:
    return load_config(write(path, changes))
