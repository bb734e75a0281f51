"""How many cores this process may use, and how its threads share them with others."""

from __future__ import annotations

import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container's own cgroup, as it sees it (v2)


# How often an idle thread of torch looks for work before it sleeps. libgomp, which reads it when torch is loaded, looks
# 300,000 times, about ten milliseconds, in which the thread takes a core from shards that have work: a tenth of the
# samples a second where both are on one machine, half of them where other programs want its cores too.
THREADS_SLEEP_SOON = {"GOMP_SPINCOUNT": "1000"}


def usable_cores(quota: Path = _QUOTA) -> int:
    """Those that it is allowed to run on, or what its container's share of time comes to, if that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        share, period = quota.read_text().split()
        return max(1, min(cores, int(share) // int(period)))
    except (OSError, ValueError):  # there is none, or it is "max"
        return cores
