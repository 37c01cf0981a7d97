"""The log-structured, checksummed, deduplicating chunk store of one node."""
