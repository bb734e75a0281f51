"""The delta stream of a shard: rows that were set, keys that went, for whoever serves them. docs/deltas.md.

batches    what stands in a stream, as bytes          partition   a shard's files, written
reading    files, read from an offset on              retention   from where on they are kept
"""
