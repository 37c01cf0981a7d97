"""Where a sparse file has data, and where it has none: lseek's SEEK_DATA and SEEK_HOLE.

A block counts as data if it is dirty here or stored; the end of the file is a hole. Only stripes
that exist are looked at, so a sparse file of 16 TiB costs no more than what was written to it.
"""

from collections.abc import Iterable, Iterator

from clusterfs.errors import InvalidArgument, NoDataBeyond
from clusterfs.fs.attributes import blocks_of
from clusterfs.fs.inodes import Inode
from clusterfs.fs.parts import Parts
from clusterfs.store.objects import BLOCK_BYTES, STRIPE_BLOCKS, joined

SEEK_DATA, SEEK_HOLE = 3, 4
NEAR_BLOCKS = 64  # that are looked at first: the walk over a fragmented file stays linear

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
        stripes = {index // STRIPE_BLOCKS for index in _unstored(inode)}
        stripes |= {0} if end <= STRIPE_BLOCKS else set(await self._existing(inode))
        for number in sorted(stripes):
            for here, beyond in _windows(number, first, end):
                if spans := await self._spans(inode, here, beyond):
                    return spans[0][0]
        raise NoDataBeyond

    async def _hole(self, inode: Inode, first: int, end: int) -> int:
        for number in range(first // STRIPE_BLOCKS, -(-end // STRIPE_BLOCKS)):
            for here, beyond in _windows(number, first, end):
                spans = await self._spans(inode, here, beyond)
                if spans != [(here, beyond - here)]:
                    return here if not spans or spans[0][0] > here else sum(spans[0])
        return end

    async def _existing(self, inode: Inode) -> list[int]:
        return [number for number, _, _ in await self._volume.stripes(inode.number)]

    async def _spans(self, inode: Inode, first: int, beyond: int) -> list[Span]:
        """Return the stretches of data from `first` on, all in one stripe, as blocks of the file.

        What is not stored yet is looked at before: it may be stored while the answer is awaited.
        """
        stripe = inode.stripe(first // STRIPE_BLOCKS)
        base = stripe.number * STRIPE_BLOCKS
        found = {index for index in _unstored(inode) if first <= index < beyond}
        stored = await self._volume.extents(
            stripe.object_id, stripe.group, first - base, beyond - first
        )
        if not found:
            return [(base + start, count) for start, count in stored]
        for start, count in stored:
            found.update(range(base + start, base + start + count))
        return joined(sorted(found))


def _unstored(inode: Inode) -> Iterable[int]:
    return (*inode.dirty, *inode.flushing)


def _windows(number: int, first: int, end: int) -> Iterator[tuple[int, int]]:
    """Look from `first` on in one stripe: a little at first, then further and further."""
    here = max(first, number * STRIPE_BLOCKS)
    end = min(end, (number + 1) * STRIPE_BLOCKS)
    width = NEAR_BLOCKS
    while here < end:
        beyond = min(here + width, end)
        yield here, beyond
        here, width = beyond, width * 4
