"""Dirty data: accepted into memory against space credits, committed to the replicas later.

Dirty data is kept as whole 4 KiB blocks: the edges of a write that fill no block are merged with
the old block when the write is accepted, so a flush only joins blocks. A flush takes the lowest
dirty blocks of one stripe, about BATCH_BLOCKS, moves them to `flushing` (reads still see them), and
commits them. What one write wrote is never split (`joined`), so each write is atomic whatever dies.
A file with atomic_fsync is committed only as a whole, and only when somebody asks: fsync, another
node, the last close.

A transaction that makes the file longer, or whose stripe is in the inode's group, carries the inode
record too, so no committed size ever covers data that is not committed, and bytes beyond the
committed size are zeros. The record's size follows the data batch by batch.

Flushes run at fsync, when the lock is given up, when too much is dirty, and after a while (see
aging.py). They pin the lock and run beside its users.
"""

from collections.abc import Iterable, Sequence

import trio

from clusterfs.errors import FilesystemError, FileTooLarge, Unavailable, WouldBlock
from clusterfs.fs.attributes import MAXIMUM_SIZE
from clusterfs.fs.endangered import Endangered
from clusterfs.fs.gate import ShareWanted
from clusterfs.fs.grid import MASK, SHIFT, Block, partial_blocks, place
from clusterfs.fs.inodes import Inode, Stripe
from clusterfs.fs.ports import Volume
from clusterfs.fs.quotas import Quotas
from clusterfs.fs.transactions import Edit, Transactions
from clusterfs.store.objects import (
    ABSENT,
    BLOCK_BYTES,
    STRIPE_BLOCKS,
    Change,
    Operation,
    Version,
    Write,
    joined,
)
from dlm.errors import LockLost

BATCH_BLOCKS = 512
CHAIN_BLOCKS = 4096  # writes that overlap each other's edges are one commit, up to about this
ATOMIC_BLOCKS = 8192  # of an atomic_fsync file between two fsyncs
MANY_INODES = 4096  # so many dirty ones should not become more for the sake of attributes


