"""Cores that a process may use: its affinity, and its container's share."""

import os
import subprocess
import sys

from workers.cores import THREADS_SLEEP_SOON, usable_cores

SHOW = """
import os, sys
import workers.training
assert "torch" not in sys.modules  # which reads it when it is loaded
import workers.training.job
print(os.environ["GOMP_SPINCOUNT"])
"""


def test_a_container_has_what_its_share_comes_to(tmp_path):
    own, quota = len(os.sched_getaffinity(0)), tmp_path / "cpu.max"
    assert usable_cores(quota) == own
    for text, expected in (
        ("max 100000\n", own),
        ("100000 100000\n", 1),
        ("50000 100000\n", 1),
        (f"{10**9} 100\n", own),
    ):
        quota.write_text(text)
        assert usable_cores(quota) == expected


def test_threads_of_torch_sleep_soon_unless_told_otherwise():
    unset = {name: value for name, value in os.environ.items() if name not in THREADS_SLEEP_SOON}
    for environment, expected in ((unset, "1000"), ({**unset, "GOMP_SPINCOUNT": "77"}, "77")):
        shown = subprocess.run(
            [sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=True
        )
        assert shown.stdout.strip() == expected
