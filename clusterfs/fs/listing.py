"""What readdir answers: a page of names, with attributes where nobody has to wait for them.

All locks of a page's inodes are asked for at once, in one message for each master, and only those
that are free: a listing takes no file away from who writes it. What the value blocks do not bring
is read from the volume, all at the same time. So listing a directory and stating every entry costs
a few messages a page, not several a file.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import trio

from clusterfs.errors import FilesystemError
from clusterfs.fs.directories import Directories
from clusterfs.fs.handles import OpenDirectory
from clusterfs.fs.inodes import Inode
from clusterfs.fs.keys import Entry as Name
from clusterfs.fs.locks import PR
from clusterfs.fs.parts import Parts
from clusterfs.fs.results import Entry, Listed
from dlm.errors import LockLost

_DOTS = (b".", b"..")

Found = tuple[bytes, Name, int]


class Listing:
    """Lists open directories."""

    def __init__(self, parts: Parts, directories: Directories) -> None:
        self._gate = parts.gate
        self._locks = parts.locks
        self._inodes = parts.inodes
        self._transactions = parts.transactions
        self._coherence = parts.coherence
        self._directories = directories
        self._access_times = parts.access_times

    async def page(self, opened: OpenDirectory, cookie: int, count: int) -> list[Listed]:
        """Return up to `count` entries after a cookie, 0 at first; [] at the end."""
        page = partial(self._directories.page, opened, cookie, count)
        names = await self._gate.run(page, rerun=True)
        if opened.inode.lock.level >= PR:
            self._access_times.note(opened.inode)
        await self._gate.run(partial(self._look_ahead, names), rerun=True)
        return [
            Listed(name, found.inode, found.kind, after, self._at_hand(opened.inode, name, found))
            for name, found, after in names
        ]

    async def _look_ahead(self, names: Sequence[Found]) -> None:
        """Get the attributes of what is free."""
        inodes = [self._inodes.get(found.inode) for name, found, _ in names if name not in _DOTS]
        await self._locks.share_free(inode.lock for inode in inodes)
        async with trio.open_nursery() as nursery:
            for inode in inodes:
                if inode.record is None and inode.lock.shared_nowait():
                    nursery.start_soon(self._load, inode)

    async def _load(self, inode: Inode) -> None:
        """Read the record; the lock is shared for that. What fails is left to a lookup."""
        try:
            with suppress(FilesystemError, LockLost):
                await self._transactions.load(inode)
        finally:
            inode.lock.release()

    def _at_hand(self, directory: Inode, name: bytes, found: Name) -> Entry | None:
        inode = self._inodes.known(found.inode)
        if name in _DOTS or inode is None or not inode.lock.shared_nowait():
            return None
        try:
            if inode.record is None or directory.entries.get(name) != found:
                return None
            return self._coherence.entry(directory, directory.lock.stamp, inode)
        finally:
            inode.lock.release()
