"""Torch threads of a worker's process. Cost only: nothing here changes what is learnt."""

from __future__ import annotations

import torch

from workers.cores import usable_cores


def use_threads(threads: int | None) -> None:
    """Torch threads of this worker; None: one a core that it may run on, whatever OMP_NUM_THREADS Ray has set."""
    torch.set_num_threads(threads or usable_cores())
