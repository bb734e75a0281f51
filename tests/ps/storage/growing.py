"""Run as a process of its own: grows a table, and prints what it reports and what the process has, as JSON.

python -m tests.ps.storage.growing SPEC_JSON NUM_BUCKETS ROWS...     ROWS ascending
"""

import gc
import json
import sys

import numpy as np

from ps.spec import TableSpec
from ps.storage.table import Table
from tests.ps.storage.resident import resident_bytes

_BATCH = 4096  # so small that what a push needs for itself comes from memory that the process has already


def main(spec, num_buckets, counts):
    made = TableSpec.model_validate_json(spec)
    rates = np.ones(len(made.segments), np.float32)
    gradients = np.ones((_BATCH, made.width), np.float32)

    def grow(table, first, last):
        for start in range(first, last, _BATCH):
            keys = np.arange(start, min(start + _BATCH, last), dtype=np.uint64)
            table.push(keys, gradients[: len(keys)], step=1, learning_rates=rates)

    def resident():
        gc.collect()
        return resident_bytes()

    other = Table("other", made, seed=0, num_buckets=num_buckets)
    grow(other, 0, 4 * _BATCH)
    other.clear()  # code and the interpreter's own memory are there now
    before, rows, found = resident(), 0, []
    table = Table("grown", made, seed=0, num_buckets=num_buckets)
    for count in counts:
        grow(table, rows, count)
        rows = count
        found.append({"rows": table.num_rows, "reported": table.memory_bytes, "resident": resident() - before})
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), [int(count) for count in sys.argv[3:]])
