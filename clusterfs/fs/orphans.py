"""Inodes without a name are deleted when nobody has them open any more; half-done work is finished.

Whoever takes the last name away, and has not got EX on the open lock at once (see namespace.py),
marks the inode ORPHAN and queues an ordinary EX on its open lock.
Nodes that cached the open lock drop it, real openers answer when they close, so the EX is granted
when nobody has it open; its holder deletes the stripes, then the inode. If that node leaves first,
`reclaim_marked` on another one finds the mark and queues likewise; several at once do no harm,
for each looks again under the locks.
"""

from collections.abc import Sequence
from functools import partial

import structlog
import trio

from clusterfs.errors import FilesystemError, NoSuchEntry
from clusterfs.fs.attributes import UNNAMED
from clusterfs.fs.gate import ShareWanted, Wants
from clusterfs.fs.inodes import Inode
from clusterfs.fs.keys import ORPHAN, ORPHAN_TRUNCATING, TRUNCATING
from clusterfs.fs.parts import Parts
from clusterfs.fs.truncation import Truncation
from clusterfs.store.objects import split_object_id

log = structlog.get_logger()

_ORPHANS = (ORPHAN, ORPHAN_TRUNCATING)
_AT_ONCE = 16  # reclaims that do I/O at a time; any number may wait for files to be closed


class Orphans:
    """Reclaims in the background."""

    def __init__(self, parts: Parts, truncation: Truncation) -> None:
        self._volume = parts.volume
        self._gate = parts.gate
        self._inodes = parts.inodes
        self._transactions = parts.transactions
        self._writeback = parts.writeback
        self._quotas = parts.quotas
        self._truncation = truncation
        self._limiter = trio.CapacityLimiter(_AT_ONCE)
        self._nursery: trio.Nursery | None = None
        self._queued: set[int] = set()
        self.reclaimed = 0

    def use(self, nursery: trio.Nursery) -> None:
        """Work in this nursery."""
        self._nursery = nursery

    def __len__(self) -> int:
        return len(self._queued)

    def queue(self, number: int, *, found: bool = False) -> None:
        """Reclaim an inode as soon as nobody has it open; `found`: by its mark."""
        assert self._nursery is not None
        if number not in self._queued:
            self._queued.add(number)
            self._nursery.start_soon(self._reclaim_queued, number, found)

    async def reclaim_marked(self, groups: Sequence[int]) -> int:
        """Finish what clients that are gone left in these groups; returns how much was found."""
        marked = await self._gate.run(partial(self._volume.marked, groups), internal=True)
        for object_id in marked:
            number, part = split_object_id(object_id)
            if not part:
                self.queue(number, found=True)
        return len(marked)

    async def _reclaim_queued(self, number: int, found: bool) -> None:  # noqa: FBT001  (a task's)
        try:
            await self._gate.run(partial(self.reclaim, number, found=found), internal=True)
        except FilesystemError as failure:
            log.warning("could not reclaim", inode=number, error=repr(failure))
        finally:
            self._queued.discard(number)

    async def reclaim(self, number: int, *, found: bool = False) -> None:
        """Wait until nobody has the inode open; delete it if it has no name.

        What was made without a name may still get one: as long as its maker is there it is not
        waited for, because that would keep others from opening it by that name.
        """
        inode = self._inodes.get(number)
        try:
            if await self._finish_truncation(inode):
                return
            if found and await self._belongs_to_its_maker(inode):
                return
            async with inode.open_lock.excluding():
                await self._delete_within_quota(inode)
        except NoSuchEntry:
            pass  # somebody else was faster
        self._inodes.forget(inode)

    async def _delete_within_quota(self, inode: Inode) -> None:
        """Delete it with what that needs of quotas.

        They are asked here, not by the gate: who has the file open, which was waited for, may wait
        for a quota.
        """
        wants = Wants()
        while True:
            try:
                await wants.run(partial(self._delete_locked, inode))
            except ShareWanted as wanted:
                wants.add(wanted)
            else:
                return

    async def _delete_locked(self, inode: Inode) -> None:
        async with self._limiter, inode.lock.excluding():
            await self._delete(inode)

    async def _finish_truncation(self, inode: Inode) -> bool:
        """Tell whether the inode has a name; then all there is to do is done."""
        async with inode.lock.sharing():
            record = await self._transactions.load(inode)
            if record.nlink and inode.mark is None:
                return True
            if inode.mark in _ORPHANS:
                return False
        async with inode.lock.excluding():
            await self._transactions.load(inode)
            if inode.mark == TRUNCATING:
                await self._truncation.finish(inode)
            return inode.mark not in _ORPHANS

    async def _belongs_to_its_maker(self, inode: Inode) -> bool:
        async with inode.lock.sharing():
            record = await self._transactions.load(inode)
        return bool(record.flags & UNNAMED) and self._volume.maker_is_present(inode.number)

    async def _delete(self, inode: Inode) -> None:
        record = await self._transactions.load(inode)
        if record.nlink:
            return
        with self._quotas.using(record.quota):
            self._writeback.abandon(inode)
            inode.committed_size = record.size = min(inode.committed_size, record.size)
            await self._truncation.delete(inode)
        self.reclaimed += 1
