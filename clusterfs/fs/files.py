"""Open files: open, read, write, fsync, release.

With the lock held, read and write do not await: two comparisons, then dirty blocks and the local
store. All else is the slow path, inside the gate, run again if this node was lost.

Handles opened for writing are direct_io, so the kernel's page cache is filled by read-only handles
and by mmap. A READ that fills it (`page_io`) has its pages locked by the kernel until it is
answered: while it waits it is registered (`parking`), so that giving up the lock works around it.
While this node has a writable handle, shared writable mappings may store into cached pages without
a word, so cached READs then take EX.
"""

import os
from functools import partial

import trio.lowlevel

from clusterfs.errors import (
    FilesystemError,
    FileTooLarge,
    InvalidArgument,
    IsADirectory,
    StaleHandle,
    Unavailable,
    WouldBlock,
)
from clusterfs.fs import asking
from clusterfs.fs.atomic import AtomicWrites
from clusterfs.fs.attributes import MAXIMUM_SIZE, Record
from clusterfs.fs.gate import Attempt, ShareWanted
from clusterfs.fs.grid import Block
from clusterfs.fs.handles import Handles, OpenFile
from clusterfs.fs.inodes import Inode
from clusterfs.fs.keys import ORPHAN
from clusterfs.fs.locks import EX, PR
from clusterfs.fs.parts import Parts
from clusterfs.fs.permissions import has_privileges, mode_after_change
from clusterfs.fs.pieces import cut, pieces_of
from clusterfs.fs.results import Caller, Opened, Writer
from clusterfs.fs.seeking import Seeking
from clusterfs.fs.truncation import Truncation
from clusterfs.store.objects import BLOCK_BYTES, STRIPE_BLOCKS
from dlm.errors import LockLost

_AT_REST = (None, ORPHAN)  # marks that a writer need not care about


