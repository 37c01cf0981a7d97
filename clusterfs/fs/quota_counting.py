"""Counting what is below a quota's directory, name by name, while nothing there changes.

Who counts holds the quota's `q` in EX (quotas.py). Each inode's lock is taken in PR, one at a time,
which makes a node that has something dirty write it back: so its size is the true one. What has no
name any more, but is open somewhere, is found by its mark.
"""

from clusterfs.errors import NoSuchEntry
from clusterfs.fs.attributes import Record
from clusterfs.fs.inodes import Inodes
from clusterfs.fs.keys import ENTRY, Entry, decode_entry
from clusterfs.fs.ports import Volume
from clusterfs.fs.quota_ledger import NOTHING, Amount, counted
from clusterfs.fs.transactions import Transactions
from clusterfs.store.objects import split_object_id

_PAGE = 512


class Counting:
    """Counts one quota's tree."""

    def __init__(
        self, number: int, volume: Volume, inodes: Inodes, transactions: Transactions
    ) -> None:
        self._number = number
        self._volume = volume
        self._inodes = inodes
        self._transactions = transactions

    async def count(self) -> Amount:
        """Return what all inodes of the quota use."""
        total = NOTHING
        seen = {self._number}
        waiting = [self._number]
        while waiting:
            for entry in await self._entries(waiting.pop()):
                if entry.inode not in seen:
                    seen.add(entry.inode)
                    record = await self._record(entry.inode)
                    if record is not None and record.quota == self._number:
                        total = total.plus(counted(record))
                        waiting += [entry.inode] if record.is_directory else []
        for number in await self.orphans():
            record = await self._record(number)
            if number not in seen and record is not None:
                total = total.plus(counted(record))
        return total

    async def orphans(self) -> list[int]:
        """Return the inodes of the quota that have no name, but are still there."""
        found = []
        for object_id in await self._volume.marked(range(self._volume.groups)):
            number, part = split_object_id(object_id)
            if not part:
                try:
                    record = await self._transactions.peek(self._inodes.get(number))
                except NoSuchEntry:
                    continue
                if record.quota == self._number and not record.nlink:
                    found.append(number)
        return found

    async def _record(self, number: int) -> Record | None:
        inode = self._inodes.get(number)
        async with inode.lock.sharing():
            try:
                return await self._transactions.load(inode)
            except NoSuchEntry:
                return None

    async def _entries(self, number: int) -> list[Entry]:
        inode = self._inodes.get(number)
        found: list[Entry] = []
        after = ENTRY
        async with inode.lock.sharing():
            while page := await self._volume.scan(
                inode.object_id, inode.group, ENTRY, after, _PAGE
            ):
                found += [decode_entry(value) for _, value in page]
                after = page[-1][0]
        return found
