"""The training loop and what surrounds it: lookups, towers, evaluation, checkpoints, runs."""

import os

from workers.cores import THREADS_SLEEP_SOON

for _name, _value in THREADS_SLEEP_SOON.items():
    os.environ.setdefault(_name, _value)  # before any module here imports torch
