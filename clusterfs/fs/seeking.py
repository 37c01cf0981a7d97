"""Where a sparse file has data, and where it has none: lseek's SEEK_DATA and SEEK_HOLE.

A block counts as data if it is dirty here or stored; the end of the file is a hole. Only stripes
that exist are looked at, so a sparse file of 16 TiB costs no more than what was written to it.
"""

from collections.abc import Iterable

from clusterfs.errors import InvalidArgument, NoDataBeyond
from clusterfs.fs.attributes import blocks_of
from clusterfs.fs.inodes import Inode
from clusterfs.fs.parts import Parts
from clusterfs.store.objects import BLOCK_BYTES, STRIPE_BLOCKS, joined

SEEK_DATA, SEEK_HOLE = 3, 4

Span = tuple[int, int]  # first, count


class Seeking:
    """Finds data and holes."""

    def __init__(self, parts: Parts) -> None:
        self._volume = parts.volume
        self._transactions = parts.transactions

    async def seek(self, inode: Inode, offset: int, whence: int) -> int:
        """Return the first offset >= `offset` that is in data, or in a hole.

        Raises:
            NoDataBeyond: `offset` is at or beyond the end, or no data follows.
            InvalidArgument: another whence.
        """
        if whence not in (SEEK_DATA, SEEK_HOLE):
            raise InvalidArgument
        async with inode.lock.sharing():
            record = await self._transactions.load(inode)
            if not 0 <= offset < record.size:
                raise NoDataBeyond
            end = blocks_of(record.size)
            find = self._data if whence == SEEK_DATA else self._hole
            found = await find(inode, offset // BLOCK_BYTES, end)
            return min(max(offset, found * BLOCK_BYTES), record.size)

    async def _data(self, inode: Inode, first: int, end: int) -> int:
        stripes = {index // STRIPE_BLOCKS for index in inode.dirty}
        stripes |= {index // STRIPE_BLOCKS for index in inode.flushing}
        stripes |= {0} if end <= STRIPE_BLOCKS else {n for n, _ in await self._existing(inode)}
        for number in sorted(stripes):
            if (number + 1) * STRIPE_BLOCKS > first:
                for start, count in await self._spans(inode, number):
                    if first < start + count and max(first, start) < end:
                        return max(first, start)
        raise NoDataBeyond

    async def _hole(self, inode: Inode, first: int, end: int) -> int:
        position = first
        while position < end:
            number = position // STRIPE_BLOCKS
            border = (number + 1) * STRIPE_BLOCKS
            for start, count in await self._spans(inode, number):
                if start <= position < start + count:
                    position = start + count
            if position < border:
                return position
        return end

    async def _existing(self, inode: Inode) -> Iterable[tuple[int, int]]:
        return await self._volume.stripes(inode.number)

    async def _spans(self, inode: Inode, number: int) -> list[Span]:
        """Return the stretches of data of one stripe, as blocks of the file."""
        stripe = inode.stripe(number)
        base = number * STRIPE_BLOCKS
        stored = await self._volume.extents(stripe.object_id, stripe.group, 0, STRIPE_BLOCKS)
        here = range(base, base + STRIPE_BLOCKS)
        newer = {index for index in (*inode.dirty, *inode.flushing) if index in here}
        if not newer:
            return [(base + first, count) for first, count in stored]
        for first, count in stored:
            newer.update(range(base + first, base + first + count))
        return joined(sorted(newer))
