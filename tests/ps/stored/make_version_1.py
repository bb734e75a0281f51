"""How tests/ps/stored/version-1 was made, by the code of format version 1: python -m tests.ps.stored.make_version_1 DIR

Newer code writes its own version, so this file is a record, and what the tests take the cluster's spec from.
"""

import json
import sys
from pathlib import Path

import numpy as np

import ps
from ps.keys import pack

SPEC = ps.ClusterSpec.model_validate(
    {
        "tables": {
            "user": {
                "segments": {
                    "linear": {"dim": 1, "optimizer": "ftrl"},
                    "embedding": {
                        "dim": 3,
                        "codec": "bf16",
                        "initializer": {"name": "uniform", "scale": 0.5},
                        "late": 0.25,
                    },
                }
            },
            "item": {
                "segments": {"embedding": {"dim": 4, "codec": "int8", "optimizer": "adam", "state_codec": "bf16"}},
                "admission": {"name": "count", "threshold": 2, "sketch_bytes": 4096},
            },
        },
        "num_buckets": 4,
        "seed": 3,
    }
)
KEYS = pack(1, np.arange(40, dtype=np.uint64))


def main(folder: Path) -> None:
    rng = np.random.default_rng(1)
    with ps.local(SPEC, shards=2) as client:
        for step in range(1, 5):
            for table, spec in SPEC.tables.items():
                keys = KEYS[: 10 * step] if table == "user" else KEYS[rng.random(len(KEYS)) < 0.5]
                gradients = rng.normal(size=(len(keys), spec.width)).astype(np.float32)
                client.push(table, keys, gradients, step=step, event_time=1_700_000_000 + step).wait()
        client.save(str(folder))
        rows = {table: client.pull(table, KEYS).tolist() for table in SPEC.tables}
    (folder / "rows.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
