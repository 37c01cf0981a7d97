"""A file's size changed: shorter, longer, or with a hole punched.

Shrinking discards blocks and zeroes the rest of the last block, in the transaction that makes the
size smaller. When whole stripes go, the inode is marked TRUNCATING in that transaction and the
stripes are deleted afterwards; whoever next changes the inode finishes that first, so nothing comes
back when the file grows again. What deletes a stripe gives the inode a version beyond the
deletion's, from which the stripe goes on if it is made anew. Only stripes that exist are looked at:
a sparse file of 16 TiB costs no more than what was written to it.

The caller uses the inode exclusively and has loaded its record.
"""

from collections.abc import Sequence

from clusterfs.errors import FileTooLarge, InvalidArgument, WouldBlock
from clusterfs.fs.attributes import MAXIMUM_SIZE, blocks_of
from clusterfs.fs.gate import Attempt
from clusterfs.fs.inodes import Inode
from clusterfs.fs.keys import ORPHAN, ORPHAN_TRUNCATING, TRUNCATING
from clusterfs.fs.ports import Volume
from clusterfs.fs.transactions import Edit, Transactions
from clusterfs.fs.writeback import Writeback
from clusterfs.store.objects import (
    ABSENT,
    BLOCK_BYTES,
    STRIPE_BLOCKS,
    Change,
    Delete,
    Discard,
    Operation,
    Write,
)

_AT_ONCE = 32  # stripes deleted by one transaction


