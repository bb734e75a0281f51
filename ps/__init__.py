"""Weir's parameter server: sparse tables in shards, and the client that pulls from and pushes to them."""
