"""From files to batches: readers, field parsing and hashing, shuffling, prefetching."""
