"""Where the same block may already be: a bounded window of identity -> cid.

A hint is never believed: it counts only if the chunk table says, in the same step, that the chunk
lives and has that identity, and if nobody has found it damaged. So entries may be stale, wrong,
lost or forgotten at will, and need not hold the identity: 32 bits of it are enough to look at the
right chunk.

The window is a flat table of sets of 8 entries, each 4 bytes of identity and 8 of cid: 12 bytes a
block. A new entry goes to the front of its set and pushes the last one out; a
hit in the back half moves to the front.

Invariant: the window takes 12 bytes * `capacity`, whatever the brick holds.
"""

import mmap
import struct
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice

from clusterfs.store.chunks import ChunkTable, cids_of_page
from clusterfs.store.damage import Damage

_WAYS = 8
_BACK = _WAYS // 2
_HEAD = struct.Struct("<II8x").unpack  # of an identity: which set, which tag
_SET = struct.Struct(f"{_WAYS}I").unpack_from
_FILL_AT_ONCE = 512  # chunk pages


class Hints:
    """The dedup window."""

    def __init__(self, chunks: ChunkTable, capacity: int, damage: Damage | None = None) -> None:
        self._chunks = chunks
        self._damaged = damage.cids if damage is not None else set()
        self._sets = max(1, capacity // _WAYS)
        entries = self._sets * _WAYS
        self._tag_bytes, self._cid_bytes = _map(4 * entries), _map(8 * entries)
        self._tags = memoryview(self._tag_bytes).cast("I")
        self._cids = memoryview(self._cid_bytes).cast("Q")
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
        low, tag = _HEAD(identity)
        base = low % self._sets * _WAYS
        known = _SET(self._tag_bytes, base * 4)
        at = known.index(tag) if tag in known else _WAYS - 1
        if not self._cids[base + at]:
            self._count += 1
        self._tag_bytes.move(base * 4 + 4, base * 4, at * 4)
        self._cid_bytes.move(base * 8 + 8, base * 8, at * 8)
        self._tags[base], self._cids[base] = tag, cid

    def add_new(self, identities: Iterable[bytes], first_cid: int) -> None:
        """Remember where blocks are that were not found just now; their cids are consecutive."""
        sets, tags, cids = self._sets, self._tags, self._cids
        move_tags, move_cids = self._tag_bytes.move, self._cid_bytes.move
        for cid, (low, tag) in enumerate(map(_HEAD, identities), first_cid):
            base = low % sets * _WAYS
            if not cids[base + _WAYS - 1]:
                self._count += 1
            move_tags(base * 4 + 4, base * 4, 4 * _WAYS - 4)
            move_cids(base * 8 + 8, base * 8, 8 * _WAYS - 8)
            tags[base], cids[base] = tag, cid

    def find(self, identity: bytes) -> int | None:
        """Return the cid of a live, undamaged chunk with that identity, or None."""
        low, tag = _HEAD(identity)
        base = low % self._sets * _WAYS
        known = _SET(self._tag_bytes, base * 4)
        if tag not in known:
            return None
        at = known.index(tag)
        cid: int = self._cids[base + at]
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


def _map(nbytes: int) -> mmap.mmap:
    """Return zeroed memory, in huge pages if there are: each look-up is somewhere else in it."""
    memory = mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
