"""fallocate: room at the end of a file, and holes and zeros within it.

Room is not reserved (credits give it when data is accepted), so growing is a truncate. Whatever a
call does, even nothing, counts as a change of the contents, as it does on other filesystems.
"""

from functools import partial

from clusterfs.errors import FileTooLarge, InvalidArgument, NotSupported
from clusterfs.fs.attributes import MAXIMUM_SIZE
from clusterfs.fs.files import Files
from clusterfs.fs.inodes import Inode
from clusterfs.fs.parts import Parts
from clusterfs.fs.results import Caller

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10  # of fallocate(2)


class Allocation:
    """Serves fallocate."""

    def __init__(self, parts: Parts, files: Files) -> None:
        self._files = files
        self._gate = parts.gate
        self._writeback = parts.writeback
        self._coherence = parts.coherence
        self._now_ns = parts.now_ns

    async def fallocate(
        self, handle: int, offset: int, length: int, mode: int, caller: Caller
    ) -> None:
        """Grow the file, or (PUNCH_HOLE, ZERO_RANGE) make a range read as zeros.

        Raises:
            InvalidArgument: no such range.
            NotSupported: another mode.
            FileTooLarge: beyond what a file can be.
        """
        opened = self._files.handles.file(handle)
        opened.require_alive()
        if offset < 0 or length <= 0:
            raise InvalidArgument
        if mode & ~(KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE):
            raise NotSupported
        if offset + length > MAXIMUM_SIZE:
            raise FileTooLarge
        await self._gate.run(partial(self._change, opened.inode, offset, length, mode, caller))

    async def _change(
        self, inode: Inode, offset: int, length: int, mode: int, caller: Caller
    ) -> None:
        truncation = self._files.truncation
        async with inode.lock.excluding():
            record = await self._files.load_for_change(inode)
            end, before_ns = offset + length, record.mtime_ns
            if mode & (PUNCH_HOLE | ZERO_RANGE):
                await truncation.zero(inode, offset, end, self._now_ns())
            if not mode & KEEP_SIZE and end > record.size:
                await truncation.truncate(inode, end, self._now_ns())
            assert inode.record is not None
            if inode.record.mtime_ns == before_ns:
                inode.record.touch(self._now_ns())
                self._writeback.mark_dirty(inode)
            self._files.changed_by(inode, lambda: caller)
        if inode.pages_possible:
            await self._coherence.drop_range(inode, offset, length)