class Writeback:
    """All dirty data of this node."""

    def __init__(
        self,
        volume: Volume,
        transactions: Transactions,
        endangered: Endangered,
        quotas: Quotas,
        limit_bytes: int,
    ) -> None:
        self._volume = volume
        self._endangered = endangered
        self._quotas = quotas
        self._transactions = transactions
        self._limit_blocks = limit_bytes >> SHIFT
        self.dirty: dict[Inode, None] = {}  # inodes, the one that is dirty longest first
        self.dirty_blocks = 0
        self.flushed_blocks = 0
        self._credited = True  # False: this node is out, and what is dirty has no credits

    # -- accepting

    def accept_nowait(
        self, inode: Inode, offset: int, data: bytes, old: dict[int, bytes], now_ns: int
    ) -> None:
        """Take a write into memory; `old` holds edge blocks read before.

        Raises, with nothing changed:
            WouldBlock: an edge block must be read, or credits lack.
            ShareWanted: a quota has to be asked first.
        """
        record = inode.record
        assert record is not None
        end = offset + len(data)
        first, last = offset >> SHIFT, (end - 1) >> SHIFT
        dirty = inode.dirty
        edges: dict[int, bytearray] = {}
        if (offset | end) & MASK:
            for index in partial_blocks(offset, end):
                edges[index] = self._edge(inode, index, record.size, old)
        fresh = 0 if first == last and first in dirty else self._fresh(dirty, first, last)
        self._check_amount(inode, first, last, fresh)
        if fresh and not self._volume.reserve_nowait(fresh << SHIFT):
            raise WouldBlock
        if end > record.size and record.quota:
            try:
                self._quotas.charge_growth(record.quota, end - record.size)
            except ShareWanted:
                self._volume.unreserve(fresh << SHIFT)
                raise
        place(dirty, offset, memoryview(data), edges)
        if first < last:
            inode.joined.update(range(first + 1, last + 1))
        self.dirty_blocks += fresh
        record.size = max(record.size, end)
        record.mtime_ns = record.ctime_ns = now_ns
        record.blocks = min(record.blocks + fresh, (record.size + MASK) >> SHIFT)
        self.mark_dirty(inode)

    def accept_aside(self, inode: Inode, offset: int, data: bytes) -> None:
        """Keep page writeback that comes while this node is out; it is judged at readmission."""
        assert inode.kept is not None
        assert not offset & MASK
        padded = memoryview(data + bytes(-len(data) & MASK))
        for position in range(0, len(padded), BLOCK_BYTES):
            index = (offset + position) >> SHIFT
            self.dirty_blocks += index not in inode.dirty
            inode.dirty[index] = padded[position : position + BLOCK_BYTES]
        inode.record_dirty = True
        self._endangered.note(inode)
        self.dirty.setdefault(inode)

    def mark_dirty(self, inode: Inode) -> None:
        """Note that the record, at least, must be written back."""
        inode.record_dirty = True
        if inode not in self.dirty:
            self._endangered.note(inode)
            inode.dirty_since_s = trio.current_time()
            self.dirty[inode] = None

    def missing_edges(self, inode: Inode, offset: int, length: int) -> list[int]:
        """Return the blocks whose old content a write needs from the store."""
        assert inode.record is not None
        size = inode.record.size
        return [
            index
            for index in partial_blocks(offset, offset + length)
            if index << SHIFT < size and index not in inode.dirty and index not in inode.flushing
        ]

    @property
    def pressed(self) -> bool:
        """Whether so much is dirty that writers must wait."""
        return self.dirty_blocks > self._limit_blocks

    @property
    def crowded(self) -> bool:
        """Whether so many inodes are dirty that attributes had better not wait for writeback."""
        return len(self.dirty) >= MANY_INODES

    def _fresh(self, dirty: dict[int, Block], first: int, last: int) -> int:
        if not dirty:
            return last - first + 1
        return last - first + 1 - sum(map(dirty.__contains__, range(first, last + 1)))

    def _check_amount(self, inode: Inode, first: int, last: int, fresh: int) -> None:
        """Raise WouldBlock or FileTooLarge if one commit would be too much with these blocks."""
        assert inode.record is not None
        if inode.record.atomic_fsync:
            if len(inode.dirty) + fresh > ATOMIC_BLOCKS:
                raise FileTooLarge("an atomic_fsync file takes 32 MiB between two fsyncs")
        elif first < last and inode.joined:
            while first in inode.joined:
                first -= 1
            while last + 1 in inode.joined:
                last += 1
            if last - first > CHAIN_BLOCKS:
                raise WouldBlock

    def _edge(self, inode: Inode, index: int, size: int, old: dict[int, bytes]) -> bytearray:
        block = inode.dirty.get(index)
        if block is None:
            block = inode.flushing.get(index)
        if block is None:
            if index << SHIFT >= size:
                return bytearray(BLOCK_BYTES)
            block = old.get(index)
        if block is None:
            stripe, within = divmod(index, STRIPE_BLOCKS)
            place = inode.stripe(stripe)
            block = self._volume.read_nowait(place.object_id, place.group, within, 1)
        return bytearray(block)

    # -- reading over it

    def overlay(self, inode: Inode, index: int) -> Block | None:
        """Return a block that is newer here than in the store, or None."""
        block = inode.dirty.get(index)
        return block if block is not None else inode.flushing.get(index)

    # -- dropping

    def drop(self, inode: Inode, first: int = 0) -> None:
        """Forget dirty blocks from `first` on; they were truncated, or are lost."""
        gone = [index for index in inode.dirty if index >= first]
        for index in gone:
            del inode.dirty[index]
        self._give_back(len(gone))
        if not inode.dirty and not inode.record_dirty:
            self.dirty.pop(inode, None)

    def take(self, inode: Inode, index: int) -> Block | None:
        """Remove one dirty block and return it: its caller commits it."""
        block = inode.dirty.pop(index, None)
        if block is not None:
            self._give_back(1)
        return block

    def abandon(self, inode: Inode) -> None:
        """Drop everything that is dirty, and what the file grew by it."""
        record = inode.record
        if record is not None and record.quota and record.size > inode.committed_size:
            self._quotas.credit_growth(record.quota, record.size - inode.committed_size)
            record.size = inode.committed_size
        inode.record_dirty = False
        self.drop(inode)
        self.dirty.pop(inode, None)

    def _give_back(self, blocks: int) -> None:
        self.dirty_blocks -= blocks
        if blocks and self._credited:
            self._volume.unreserve(blocks << SHIFT)

    def lose_credits(self) -> None:
        """The incarnation that the credits were granted to is out."""
        if self._credited:
            self._volume.unreserve(self.dirty_blocks << SHIFT)
            self._credited = False

    async def regain_credits(self) -> None:
        """Take credits anew for what is dirty still. Raises OutOfSpace."""
        while not self._credited:
            taken = self.dirty_blocks
            await self._volume.reserve(taken << SHIFT)
            self._credited = taken == self.dirty_blocks
            if not self._credited:
                self._volume.unreserve(taken << SHIFT)

    # -- flushing

    async def flush(self, inode: Inode, *, durable: bool = False) -> bool:
        """Commit what was dirty when this was called; the lock is used, pinned or given up.

        durable: let the last transaction wait for the disks, too. Returns whether one did.
        """
        async with inode.committing:
            return await self.flush_holding(inode, durable=durable)

    async def flush_holding(self, inode: Inode, *, durable: bool = False) -> bool:
        """Flush; the caller holds `committing`."""
        waiting = sorted(inode.dirty)
        position = 0
        synced = False
        while position < len(waiting):
            batch = self._batch(inode, waiting, position)
            position = self._beyond(inode, waiting, position, batch)
            last = durable and position == len(waiting)
            synced = await self._commit_batch(inode, batch, durable=last)
        if inode.record_dirty and inode.record is not None and not inode.dirty:
            edit = Edit(inode, inode.record)
            edit.size = inode.record.size
            await self._transactions.commit_holding([edit], durable=durable)
            synced = durable
        if not inode.dirty:
            inode.joined.clear()
        if not inode.needs_flush:
            self.dirty.pop(inode, None)
        if waiting and not synced:
            self._endangered.note(inode)
        return synced

    def _beyond(
        self, inode: Inode, waiting: Sequence[int], position: int, batch: Sequence[int]
    ) -> int:
        """Return how far `waiting` is done with once `batch` is committed."""
        dirty, done = inode.dirty, set(batch)
        while position < len(waiting) and (
            waiting[position] in done or waiting[position] not in dirty
        ):
            position += 1
        return position

    async def flush_quietly(self, inode: Inode) -> None:
        """Flush without a caller to tell: a failure is kept for the next fsync."""
        try:
            await self.flush(inode)
        except (LockLost, Unavailable):
            raise
        except FilesystemError as failure:
            inode.write_error = failure

    def settle(self, inode: Inode) -> None:
        """What was on its way is in the replicas' memory."""
        moved, inode.flushing = inode.flushing, {}
        inode.joined.difference_update(moved.keys() - inode.dirty.keys())
        self.flushed_blocks += len(moved)
        self._give_back(len(moved))

    def _batch(self, inode: Inode, waiting: Sequence[int], position: int) -> list[int]:
        """Return which blocks to commit together; some may be before `position`, or gone."""
        if inode.record is not None and inode.record.atomic_fsync:
            return sorted(inode.dirty)
        limit = (waiting[position] // STRIPE_BLOCKS + 1) * STRIPE_BLOCKS
        batch = [n for n in waiting[position : position + BATCH_BLOCKS] if n < limit]
        return self._whole(inode, batch) if inode.joined else batch

    def _whole(self, inode: Inode, batch: Sequence[int]) -> list[int]:
        """Add what was written together with any of these blocks."""
        dirty, joined = inode.dirty, inode.joined
        whole = set(batch)
        for start in batch:
            index = start
            while index in joined and index - 1 in dirty and index - 1 not in whole:
                index -= 1
                whole.add(index)
            index = start + 1
            while index in joined and index in dirty and index not in whole:
                whole.add(index)
                index += 1
        return sorted(whole)

    async def _commit_batch(self, inode: Inode, batch: Sequence[int], *, durable: bool) -> bool:
        """Commit these blocks; tell whether that waited for the disks."""
        stripes = [inode.stripe(number) for number in sorted({n // STRIPE_BLOCKS for n in batch})]
        for stripe in stripes:
            await self.know_version(stripe)
        moved = {index: inode.dirty[index] for index in batch if index in inode.dirty}
        if not moved:
            return False
        assert not inode.flushing
        for index in moved:
            del inode.dirty[index]
        inode.flushing = moved
        try:
            synced = await self._commit_blocks(inode, stripes, moved, durable=durable)
        except BaseException:
            self.put_back(inode)
            raise
        self.settle(inode)
        return synced

    def put_back(self, inode: Inode) -> None:
        """A commit failed: its blocks are dirty again, where nothing newer is."""
        flushing, inode.flushing = inode.flushing, {}
        twice = 0
        for index, block in flushing.items():
            twice += index in inode.dirty
            inode.dirty.setdefault(index, block)
        self._give_back(twice)

    async def _commit_blocks(
        self, inode: Inode, stripes: Sequence[Stripe], moved: dict[int, Block], *, durable: bool
    ) -> bool:
        record = inode.record
        if record is None:
            raise LockLost
        indexes = sorted(moved)
        changes = self.changes(inode, stripes, indexes)
        covered = min(record.size, (indexes[-1] + 1) << SHIFT) if inode.dirty else record.size
        is_last = not inode.dirty and {stripe.group for stripe in stripes} == {inode.group}
        edits = []
        if covered > inode.committed_size or is_last or record.atomic_fsync:
            edits.append(Edit(inode, record))
            edits[0].size = max(covered, inode.committed_size)
        payload = b"".join([moved[index] for index in indexes])
        inode.attempted = {(change.object_id, change.version) for change in changes}
        durable = durable and bool(edits)  # else the record follows, and waits for the disks
        await self._transactions.commit_holding(edits, changes, payload, durable=durable)
        for stripe, change in zip(stripes, changes, strict=True):
            stripe.version = change.version
        return durable

    def changes(
        self, inode: Inode, stripes: Sequence[Stripe], indexes: Sequence[int]
    ) -> list[Change]:
        """Return a change for each stripe that writes those of the blocks that are in it."""
        within: dict[int, list[int]] = {stripe.number: [] for stripe in stripes}
        for index in indexes:
            within[index // STRIPE_BLOCKS].append(index % STRIPE_BLOCKS)
        return [
            self.change(
                inode,
                stripe,
                [Write(first, count) for first, count in joined(within[stripe.number])],
            )
            for stripe in stripes
        ]

    def change(self, inode: Inode, stripe: Stripe, operations: Iterable[Operation]) -> Change:
        """Return a change of a stripe whose version is known.

        One that is made anew goes on from the inode's version, which its deletion left behind: so
        no version of a stripe comes back, and the later of two copies has the higher one.
        """
        assert stripe.version is not None
        before = inode.version if stripe.version == ABSENT else stripe.version
        version: Version = before.after(self._volume.epoch)
        return Change(stripe.object_id, stripe.group, stripe.version, version, tuple(operations))

    async def know_version(self, stripe: Stripe) -> None:
        """Learn a stripe's version."""
        if stripe.version is None:
            try:
                version, _ = self._volume.fetch_nowait(stripe.object_id, stripe.group, ())
            except WouldBlock:
                version, _ = await self._volume.fetch(stripe.object_id, stripe.group, ())
            stripe.version = version


assert MAXIMUM_SIZE % BLOCK_BYTES == 0
