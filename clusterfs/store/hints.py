"""Where the same block may already be: a bounded window of identity -> cid.

A hint is never believed: it counts only if the chunk table says, in the same step, that the chunk
lives and has that identity, and if nobody has found it damaged. So entries may be stale, wrong,
lost or forgotten at will, and need not hold the identity: 32 bits of it are enough to look at the
right chunk.

The window is a flat table of sets of 8 entries, each 4 bytes of identity and 8 of cid: 12 bytes a
block, touched as it fills. A new entry goes to the front of its set and pushes the last one out; a
hit in the back half moves to the front.

Invariant: the window takes 12 bytes * `capacity`, whatever the brick holds.
"""

import mmap
from array import array
from collections.abc import Iterator
from itertools import islice

from clusterfs.store.chunks import ChunkTable, cids_of_page
from clusterfs.store.damage import Damage

_WAYS = 8
_BACK = _WAYS // 2
_LOW = (1 << 32) - 1
_FILL_AT_ONCE = 512  # chunk pages


class Hints:
    """The dedup window."""

    def __init__(self, chunks: ChunkTable, capacity: int, damage: Damage | None = None) -> None:
        self._chunks = chunks
        self._damaged = damage.cids if damage is not None else set()
        self._sets = max(1, capacity // _WAYS)
        entries = self._sets * _WAYS
        self._tags = memoryview(mmap.mmap(-1, 4 * entries)).cast("I")
        self._cids = memoryview(mmap.mmap(-1, 8 * entries)).cast("Q")
        self._count = 0
        self._unfilled: Iterator[int] = iter(())
        self.hits = 0

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Return how much memory the full window takes."""
        return self._tags.nbytes + self._cids.nbytes

    def add(self, identity: bytes, cid: int) -> None:
        """Remember where a block is."""
        number = int.from_bytes(identity[:8], "little")
        base, tag = (number & _LOW) % self._sets * _WAYS, number >> 32
        end = base + _WAYS
        tags, cids = self._tags, self._cids
        known = tags[base:end].tolist()
        at = known.index(tag) + base if tag in known else end - 1
        if not cids[at]:
            self._count += 1
        tags[base + 1 : at + 1] = tags[base:at]
        cids[base + 1 : at + 1] = cids[base:at]
        tags[base], cids[base] = tag, cid

    def find(self, identity: bytes) -> int | None:
        """Return the cid of a live, undamaged chunk with that identity, or None."""
        number = int.from_bytes(identity[:8], "little")
        base, tag = (number & _LOW) % self._sets * _WAYS, number >> 32
        known = self._tags[base : base + _WAYS].tolist()
        if tag not in known:
            return None
        at = known.index(tag)
        cid = self._cids[base + at]
        if cid in self._damaged or not self._chunks.is_live(cid, identity):
            return None
        self.hits += 1
        if at >= _BACK:
            self.add(identity, cid)
        return cid

    def fill(self, newest: int) -> None:
        """Rebuild from the newest chunk pages; the first part now, the rest in `fill_more`."""
        numbers = self._chunks.numbers()[-newest:]
        self._unfilled = iter(numbers)
        self.fill_more(_FILL_AT_ONCE)

    def fill_more(self, pages: int) -> bool:
        """Take some more pages into the window; False when all are in."""
        taken = array("Q", islice(self._unfilled, pages))
        for number in taken:
            page = self._chunks.page(number)
            if page is not None:  # it may have died since
                for cid, _ in cids_of_page(number, page):
                    self.add(self._chunks.identity(cid), cid)
        return len(taken) == pages