class Truncation:
    """Changes sizes."""

    def __init__(self, volume: Volume, transactions: Transactions, writeback: Writeback) -> None:
        self._volume = volume
        self._transactions = transactions
        self._writeback = writeback

    async def truncate(
        self,
        inode: Inode,
        size: int,
        now_ns: int,
        *,
        attempt: Attempt | None = None,
        **fields: int,
    ) -> None:
        """Give the file a size; `fields` of the record change with it."""
        record = inode.record
        assert record is not None
        if size < 0:
            raise InvalidArgument
        if size > MAXIMUM_SIZE:
            raise FileTooLarge
        fields = {"mtime_ns": now_ns, "ctime_ns": now_ns, **fields}
        if size >= record.size:
            await self._grow(inode, size, fields, attempt)
        else:
            await self._shrink(inode, size, fields, attempt)

    async def finish(self, inode: Inode) -> None:
        """Delete the stripes beyond the size of an inode that is marked TRUNCATING."""
        if inode.mark in (TRUNCATING, ORPHAN_TRUNCATING):
            async with inode.committing:
                await self._delete_stripes(inode, stripes_of(inode.committed_size))
                edit = Edit(inode)
                edit.mark = ORPHAN if inode.mark == ORPHAN_TRUNCATING else None
                await self._transactions.commit_holding([edit])

    async def delete(self, inode: Inode) -> None:
        """Delete an orphan and its data."""
        async with inode.committing:
            if inode.mark != ORPHAN or stripes_of(inode.committed_size) > 1:
                await self._delete_stripes(inode, 0)
            changes = await only_stripe_deleted(self._writeback, inode)
            edit = Edit(inode)
            edit.deletes = True
            await self._transactions.commit_holding([edit], changes)

    async def zero(self, inode: Inode, offset: int, end: int, now_ns: int) -> None:
        """Make bytes [offset, end) read as zeros and free the blocks; the size stays."""
        record = inode.record
        assert record is not None
        end = min(end, record.size)
        if offset >= end:
            return
        first, beyond = -(-offset // BLOCK_BYTES), end // BLOCK_BYTES
        if end == record.size:
            beyond = blocks_of(end)
        edges = [(offset, min(end, first * BLOCK_BYTES)), (max(offset, beyond * BLOCK_BYTES), end)]
        if first > beyond:
            edges = [(offset, end)]
        for start, stop in edges:
            if start < stop:
                await self._zero_edge(inode, start, stop, now_ns)
        await self._writeback.flush(inode)
        if first < beyond:
            freed = await self._discard(inode, first, beyond)
            record.blocks = max(0, record.blocks - freed)
        record.touch(now_ns)
        self._writeback.mark_dirty(inode)

    # -- longer

    async def _grow(
        self, inode: Inode, size: int, fields: dict[str, int], attempt: Attempt | None
    ) -> None:
        if inode.dirty or inode.flushing:
            await self._writeback.flush(inode)
        assert inode.record is not None
        edit = Edit(inode, inode.record.changed(size=size, **fields))
        edit.size = size
        await self._transactions.commit(edit, attempt=attempt)

    # -- shorter

    async def _shrink(
        self, inode: Inode, size: int, fields: dict[str, int], attempt: Attempt | None
    ) -> None:
        async with inode.committing:
            record = inode.record
            assert record is not None
            blocks = blocks_of(size)
            edit = Edit(inode)
            edit.record = record.changed(size=size, blocks=min(record.blocks, blocks), **fields)
            tail = await self._tail(inode, size)
            changes: list[Change] = []
            if inode.committed_size > size:
                edit.size = size
                changes = await self._cut(inode, size, tail, edit)
            written = any(isinstance(change.operations[-1], Write) for change in changes)
            await self._transactions.commit_holding(
                [edit], changes, tail if written else b"", attempt=attempt
            )
            self._writeback.drop(inode, blocks)
            if written:
                self._writeback.take(inode, size // BLOCK_BYTES)
            elif tail and size // BLOCK_BYTES in inode.dirty:
                inode.dirty[size // BLOCK_BYTES] = tail
            for change in changes:
                self._follow(inode, change)
        await self.finish(inode)

    async def _tail(self, inode: Inode, size: int) -> bytes:
        """Return what the last block must hold, if the size ends within it."""
        within = size % BLOCK_BYTES
        if not within:
            return b""
        index = size // BLOCK_BYTES
        block = self._writeback.overlay(inode, index)
        if block is None:
            block = await self._read_block(inode, index)
        return bytes(block[:within]) + bytes(BLOCK_BYTES - within)

    async def _cut(self, inode: Inode, size: int, tail: bytes, edit: Edit) -> list[Change]:
        """Return the changes of stripes that belong into the transaction."""
        kept, had = stripes_of(size), stripes_of(inode.committed_size)
        changes = []
        within = blocks_of(size) % STRIPE_BLOCKS
        if kept and (within or tail):
            stripe = inode.stripe(kept - 1)
            await self._writeback.know_version(stripe)
            operations: list[Operation] = []
            if within:
                operations.append(Discard(within, STRIPE_BLOCKS - within))
            if tail:
                operations.append(Write(_within(size), 1))
            if stripe.version != ABSENT or any(tail):
                changes.append(self._writeback.change(inode, stripe, operations))
        if had == kept + 1:
            stripe = inode.stripe(kept)
            await self._writeback.know_version(stripe)
            if stripe.version != ABSENT:
                changes.append(self._writeback.change(inode, stripe, [Delete()]))
                edit.beyond = changes[-1].version
        elif had > kept:
            edit.mark = ORPHAN_TRUNCATING if inode.mark == ORPHAN else TRUNCATING
        return changes

    def _follow(self, inode: Inode, change: Change) -> None:
        gone = isinstance(change.operations[-1], Delete)
        for stripe in inode.stripes.values():
            if stripe.object_id == change.object_id:
                stripe.version = ABSENT if gone else change.version

    async def _delete_stripes(self, inode: Inode, kept: int) -> None:
        numbers = [n for n, _, _ in await self._volume.stripes(inode.number) if n >= kept]
        for start in range(0, len(numbers), _AT_ONCE):
            changes = []
            for number in numbers[start : start + _AT_ONCE]:
                stripe = inode.stripe(number)
                stripe.version = None
                await self._writeback.know_version(stripe)
                if stripe.version != ABSENT:
                    changes.append(self._writeback.change(inode, stripe, [Delete()]))
            await self._commit_stripes(inode, changes)

    async def _commit_stripes(self, inode: Inode, changes: Sequence[Change]) -> None:
        """Commit changes of stripes; the inode's version passes those of what is deleted."""
        if not changes:
            return
        edits = []
        gone = [c.version for c in changes if isinstance(c.operations[-1], Delete)]
        if gone:
            edits.append(Edit(inode))
            edits[0].beyond = max(gone)
        await self._transactions.commit_holding(edits, changes)
        for change in changes:
            self._follow(inode, change)

    # -- holes

    async def _zero_edge(self, inode: Inode, start: int, stop: int, now_ns: int) -> None:
        index = start // BLOCK_BYTES
        old = {}
        for missing in self._writeback.missing_edges(inode, start, stop - start):
            old[missing] = await self._read_block(inode, missing)
        zeros = bytes(stop - start)
        if (
            index not in inode.dirty
            and index not in inode.flushing
            and not any(old.get(index, b""))
        ):
            return  # a hole already
        try:
            self._writeback.accept_nowait(inode, start, zeros, old, now_ns)
        except WouldBlock:
            await self._volume.reserve(BLOCK_BYTES)
            self._volume.unreserve(BLOCK_BYTES)
            self._writeback.accept_nowait(inode, start, zeros, old, now_ns)

    async def _discard(self, inode: Inode, first: int, beyond: int) -> int:
        """Make holes of whole blocks; returns how many were none."""
        freed = 0
        async with inode.committing:
            there = {n for n, _, _ in await self._volume.stripes(inode.number)}
            for number in sorted(there):
                base = number * STRIPE_BLOCKS
                start, stop = max(first, base), min(beyond, base + STRIPE_BLOCKS)
                if start < stop:
                    stripe = inode.stripe(number)
                    await self._writeback.know_version(stripe)
                    place = (stripe.object_id, stripe.group, start - base, stop - start)
                    freed += sum(count for _, count in await self._volume.extents(*place))
                    operations = [Discard(start - base, stop - start)]
                    change = self._writeback.change(inode, stripe, operations)
                    await self._commit_stripes(inode, [change])
        return freed

    async def _read_block(self, inode: Inode, index: int) -> bytes:
        stripe = inode.stripe(index // STRIPE_BLOCKS)
        place = (stripe.object_id, stripe.group, index % STRIPE_BLOCKS, 1)
        try:
            return self._volume.read_nowait(*place)
        except WouldBlock:
            return await self._volume.read(*place)


async def only_stripe_deleted(writeback: Writeback, inode: Inode) -> list[Change]:
    """Return the changes that delete the data of an inode of at most one stripe."""
    stripe = inode.stripe(0)
    await writeback.know_version(stripe)
    return [] if stripe.version == ABSENT else [writeback.change(inode, stripe, [Delete()])]


def stripes_of(size: int) -> int:
    """Return how many stripes a file of that size spans."""
    return -(-blocks_of(size) // STRIPE_BLOCKS)


def _within(size: int) -> int:
    """Return the block of its stripe in which byte `size` is."""
    return size // BLOCK_BYTES % STRIPE_BLOCKS
