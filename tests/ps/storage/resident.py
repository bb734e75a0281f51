"""What a process has in memory, for tests."""

import mmap
from pathlib import Path


def resident_bytes(pid="self"):
    """Of all its mappings, shared ones too."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * mmap.PAGESIZE
