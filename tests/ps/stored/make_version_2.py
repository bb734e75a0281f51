"""How tests/ps/stored/version-2 was made, by the code of format version 2: python -m tests.ps.stored.make_version_2 DIR

A full checkpoint and an increment of it, of the cluster of version 1. Newer code writes its own version, so this file
is a record.
"""

import json
import sys
from pathlib import Path

import numpy as np

import ps
from tests.ps.stored.make_version_1 import KEYS, SPEC


def main(folder: Path) -> None:
    rng = np.random.default_rng(2)
    with ps.local(SPEC, shards=2) as client:
        for step in range(1, 6):
            if step == 5:
                client.save(str(folder / "full"), tracks=True)
                client.delete("user", KEYS[3:6])
            for table, spec in SPEC.tables.items():
                keys = KEYS[: 10 * step] if step < 5 else KEYS[4:9]
                gradients = rng.normal(size=(len(keys), spec.width)).astype(np.float32)
                client.push(table, keys, gradients, step=step, event_time=1_700_000_000 + step).wait()
        client.save(str(folder / "increment"), since=str(folder / "full"))
        rows = {table: client.pull(table, KEYS).tolist() for table in SPEC.tables}
        rows["num_rows"] = sum(client.get(table, ps.Size()) for table in SPEC.tables)
    (folder / "rows.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
