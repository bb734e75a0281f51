"""A small bundle by hand: real rows, a tower of some bytes. `weir export` makes those with towers that run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from ps import checkpoint
from ps.keys import bucket_of, hash_texts, pack
from ps.record import Record, encode_record
from ps.serving_rows import RowEncoder, serving_spec, unserved_table
from ps.spec import ClusterSpec, SegmentSpec, TableSpec
from workers.config import Categorical, Multi, Numeric
from workers.serving.bundle import Bundle, described_files, write_manifest
from workers.serving.manifest import (
    EXAMPLES_FILE,
    ROWS_FOLDER,
    TOWER_FILE,
    Checks,
    Manifest,
    ServedLabel,
    ServedTable,
    TowerChecks,
    TowerInput,
)

TRAINED = ClusterSpec(
    tables={
        "main": TableSpec(
            segments={
                "linear": SegmentSpec(dim=1, optimizer={"name": "ftrl"}),
                "embedding": SegmentSpec(dim=3, initializer={"name": "normal", "std": 0.1}),
            }
        )
    },
    num_buckets=4,
    seed=7,
)
FIELDS = {
    "user": Categorical(column="user", table="main", slot=0),
    "tags": Multi(column="tags", table="main", slot=1, pooling="mean"),
    "price": Numeric(column="price", transform="log"),
}


def rows_of(values: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Keys of users "0", "1", ... grouped by bucket, and their rows, float32 [n, 4]."""
    keys = pack(0, hash_texts([str(i) for i in range(values)]))
    keys = keys[np.argsort(bucket_of(keys, TRAINED.num_buckets), kind="stable")]
    return keys, np.random.default_rng(2).normal(size=(values, 4)).astype(np.float32)


def make_bundle(directory: Path, *, codec: Any = "fp32", **changes: Any) -> Bundle:
    """changes: of the manifest."""
    spec, (keys, values) = serving_spec(TRAINED, codec), rows_of()
    encoder = RowEncoder(spec.tables["main"])
    buckets, layout = bucket_of(keys, spec.num_buckets), encoder.image_layout
    records = [
        Record("main", bucket, layout, keys[buckets == bucket], encoder.encode(values[buckets == bucket]))
        for bucket in np.unique(buckets).tolist()
    ]
    pieces = [
        checkpoint.start_frame(shard=0, spec=spec, layouts={"main": layout}, expired={}),
        *map(encode_record, records),
        checkpoint.end_frame(num_records=len(records), rows={"main": len(keys)}),
    ]
    rows = directory / ROWS_FOLDER
    part = checkpoint.write_part(rows, 0, 1, pieces)
    summary = {"rows": {"main": len(keys)}, "num_owned_buckets": spec.num_buckets}
    checkpoint.write_manifest(rows, spec, [msgpack.packb({**part, **summary})])
    (directory / TOWER_FILE).write_bytes(b"a tower")
    (directory / EXAMPLES_FILE).write_text(json.dumps({"split": "test", "columns": {}, "logits": [], "scores": {}}))
    manifest = {
        "name": "small",
        "version": "step-3",
        "step": 3,
        "data_time": 1.5,
        "created": time.time(),
        "codec": codec,
        "tables": {"main": ServedTable(rows=len(keys), bytes_per_row=8 + encoder.image_bytes)},
        "spec": TRAINED.model_copy(update={"tables": {"main": unserved_table(TRAINED.tables["main"])}}),
        "serving": spec,
        "fields": FIELDS,
        "inputs": {
            "linear": TowerInput(fields=("user", "tags"), dim=1),
            "embedding": TowerInput(fields=("user", "tags"), dim=3),
        },
        "labels": {"click": ServedLabel(type="binary")},
        "model": {"name": "fm"},
        "opset": 20,
        "offsets": {"0": 5},
        "files": described_files(directory),
        "checks": Checks(
            tower=TowerChecks(samples=2, logit_scale=1.0, onnx=0.0), rows={"main": {}}, scores=0.0, saturated=0
        ),
    }
    return write_manifest(directory, Manifest(**{**manifest, **changes}))
