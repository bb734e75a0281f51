"""Bundles by hand whose towers sum: a score is 1 / (1 + exp(-(sum of the rows' values + log(1 + price) + adds)))."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ps.keys import hash_texts, pack
from tests.workers.serving.making import make_bundle, rows_of
from tests.workers.serving.towers import write_tower
from workers.serving.bundle import Bundle, described_files, write_manifest
from workers.serving.manifest import EXAMPLES_FILE

SHAPES = {"linear": (2, 1), "embedding": (2, 3)}  # of user and tags, as make_bundle has them
USERS = ["0", "7", "19"]
PRICES = [0.0, 1.5, 20.0]


def logits(adds: float = 0.0, users: list[str] = USERS) -> np.ndarray:
    """float32 [n]: of users without tags, at PRICES."""
    keys, rows = rows_of()
    sums = dict(zip(keys.tolist(), rows.sum(axis=1), strict=True))
    own = [sums[key] for key in pack(0, hash_texts(users)).tolist()]
    return np.float32(own) + np.log1p(np.float32(PRICES[: len(users)])) + np.float32(adds)


def make_summing(directory: Path, *, adds: float = 0.0, wrong_by: float = 0.0, **changes: Any) -> Bundle:
    """wrong_by: added to the logits that the examples claim. changes: of the manifest."""
    directory.mkdir(parents=True, exist_ok=True)
    bundle = make_bundle(directory, **changes)
    write_tower(directory, SHAPES, adds=adds, num_dense=1)
    found = logits(adds)
    examples = {
        "split": "test",
        "columns": {"user": USERS, "tags": [""] * len(USERS), "price": PRICES},
        "logits": (found[:, None] + wrong_by).tolist(),
        "scores": {"click": (1 / (1 + np.exp(-found))).tolist()},
    }
    (directory / EXAMPLES_FILE).write_text(json.dumps(examples))
    return write_manifest(directory, bundle.manifest.model_copy(update={"files": described_files(directory)}))
