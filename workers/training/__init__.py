"""The training loop and what surrounds it: lookups, towers, evaluation, checkpoints, runs."""
