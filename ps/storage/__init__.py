"""The table and its parts: index, rows, codecs, initializers, optimizers. One thread of work; no I/O."""
