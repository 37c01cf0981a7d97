"""The checkpoint's table: sorted keys in one snapshot, replaced by atomic synced commits.

Readers see the snapshot as of open or of the last `refresh`, whatever commits meanwhile: the state
keeps what a running checkpoint writes in RAM until the commit is done, then refreshes.

Invariants of any Table:
  * `commit` applies all or nothing, durably, and may run on any one thread;
  * `get` and `items` see one snapshot, on the thread that owns the store.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import lmdb

from clusterfs.errors import SetupError

_MAP_BYTES = 1 << 40  # address space only: the file grows with its content


class Table(Protocol):
    """A sorted table with snapshots."""

    def get(self, key: bytes) -> bytes | None:
        """Return the key's value in the snapshot."""

    def items(self, first: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the snapshot's pairs with first <= key < end, in order."""

    def commit(self, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Put (or, with None, remove) all of them, durably, or raise OSError and change nothing."""

    def refresh(self) -> None:
        """Move the snapshot to the last commit."""

    def close(self) -> None:
        """Let go of it."""


class LmdbTable:
    """A Table in LMDB."""

    def __init__(self, path: Path) -> None:
        path.mkdir(exist_ok=True)
        try:
            self._environment = lmdb.open(str(path), map_size=_MAP_BYTES, readahead=False)
        except lmdb.Error as error:
            raise SetupError(
                f"checkpoint {path} cannot be opened ({error}); "
                "move the brick away and let the node synchronise a new one"
            ) from error
        self._reader = self._environment.begin(buffers=False)

    def get(self, key: bytes) -> bytes | None:
        """Return the key's value in the snapshot."""
        value: bytes | None = self._reader.get(key)
        return value

    def items(self, first: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield pairs from a cursor of their own."""
        cursor = self._reader.cursor()
        if not cursor.set_range(first):
            return
        for key, value in cursor:
            if key >= end:
                return
            yield key, value

    def commit(self, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Write one LMDB transaction; LMDB syncs data, then the meta page."""
        try:
            with self._environment.begin(write=True) as transaction:
                for key, value in changes:
                    if value is None:
                        transaction.delete(key)
                    else:
                        transaction.put(key, value)
        except lmdb.Error as error:
            raise OSError(f"checkpoint: {error}") from error

    def refresh(self) -> None:
        """Renew the read transaction."""
        self._reader.abort()
        self._reader = self._environment.begin(buffers=False)

    def close(self) -> None:
        """Close the environment."""
        self._reader.abort()
        self._environment.close()
