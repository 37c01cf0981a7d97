"""Writes back what has been dirty for a while: what is small together, in one transaction.

A flush pins the lock of its inode and runs beside its users. Inodes of which little is dirty go
TOGETHER at a time, those of one group: a group's replicas are the same for all, so that is one
message to each. If such a transaction fails, each goes alone, and its failure is its own.
"""

from collections.abc import Sequence

import trio

from clusterfs.errors import FilesystemError, Unavailable
from clusterfs.fs.inodes import Inode
from clusterfs.fs.transactions import Edit, Transactions
from clusterfs.fs.writeback import Writeback
from clusterfs.store.objects import STRIPE_BLOCKS
from dlm.errors import LockLost

MAXIMUM_AGE_S = 1.0
TOGETHER = 64  # inodes in one transaction
SMALL_BLOCKS = 16  # of dirty data; an inode with more goes alone
_ROUND_S = 0.25


class Aging:
    """Looks for what is old."""

    def __init__(self, writeback: Writeback, transactions: Transactions) -> None:
        self._writeback = writeback
        self._transactions = transactions

    async def run(self) -> None:
        """Flush what is old, for ever."""
        while True:
            await trio.sleep(_ROUND_S)
            await self.flush_old(trio.current_time() - MAXIMUM_AGE_S)

    async def flush_old(self, until_s: float) -> None:
        """Flush what is dirty since `until_s` or longer."""
        small: dict[int, list[Inode]] = {}
        try:
            for inode in list(self._writeback.dirty):
                if inode.record is not None and inode.record.atomic_fsync:
                    continue  # fsync, another node or the last close will do it
                if inode.dirty_since_s > until_s or inode.kept is not None:
                    continue
                if _is_small(inode):
                    small.setdefault(inode.group, []).append(inode)
                else:
                    await self._flush_alone(inode)
            for inodes in small.values():
                for first in range(0, len(inodes), TOGETHER):
                    await self._flush_together(inodes[first : first + TOGETHER])
        except (LockLost, Unavailable):
            return

    async def _flush_alone(self, inode: Inode) -> None:
        if not inode.lock.pin_nowait():
            return
        try:
            self._writeback.dirty.pop(inode, None)
            await self._writeback.flush_quietly(inode)
        finally:
            self._flushed(inode)

    def _flushed(self, inode: Inode) -> None:
        if inode.needs_flush:
            self._writeback.mark_dirty(inode)
        inode.lock.unpin()

    async def _flush_together(self, inodes: Sequence[Inode]) -> None:
        """Commit small inodes of one group in one transaction; each alone if that fails."""
        taken: list[Inode] = []
        try:
            for inode in inodes:
                free = _is_small(inode) and not inode.committing.locked() and not inode.kept
                if free and inode.lock.pin_nowait():
                    taken.append(inode)
                    await inode.committing.acquire()  # free: that does not wait
                    self._writeback.dirty.pop(inode, None)
            await self._commit_together(taken)
        except (LockLost, Unavailable):
            raise
        except FilesystemError:
            pass
        finally:
            for inode in taken:
                inode.committing.release()
                self._flushed(inode)
        for inode in taken:
            if inode.needs_flush and inode.kept is None:
                await self._flush_alone(inode)

    async def _commit_together(self, inodes: Sequence[Inode]) -> None:
        for inode in inodes:
            if inode.dirty:
                await self._writeback.know_version(inode.stripe(0))
        chosen = [inode for inode in inodes if _is_small(inode)]  # some were written meanwhile
        if not chosen:
            return
        changes, edits, payload = [], [], []
        for inode in chosen:
            assert inode.record is not None
            assert not inode.flushing
            indexes = sorted(inode.dirty)
            if indexes:
                changes += self._writeback.changes(inode, [inode.stripe(0)], indexes)
                payload += [inode.dirty[index] for index in indexes]
            inode.flushing = dict(inode.dirty)
            inode.dirty.clear()
            edits.append(Edit(inode, inode.record))
            edits[-1].size = inode.record.size
        try:
            await self._transactions.commit_holding(edits, changes, b"".join(payload))
        except BaseException:
            for inode in chosen:
                self._writeback.put_back(inode)
            raise
        versions = {change.object_id: change.version for change in changes}
        for inode in chosen:
            if inode.flushing:
                stripe = inode.stripe(0)
                stripe.version = versions[stripe.object_id]
            self._writeback.settle(inode)


def _is_small(inode: Inode) -> bool:
    """Tell whether all that the store lacks of an inode fits into a transaction with others."""
    dirty, record = inode.dirty, inode.record
    if record is None or record.atomic_fsync or not inode.record_dirty or inode.flushing:
        return False
    return not dirty or (len(dirty) <= SMALL_BLOCKS and max(dirty) < STRIPE_BLOCKS)
