"""The log-structured, checksummed, deduplicating chunk store of one node.

`Store.open` (store.py) is the door, `DirectoryDisk` (disk.py) the usual brick behind it, objects.py
the vocabulary. The package knows nothing of files or of other nodes.
"""
