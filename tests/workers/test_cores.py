"""Cores that a process may use: its affinity, and its container's share."""

import os

from workers.cores import usable_cores


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
