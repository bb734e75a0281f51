"""Faults against a running cluster with journals or standbys, while clients count what was acknowledged.

    python -m tests.chaos.runner --mode replicated --faults 200        (make chaos)

workload    what a client does, and what that must leave       ledger     what it was told, on disk
forwarder   TCP between clients and shards, to be cut          clients    client processes
shards, pairs   clusters behind forwarders, of either mode; what they share: cluster
faults, pair_faults   what is done to either; moving: while buckets move, to both
disks       full ones, torn and flipped bytes                  verdict    what stands in the rows, against the ledgers
"""
