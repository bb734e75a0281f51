"""Faults against a running cluster with journals, while clients count what was acknowledged.

    python -m tests.chaos.runner --faults 200        (make chaos)

workload    what a client does, and what that must leave       ledger     what it was told, on disk
forwarder   TCP between clients and shards, to be cut          shards     shard processes behind forwarders
faults      what is done to them                               verdict    what stands in the rows, against the ledgers
"""
