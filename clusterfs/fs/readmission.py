"""This node was removed from the cluster, and comes back: what survives, and what is dead.

`lose` voids every lock and everything cached; what is dirty is set aside with the versions that it
is based on. The kernel's caches are emptied meanwhile. `readmit` takes the open locks of all open
files again and compares versions: if another node changed a file for which there is dirty data, or
a handle that may write, those handles are dead (StaleHandle at the next write and fsync), for two
machines must not both believe that they own an image. So are those of a file with locks that others
have had meanwhile. All else goes on.

A transaction that was under way has an unknown outcome; its versions are in `attempted`, so finding
them in the store means that it took place.
"""

import structlog
import trio

from clusterfs.errors import FilesystemError, NoSuchEntry, OutOfSpace, Unavailable
from clusterfs.fs.file_locks import FileLocks
from clusterfs.fs.inodes import Inode, Kept
from clusterfs.fs.parts import Parts
from clusterfs.fs.ports import Lockspace
from clusterfs.store.objects import ObjectId, Version, stripe_object
from dlm.errors import LockLost

log = structlog.get_logger()


class Readmission:
    """Takes this node out, and in again."""

    def __init__(self, parts: Parts, file_locks: FileLocks) -> None:
        self._file_locks = file_locks
        self._gate = parts.gate
        self._volume = parts.volume
        self._locks = parts.locks
        self._inodes = parts.inodes
        self._transactions = parts.transactions
        self._writeback = parts.writeback
        self._coherence = parts.coherence
        self._endangered = parts.endangered
        self._nursery: trio.Nursery | None = None
        self._dropped = trio.Event()
        self._dropped.set()
        self.dead_handles = 0

    def use(self, nursery: trio.Nursery) -> None:
        """Work in this nursery."""
        self._nursery = nursery

    def lose(self) -> None:
        """This node is out: stall everything, forget everything."""
        assert self._nursery is not None
        self._gate.close()
        self._writeback.lose_credits()
        for inode in self._inodes:
            inode.set_aside(self._volume.epoch)
        self._locks.lose()
        if self._dropped.is_set():
            self._dropped = trio.Event()
            self._nursery.start_soon(self._drop, self._dropped)

    async def wait_dropped(self) -> None:
        """Wait until the kernel has nothing cached that was true only before."""
        await self._dropped.wait()

    async def readmit(self, lockspace: Lockspace) -> None:
        """This node is a member again: take up what can be taken up, then serve.

        Raises LockLost if it was lost once more meanwhile.
        """
        await self._dropped.wait()
        generation = self._gate.generation
        await self._regain_credits()
        self._locks.readmit(lockspace)
        await self._file_locks.readmit()
        for inode in self._inodes:
            if inode.opened or inode.kept or inode.needs_flush:
                await self._take_up(inode)
            if self._gate.generation != generation:
                raise LockLost
        self._gate.open()

    async def take_over(self, epoch: int, *, clean: bool) -> bool:
        """Take up the handles of the process that served this mount before; then serve.

        clean: it had given up its locks in good order; else it was lost in view `epoch`, and a
        change in a later one is a takeover. Returns False early if this node is lost meanwhile.
        """
        try:
            await self._file_locks.readmit()
            for inode in self._inodes:
                if inode.opened:
                    inode.pages_possible = True  # the kernel may have some that the other one left
                    inode.lost_epoch = None if clean or not inode.writers else epoch
                    await self._take_up(inode)
        except LockLost:
            return False  # a readmission takes up all of them
        return True

    async def _drop(self, dropped: trio.Event) -> None:
        await self._coherence.drop_everything(self._inodes)
        dropped.set()

    async def _regain_credits(self) -> None:
        try:
            await self._writeback.regain_credits()
        except OutOfSpace:
            for inode in self._inodes:
                if inode.dirty or inode.flushing:
                    async with inode.committing:
                        self._kill(inode, everybody=False)
            await self._writeback.regain_credits()

    async def _take_up(self, inode: Inode) -> None:
        if inode.opened:
            await inode.open_lock.wait_shared()
            inode.open_lock.release()
        try:
            if inode.kept is None:
                async with inode.lock.sharing():
                    await self._transactions.load(inode)
                self._judge_unknown(inode)
            else:
                async with inode.lock.excluding(), inode.committing:
                    await self._judge(inode, inode.kept)
                    inode.kept = None
        except Unavailable:
            raise LockLost from None
        except FilesystemError as failure:  # it is gone, or cannot be read: others go on
            if not isinstance(failure, NoSuchEntry):
                log.warning("not taken up again", inode=inode.number, reason=repr(failure))
            inode.kept = None
            self._kill(inode, everybody=True)

    def _judge_unknown(self, inode: Inode) -> None:
        """Others had the file when this node was lost: a change in a later view is a takeover."""
        if inode.lost_epoch is not None and inode.version.epoch > inode.lost_epoch:
            self._kill(inode, everybody=False)
        inode.lost_epoch = None

    async def _judge(self, inode: Inode, kept: Kept) -> None:
        """Keep what is dirty if it is based on what the store has."""
        record = await self._transactions.reload(inode)
        if not await self._unchanged(inode, kept, inode.attempted):
            self._kill(inode, everybody=False)
        elif inode.needs_flush:
            record.size = max(record.size, kept.record.size)
            for name in ("mode", "uid", "gid", "atime_ns", "mtime_ns", "ctime_ns"):
                setattr(record, name, getattr(kept.record, name))
            record.blocks = max(record.blocks, kept.record.blocks)
            self._writeback.mark_dirty(inode)
        inode.attempted = set()

    async def _unchanged(
        self, inode: Inode, kept: Kept, attempted: set[tuple[ObjectId, Version]]
    ) -> bool:
        """Tell whether what the dirty data is based on is what the store has."""
        if inode.version != kept.version and (inode.object_id, inode.version) not in attempted:
            return False
        for number, known in kept.stripes.items():
            stripe = inode.stripe(number)
            await self._writeback.know_version(stripe)
            if (
                stripe.version != known
                and (stripe_object(inode.number, number), stripe.version) not in attempted
            ):
                return False
        return True

    def _kill(self, inode: Inode, *, everybody: bool) -> None:
        """The file changed: what is dirty is lost, and its writers are told."""
        self._writeback.abandon(inode)
        for opened in inode.opened:
            if (opened.writable or everybody) and not opened.dead:
                self._endangered.kill(opened)
                self.dead_handles += 1