class Files:
    """What can be done with files that have a handle."""

    def __init__(self, parts: Parts) -> None:
        self.handles = Handles(parts.endangered)
        self._endangered = parts.endangered
        self.atomic = AtomicWrites(parts, self.handles, self.load_for_change)
        self.truncation = Truncation(parts.volume, parts.transactions, parts.writeback)
        self.fast_reads = self.slow_reads = 0
        self.fast_writes = self.slow_writes = 0
        self._pieces = partial(pieces_of, parts.writeback.overlay)
        self._seeking = Seeking(parts)
        self._volume = parts.volume
        self._gate = parts.gate
        self._inodes = parts.inodes
        self._transactions = parts.transactions
        self._writeback = parts.writeback
        self._coherence = parts.coherence
        self._access_times = parts.access_times
        self._now_ns = parts.now_ns

    # -- open, release

    async def hold_open(self, inode: Inode) -> None:
        """Share the open lock: while anybody does, the inode is not reclaimed."""
        if not inode.open_lock.join_nowait():
            await inode.open_lock.wait_shared()

    async def open(self, attempt: Attempt, number: int, flags: int, caller: Caller) -> Opened:
        """Open a file that exists."""
        inode = self._inodes.get(number)
        await self.hold_open(inode)
        try:
            await self._check_openable(inode)
            if flags & os.O_TRUNC and not await self._transactions.settle(attempt):
                await self._truncate_opened(attempt, inode, caller)
            return await self.opened(inode, flags, caller)
        except BaseException:
            inode.open_lock.release()
            raise

    async def _check_openable(self, inode: Inode) -> None:
        async with inode.lock.sharing():
            record = await self._transactions.load(inode)
            if record.is_directory:
                raise IsADirectory

    async def opened(self, inode: Inode, flags: int, caller: Caller) -> Opened:
        """Make a handle for an inode whose open lock is shared for it."""
        opened = self.handles.open_file(inode, flags, privileged=caller.uid == 0)
        try:
            if opened.writable and inode.pages_possible:
                async with inode.lock.excluding():
                    await self._coherence.drop_pages(inode)
        except BaseException:
            self.handles.close(opened.handle)
            raise
        return self.told(opened)

    def told(self, opened: OpenFile) -> Opened:
        """Return what the kernel is told of a new handle."""
        keep = not opened.writable and opened.inode.pages_possible
        return Opened(opened.handle, direct_io=opened.direct_io, keep_cache=keep)

    async def release(self, handle: int) -> Inode | None:
        """Close a handle."""
        opened = self.handles.close(handle)
        if not isinstance(opened, OpenFile):
            return None
        self.atomic.released(opened)
        await self._settle_closed(opened)
        opened.inode.open_lock.release()
        return opened.inode

    async def _settle_closed(self, opened: OpenFile) -> None:
        """Commit an atomic_fsync file whose last writer is gone: nobody else will."""
        inode = opened.inode
        record = inode.record
        if inode.writers or record is None or not record.atomic_fsync or not inode.needs_flush:
            return
        try:
            await self._gate.run(partial(self.write_back, inode))
        except FilesystemError as failure:
            inode.write_error = failure

    # -- read

    def read_nowait(self, handle: int, offset: int, size: int, *, page_io: bool = False) -> bytes:
        """Read if that needs no waiting. Raises WouldBlock."""
        opened = self.handles.file(handle)
        inode = opened.inode
        lock = inode.lock
        if opened.staged is not None or (page_io and inode.writers):
            raise WouldBlock
        if not self._gate.passable() or not lock.shared_nowait():
            raise WouldBlock
        try:
            if inode.record is None:
                raise WouldBlock
            data = self._read_nowait(inode, inode.record, offset, size)
            inode.pages_possible |= page_io
            if opened.noted:
                self._access_times.note(inode)
        finally:
            lock.release()
        self.fast_reads += 1
        return data

    async def read(self, handle: int, offset: int, size: int, *, page_io: bool = False) -> bytes:
        """Return what is at `offset`: `size` bytes, or fewer at the end of the file.

        `page_io`: it fills the page cache.
        """
        opened = self.handles.file(handle)
        inode = opened.inode
        self.slow_reads += 1
        operation = partial(self._read, opened, offset, size, cached=page_io)
        if not page_io:
            data = await self._gate.run(operation, rerun=True)
            staged = opened.staged
            return data if staged is None else staged.overlay(inode, offset, size, data)
        asking.changing()  # a mapping that cannot be read is a SIGBUS
        with inode.parking(offset, size):
            return await self._gate.run(operation, rerun=True)

    async def _read(self, opened: OpenFile, offset: int, size: int, *, cached: bool) -> bytes:
        inode = opened.inode
        lock = inode.lock
        while True:
            level = EX if cached and inode.writers else PR
            await lock.wait_shared(level)
            asker = lock.enter_use()
            try:
                record = await self._transactions.load(inode)
                stamp = lock.stamp
                data = await self._read_waiting(inode, record, offset, size)
                if lock.stamp != stamp:
                    raise LockLost
                if cached and inode.writers and level < EX:
                    continue  # opened to write meanwhile: the page could be changed unheard
                inode.pages_possible |= cached
                if opened.noted:
                    self._access_times.note(inode)
                return data
            finally:
                lock.leave_use(asker)
                lock.release()

    def _read_nowait(self, inode: Inode, record: Record, offset: int, size: int) -> bytes:
        end = min(offset + size, record.size)
        if offset >= end:
            return b""
        pieces = [
            piece.newer or self._volume.read_nowait(*piece.place(inode))
            for piece in self._pieces(inode, offset, end)
        ]
        return cut(pieces, offset % BLOCK_BYTES, end - offset)

    async def _read_waiting(self, inode: Inode, record: Record, offset: int, size: int) -> bytes:
        end = min(offset + size, record.size)
        if offset >= end:
            return b""
        pieces: list[Block] = []
        for piece in self._pieces(inode, offset, end):
            try:
                pieces.append(piece.newer or self._volume.read_nowait(*piece.place(inode)))
            except WouldBlock:
                with asking.interruptibly():
                    pieces.append(await self._volume.read(*piece.place(inode)))
        return cut(pieces, offset % BLOCK_BYTES, end - offset)

    async def read_held(self, inode: Inode, offset: int, size: int) -> bytes:
        """Return what is there; the caller uses the inode and has loaded its record."""
        assert inode.record is not None
        return await self._read_waiting(inode, inode.record, offset, size)

    # -- write

    def write_nowait(
        self,
        handle: int,
        offset: int,
        data: bytes,
        *,
        page_io: bool = False,
        by_root: bool = True,
        append: bool | None = None,
    ) -> int:
        """Write if that needs no waiting. Raises WouldBlock, with nothing done.

        `by_root`: a setuid file stays one. `append`: whether the handle has O_APPEND now.
        """
        opened = self.handles.file(handle)
        opened.require_alive()
        if append is not None and not page_io:
            opened.append = append
        inode = opened.inode
        if opened.staged is not None and not page_io:
            return opened.staged.write(inode, offset, data)
        if (
            page_io
            or inode.pages_possible
            or self._writeback.pressed
            or not self._gate.passable()
            or not data
            or not self._write_nowait(opened, offset, data, by_root=by_root)
        ):
            raise WouldBlock
        return len(data)

    async def write(
        self,
        handle: int,
        offset: int,
        data: bytes,
        *,
        page_io: bool = False,
        who: Writer = Caller,
    ) -> int:
        """Write; O_APPEND handles write at the true end. Returns len(data).

        `page_io`: it is writeback of the page cache, which never waits for a lock to come back.
        """
        opened = self.handles.file(handle)
        opened.require_alive()
        if not data:
            return 0
        inode = opened.inode
        if opened.staged is not None and not page_io:
            return opened.staged.write(inode, offset, data)
        self.slow_writes += 1
        if page_io:
            asking.changing()  # the page cache took it already
            await self._write_pages(opened, offset, data)
        else:
            await self._gate.run(partial(self._write, opened, offset, data, who))
        asking.changing()
        if self._writeback.pressed:
            await self._relieve(inode)
        if inode.pages_possible and not page_io:
            # A cached read may have filled a page with the old data just before this write.
            await self._coherence.drop_range(inode, offset, len(data))
        return len(data)

    def _write_nowait(self, opened: OpenFile, offset: int, data: bytes, *, by_root: bool) -> bool:
        inode = opened.inode
        lock = inode.lock
        if not lock.exclusive_nowait():
            return False
        try:
            record = inode.record
            if record is None or inode.mark not in _AT_REST:
                return False
            if not by_root and has_privileges(record.mode):
                return False
            self._accept(opened, offset, data, {})
            self.fast_writes += 1
        except (WouldBlock, ShareWanted):
            return False
        finally:
            lock.release()
        return True

    async def _write(self, opened: OpenFile, offset: int, data: bytes, who: Writer) -> None:
        inode = opened.inode
        async with inode.lock.excluding():
            opened.require_alive()
            await self.load_for_change(inode)
            await self._accept_waiting(opened, offset, data)
            self.changed_by(inode, who)

    async def _write_pages(self, opened: OpenFile, offset: int, data: bytes) -> None:
        """Take page writeback: whoever drops these pages waits for it, so it never stalls."""
        inode = opened.inode
        while True:
            if self._gate.closed:
                if inode.kept is None:
                    raise StaleHandle("page writeback without a lock")
                self._writeback.accept_aside(inode, offset, data)
                return
            try:
                await inode.lock.wait_writeback()
            except LockLost:
                await trio.lowlevel.checkpoint()
                continue
            asker = inode.lock.enter_use()
            try:
                record = await self.load_for_change(inode)
                clipped = data[: max(0, record.size - offset)]
                if clipped:
                    await self._accept_waiting(opened, offset, clipped, append=False)
            except LockLost:
                continue
            finally:
                inode.lock.leave_use(asker)
                inode.lock.release()
            return

    async def load_for_change(self, inode: Inode) -> Record:
        """Load the record of an exclusively used inode; finish what its last user left undone."""
        record = await self._transactions.load(inode)
        if inode.mark not in _AT_REST:
            await self.truncation.finish(inode)
            record = await self._transactions.load(inode)
        return record

    async def _accept_waiting(
        self, opened: OpenFile, offset: int, data: bytes, *, append: bool = True
    ) -> None:
        inode = opened.inode
        old: dict[int, bytes] = {}
        while True:
            try:
                self._accept(opened, offset, data, old, append=append)
            except WouldBlock:
                await self._make_way(opened, offset, len(data), old)
                inode.lock.require(EX)
            else:
                return

    async def _make_way(
        self, opened: OpenFile, offset: int, length: int, old: dict[int, bytes]
    ) -> None:
        """Read the edge blocks that a write needs; else wait for space credits."""
        inode = opened.inode
        assert inode.record is not None
        start = inode.record.size if opened.append else offset
        missing = [
            index
            for index in self._writeback.missing_edges(inode, start, length)
            if index not in old
        ]
        for index in missing:
            stripe = inode.stripe(index // STRIPE_BLOCKS)
            place = (stripe.object_id, stripe.group, index % STRIPE_BLOCKS, 1)
            with asking.interruptibly():
                old[index] = await self._volume.read(*place)
        if not missing:
            if not inode.record.atomic_fsync:
                await self._writeback.flush(inode)
            room = (length + 2 * BLOCK_BYTES) & -BLOCK_BYTES
            with asking.interruptibly():
                await self._volume.reserve(room)
            self._volume.unreserve(room)  # taken again, to the block, without an await between

    async def write_held(self, opened: OpenFile, offset: int, data: bytes) -> None:
        """Take a write; the caller uses the inode exclusively and has loaded its record."""
        await self._accept_waiting(opened, offset, data, append=False)

    def _accept(
        self,
        opened: OpenFile,
        offset: int,
        data: bytes,
        old: dict[int, bytes],
        *,
        append: bool = True,
    ) -> None:
        inode = opened.inode
        record = inode.record
        assert record is not None
        if append and opened.append:
            offset = record.size
        if offset < 0:
            raise InvalidArgument
        if offset + len(data) > MAXIMUM_SIZE:
            raise FileTooLarge
        self._writeback.accept_nowait(inode, offset, data, old, self._now_ns())

    def changed_by(self, inode: Inode, who: Writer) -> None:
        """Take setuid and setgid from an inode that is used exclusively, if the writer must."""
        record = inode.record
        assert record is not None
        if has_privileges(record.mode):
            mode = mode_after_change(record, who())
            if mode != record.mode:
                record.mode = mode
                self._writeback.mark_dirty(inode)

    async def _relieve(self, inode: Inode) -> None:
        """Too much is dirty: whoever writes helps to write back."""
        kept = inode.record is not None and inode.record.atomic_fsync
        if not kept and inode.lock.pin_nowait():
            try:
                await self._writeback.flush_quietly(inode)
            except (LockLost, Unavailable):
                pass  # it is kept aside until readmission
            finally:
                inode.lock.unpin()

    # -- fsync, seek

    async def fsync(self, handle: int) -> None:
        """Make what was written durable. Raises what went wrong with it since the last time."""
        opened = self.handles.file(handle)
        opened.require_alive()
        await self._gate.run(partial(self.sync_inode, opened.inode))
        opened.require_alive()
        failure, opened.inode.write_error = opened.inode.write_error, None
        if failure is not None:
            raise failure

    async def sync_inode(self, inode: Inode) -> None:
        """Write back what is dirty, and wait for the disks: in one round trip if need be."""
        synced = await self.write_back(inode, durable=True)
        sync = partial(self._volume.sync, (inode.number,))
        await self._endangered.make_safe(inode, None if synced else sync)

    async def write_back(self, inode: Inode, *, durable: bool = False) -> bool:
        """Commit what is dirty now to the replicas' memory.

        durable: to their disks, if one transaction does it; returns whether it did.
        """
        while inode.needs_flush:
            inode.lock.require(EX)
            if inode.lock.pin_nowait():
                try:
                    return await self._writeback.flush(inode, durable=durable)
                finally:
                    inode.lock.unpin()
            await inode.lock.wait_settled()
        return False

    async def seek(self, handle: int, offset: int, whence: int) -> int:
        """Return where data or a hole begins (lseek's SEEK_DATA, SEEK_HOLE)."""
        inode = self.handles.file(handle).inode
        return await self._gate.run(partial(self._seeking.seek, inode, offset, whence), rerun=True)

    async def _truncate_opened(self, attempt: Attempt, inode: Inode, caller: Caller) -> None:
        async with inode.lock.excluding():
            record = await self.load_for_change(inode)
            mode = mode_after_change(record, caller)
            await self.truncation.truncate(inode, 0, self._now_ns(), attempt=attempt, mode=mode)
