"""A directory's entries: find one, list them all, tell whether there is any.

Names found, and names found absent, are cached in the inode while its lock is held. A listing goes
through an open directory that remembers the names given out so far, in name order: a cookie is a
position in that list, so it stays put while the directory changes. Names that exist throughout come
exactly once.
"""

from clusterfs.errors import DirectoryNotEmpty, NoSuchEntry, WouldBlock
from clusterfs.fs import asking
from clusterfs.fs.handles import OpenDirectory
from clusterfs.fs.inodes import Inode
from clusterfs.fs.keys import DIRECTORY, ENTRY, Entry, decode_entry
from clusterfs.fs.locks import PR
from clusterfs.fs.ports import Volume
from clusterfs.fs.transactions import Transactions
from dlm.errors import LockLost

_CACHED_NAMES = 16384
_PAGE = 512
_DOTS = 2  # cookies 1 and 2 come after "." and ".."


class Directories:
    """Reads entries."""

    def __init__(self, volume: Volume, transactions: Transactions) -> None:
        self._volume = volume
        self._transactions = transactions

    async def find(self, directory: Inode, name: bytes) -> Entry | None:
        """Return the entry of that name; needs the directory's lock."""
        try:
            return self.find_nowait(directory, name)
        except WouldBlock:
            pass
        stamp = directory.lock.stamp
        _, (stored,) = await self._transactions.fetch(directory, (ENTRY + name,))
        if directory.lock.stamp != stamp:
            raise LockLost
        return self._found(directory, name, stored)

    def find_nowait(self, directory: Inode, name: bytes) -> Entry | None:
        """Return the entry of that name if it is known or here. Raises WouldBlock."""
        try:
            return directory.entries[name]
        except KeyError:
            pass
        place = directory.object_id, directory.group
        _, (stored,) = self._volume.fetch_nowait(*place, (ENTRY + name,))
        return self._found(directory, name, stored)

    def _found(self, directory: Inode, name: bytes, stored: bytes | None) -> Entry | None:
        entry = None if stored is None else decode_entry(stored)
        self.remember(directory, name, entry)
        return entry

    def remember(self, directory: Inode, name: bytes, entry: Entry | None) -> None:
        """Cache a name, if its directory's lock is held still."""
        if directory.lock.level < PR:
            return
        if len(directory.entries) >= _CACHED_NAMES:
            directory.entries.clear()
        directory.entries[name] = entry

    async def require_empty(self, directory: Inode) -> None:
        """Raise DirectoryNotEmpty if there is an entry."""
        if await self._scan(directory, b"", 1):
            raise DirectoryNotEmpty

    async def everything(self, directory: Inode) -> dict[bytes, Entry]:
        """Return all names in a directory whose lock is held."""
        names: dict[bytes, Entry] = {}
        after = b""
        while page := await self._scan(directory, after, _PAGE):
            names.update(page)
            after = page[-1][0]
        return names

    async def page(
        self, opened: OpenDirectory, cookie: int, count: int
    ) -> list[tuple[bytes, Entry, int]]:
        """Return up to `count` (name, entry, cookie) after a cookie; 0 starts anew."""
        if cookie == 0:
            opened.rewind()
        listed: list[tuple[bytes, Entry, int]] = []
        inode = opened.inode
        async with inode.lock.sharing():
            try:
                record = await self._transactions.load_directory(inode)
            except NoSuchEntry:
                return []  # it was removed while open
            dots = [(b".", inode.number), (b"..", record.parent or inode.number)]
            for position in range(cookie, min(_DOTS, cookie + count)):
                name, number = dots[position]
                listed.append((name, Entry(number, DIRECTORY), position + 1))
            start = max(cookie, _DOTS) - _DOTS
            await self._read_ahead(opened, start + count - len(listed))
        for position in range(start, start + count - len(listed)):
            if position >= len(opened.names):
                break
            listed.append((*opened.names[position], position + _DOTS + 1))
        return listed

    async def _read_ahead(self, opened: OpenDirectory, wanted: int) -> None:
        while len(opened.names) < wanted and not opened.complete:
            after = opened.names[-1][0] if opened.names else b""
            stamp = opened.inode.lock.stamp
            names = await self._scan(opened.inode, after, _PAGE)
            if opened.inode.lock.stamp != stamp:
                raise LockLost
            for name, entry in names:
                self.remember(opened.inode, name, entry)
            opened.names.extend(names)
            opened.complete = len(names) < _PAGE

    async def _scan(self, directory: Inode, after: bytes, limit: int) -> list[tuple[bytes, Entry]]:
        with asking.interruptibly():
            rows = await self._volume.scan(
                directory.object_id, directory.group, ENTRY, ENTRY + after, limit
            )
        return [(key[len(ENTRY) :], decode_entry(value)) for key, value in rows]
