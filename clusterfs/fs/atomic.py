"""Atomic writes of many extents of many files: all of them take place, or none.

Between begin and commit, what is written through the handles of a transaction is staged here: other
handles do not see it, its own reads do. Commit uses all its files exclusively, turns the staged
writes into one transaction of the volume, and makes it durable. A handle that is closed, a program
that dies, a node that dies before that: nothing took place.

One handle begins a transaction; others join it by its number, which cannot be guessed. The model is
F2FS's atomic write (ioctls F2FS_IOC_START_ATOMIC_WRITE and so on, f2fs.rst), for several files.

Invariants:
  * a handle is in one transaction at most, and a transaction ends once;
  * what is staged is at most LIMIT_BYTES for each transaction.
"""

import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import NamedTuple

from clusterfs.errors import FileTooLarge, InvalidArgument, StaleHandle
from clusterfs.fs.attributes import MAXIMUM_SIZE, Record, blocks_of
from clusterfs.fs.grid import Block, partial_blocks, place
from clusterfs.fs.handles import Handles, OpenFile
from clusterfs.fs.inodes import Inode, exclude_all
from clusterfs.fs.parts import Parts
from clusterfs.fs.permissions import without_privileges
from clusterfs.fs.transactions import Edit
from clusterfs.store.objects import BLOCK_BYTES, STRIPE_BLOCKS, Change

LIMIT_BYTES = 32 << 20

LoadForChange = Callable[[Inode], Awaitable[Record]]


class Extent(NamedTuple):
    """One staged write."""

    offset: int
    data: bytes


class Staged:
    """One transaction that is being put together."""

    def __init__(self) -> None:
        self.number = secrets.randbits(63) | 1
        self.handles: set[OpenFile] = set()
        self.extents: dict[Inode, list[Extent]] = {}
        self.bytes = 0
        self.committing = False

    def write(self, inode: Inode, offset: int, data: bytes) -> int:
        """Stage a write. Raises FileTooLarge beyond LIMIT_BYTES, InvalidArgument."""
        if self.committing or offset < 0:
            raise InvalidArgument
        if offset + len(data) > MAXIMUM_SIZE or self.bytes + len(data) > LIMIT_BYTES:
            raise FileTooLarge("an atomic transaction stages at most 32 MiB")
        self.extents.setdefault(inode, []).append(Extent(offset, data))
        self.bytes += len(data)
        return len(data)

    def overlay(self, inode: Inode, offset: int, size: int, stored: bytes) -> bytes:
        """Return what a read through one of the handles sees."""
        extents = self.extents.get(inode)
        if not extents:
            return stored
        end = min(offset + size, max(e.offset + len(e.data) for e in extents))
        seen = bytearray(max(len(stored), end - offset))
        seen[: len(stored)] = stored
        for extent in extents:
            first = max(offset, extent.offset)
            beyond = min(offset + len(seen), extent.offset + len(extent.data))
            if first < beyond:
                seen[first - offset : beyond - offset] = extent.data[
                    first - extent.offset : beyond - extent.offset
                ]
        return bytes(seen)


