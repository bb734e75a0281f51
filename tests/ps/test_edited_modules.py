"""A user's module that was edited: the next process runs the new code, and an unchanged one compiles nothing."""

import json
import os
import subprocess
import sys

import pytest

MODULE = """
import ps

def helper(x):
    return {helper}

@ps.register("edited")
class Edited(ps.RowOptimizer):
    def update(self, values, gradient, learning_rate):
        for j in range(len(values)):
            values[j] -= helper(gradient[j])
"""

PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
import numpy as np, edited
from ps.spec import TableSpec
from ps.storage.table import Table
spec = TableSpec.model_validate({"segments": {"e": {"dim": 2, "optimizer": "edited"}}})
table = Table("t", spec, seed=0, num_buckets=2)
keys = np.arange(3, dtype=np.uint64)
table.push(keys, np.ones((3, 2), np.float32), step=1, learning_rates=np.ones(1, np.float32))
kernels = [kernel for kernel in vars(table._kernels).values() if hasattr(kernel, "stats")]
hits = sum(sum(kernel.stats.cache_hits.values()) for kernel in kernels)
print(json.dumps([float(table.pull(keys)[0, 0]), hits]))
"""


def run(folder, helper):
    """The first value of a row after one push, and how many of the table's kernels were read from the cache."""
    (folder / "edited.py").write_text(MODULE.format(helper=helper))
    environment = {**os.environ, "WEIR_CACHE_DIR": str(folder / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow  # compiles every kernel, then those of two layouts
def test_an_edited_helper_never_runs_stale_code(tmp_path):
    assert run(tmp_path, "x") == [-1.0, 0]
    value, hits = run(tmp_path, "x")
    assert value == -1.0
    assert hits > 4
    assert run(tmp_path, "x * 3") == [-3.0, 0]  # the optimizer itself is as it was
