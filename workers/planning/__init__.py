"""What a job of a given size needs: memory, shards, nodes, network, from the row layout and measured figures."""