class AtomicWrites:
    """The transactions of this mount."""

    def __init__(self, parts: Parts, handles: Handles, load_for_change: LoadForChange) -> None:
        self._volume = parts.volume
        self._gate = parts.gate
        self._transactions = parts.transactions
        self._writeback = parts.writeback
        self._coherence = parts.coherence
        self._now_ns = parts.now_ns
        self._handles = handles
        self._endangered = parts.endangered
        self._load_for_change = load_for_change
        self._staged: dict[int, Staged] = {}
        self.commits = self.aborts = 0

    def begin(self, handle: int) -> int:
        """Begin a transaction with this handle in it; returns its number."""
        opened = self._joinable(handle)
        staged = Staged()
        self._staged[staged.number] = staged
        self._enter(opened, staged)
        return staged.number

    def join(self, handle: int, number: int) -> None:
        """Take one more handle into a transaction."""
        staged = self._staged.get(number)
        if staged is None or staged.committing:
            raise InvalidArgument("no such transaction")
        self._enter(self._joinable(handle), staged)

    async def commit(self, handle: int) -> None:
        """Make everything staged happen, durably, and end the transaction.

        Raises:
            InvalidArgument: the handle is in no transaction.
            OutOfSpace: nothing happened.
            StaleHandle: another node changed one of the files while this one was out; nothing
                happened.
        """
        staged = self._of(handle)
        if staged.committing:
            raise InvalidArgument
        staged.committing = True
        try:
            if staged.extents:
                await self._gate.run(partial(self._commit, staged))
                await self._gate.run(self._volume.sync)
            self.commits += 1
        finally:
            self._end(staged)

    def abort(self, handle: int) -> None:
        """Forget everything staged, and end the transaction."""
        staged = self._of(handle)
        if staged.committing:
            raise InvalidArgument
        self._end(staged)
        self.aborts += 1

    def released(self, opened: OpenFile) -> None:
        """Abort what a closed handle was in."""
        staged = opened.staged
        if staged is not None and not staged.committing:
            self._end(staged)
            self.aborts += 1

    def _joinable(self, handle: int) -> OpenFile:
        opened = self._handles.file(handle)
        opened.require_alive()
        if not opened.writable or opened.append or opened.staged is not None:
            raise InvalidArgument
        return opened

    def _of(self, handle: int) -> Staged:
        staged = self._handles.file(handle).staged
        if staged is None:
            raise InvalidArgument("the handle is in no transaction")
        return staged

    def _enter(self, opened: OpenFile, staged: Staged) -> None:
        self._endangered.stage(opened, staged)
        staged.handles.add(opened)

    def _end(self, staged: Staged) -> None:
        for opened in staged.handles:
            self._endangered.stage(opened, None)
        del self._staged[staged.number]

    # -- commit

    async def _commit(self, staged: Staged) -> None:
        inodes = sorted(staged.extents, key=lambda inode: inode.number)
        async with AsyncExitStack() as stack:
            await exclude_all(stack, inodes)
            if any(opened.dead for opened in staged.handles):
                raise StaleHandle("the file changed while this node was out of the cluster")
            for inode in inodes:
                await self._load_for_change(inode)
                await self._writeback.flush(inode)
                await stack.enter_async_context(inode.committing)
            await self._commit_files(staged, inodes)
        for inode in inodes:
            if inode.pages_possible:
                for extent in staged.extents[inode]:
                    await self._coherence.drop_range(inode, extent.offset, len(extent.data))

    async def _commit_files(self, staged: Staged, inodes: Sequence[Inode]) -> None:
        privileged = {opened.inode for opened in staged.handles if opened.privileged}
        edits: list[Edit] = []
        changes: list[Change] = []
        payload: list[Block] = []
        for inode in inodes:
            blocks = await self._merged(inode, staged.extents[inode])
            indexes = sorted(blocks)
            stripes = [inode.stripe(n) for n in sorted({n // STRIPE_BLOCKS for n in indexes})]
            for stripe in stripes:
                await self._writeback.know_version(stripe)
            changes += self._writeback.changes(inode, stripes, indexes)
            payload += [blocks[index] for index in indexes]
            edits.append(self._edit(inode, staged.extents[inode], len(blocks)))
            if inode not in privileged:
                record = edits[-1].record
                assert record is not None
                record.mode = without_privileges(record.mode)
        joined = b"".join(payload)
        await self._volume.reserve(len(joined))
        try:
            await self._transactions.commit_holding(edits, changes, joined)
        finally:
            self._volume.unreserve(len(joined))
        by_object = {change.object_id: change.version for change in changes}
        for inode in inodes:
            for stripe in inode.stripes.values():
                stripe.version = by_object.get(stripe.object_id, stripe.version)

    async def _merged(self, inode: Inode, extents: Iterable[Extent]) -> dict[int, Block]:
        """Return whole blocks: the staged writes, in order, over what is stored."""
        blocks: dict[int, Block] = {}
        for extent in extents:
            edges: dict[int, bytearray] = {}
            for index in partial_blocks(extent.offset, extent.offset + len(extent.data)):
                known = blocks.get(index)
                edges[index] = bytearray(known or await self._stored(inode, index))
            place(blocks, extent.offset, memoryview(extent.data), edges)
        return blocks

    async def _stored(self, inode: Inode, index: int) -> bytes:
        record = inode.record
        assert record is not None
        if index * BLOCK_BYTES >= record.size:
            return bytes(BLOCK_BYTES)
        stripe = inode.stripe(index // STRIPE_BLOCKS)
        return await self._volume.read(stripe.object_id, stripe.group, index % STRIPE_BLOCKS, 1)

    def _edit(self, inode: Inode, extents: Iterable[Extent], written: int) -> Edit:
        record = inode.record
        assert isinstance(record, Record)
        size = max(record.size, *(e.offset + len(e.data) for e in extents))
        now_ns = self._now_ns()
        changed = record.changed(
            size=size,
            mtime_ns=now_ns,
            ctime_ns=now_ns,
            blocks=min(record.blocks + written, blocks_of(size)),
        )
        edit = Edit(inode, changed)
        edit.size = size
        return edit
