"""Objects on several nodes: groups, placement, transactions, replication, resync."""
