"""Processes compile each kernel of a layout once, whoever begins it; later ones read the cache."""

import json
import os
import subprocess
import sys

PROGRAM = """
import json, sys
import numpy as np
from ps.spec import TableSpec
from ps.storage import table as t
segments = json.loads(sys.argv[1])
spec = TableSpec.model_validate({"segments": segments})
tables = [t.Table(name, spec, seed=seed, num_buckets=4) for seed, name in enumerate(("a", "b"))]
assert tables[0]._kernels is tables[1]._kernels
for table in tables:
    table.warm_up()
    table.push(np.arange(9, dtype=np.uint64), np.ones((9, spec.width), np.float32), step=1,
               learning_rates=np.ones(len(segments), np.float32))
    table.delete(np.arange(3, dtype=np.uint64))
    next(table.scan(0), None), next(table.read_images(0), None)
hits = misses = 0
for module in (tables[0]._kernels, t.index):
    for kernel in vars(module).values():
        stats = getattr(kernel, "stats", None)
        if stats is not None and kernel.targetoptions.get("forceinline") is None:
            hits += sum(stats.cache_hits.values())
            misses += sum(stats.cache_misses.values())
print(json.dumps([hits, misses]))
"""


def start(segments, folder):
    environment = {**os.environ, "WEIR_CACHE_DIR": str(folder)}
    command = [sys.executable, "-c", PROGRAM, json.dumps(segments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def result(process):
    """Kernels that were read from the cache, and that were compiled."""
    stdout, _ = process.communicate()
    assert process.returncode == 0
    return json.loads(stdout)


def test_processes_share_what_they_compile(tmp_path):
    segments = {"e": {"dim": 2, "optimizer": "sgd"}}
    (hits, misses), (other_hits, other_misses) = map(result, [start(segments, tmp_path) for _ in range(2)])
    kernels = hits + misses
    assert kernels >= 8
    assert (misses + other_misses, other_hits + other_misses) == (kernels, kernels)  # each was compiled once
    # Hyper-parameters, names, seeds and limits are no part of a layout.
    renamed = {"f": {"dim": 2, "optimizer": {"name": "sgd", "l2": 0.5, "learning_rate": 0.3}}}
    assert result(start(renamed, tmp_path)) == [kernels, 0]
    assert (tmp_path / next(iter(os.listdir(tmp_path)))).stat().st_mode & 0o777 == 0o700
