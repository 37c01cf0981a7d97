"""Verified chunks in RAM, by cid: what many similar images share is there once. PURE.

A chunk's content never changes, so nothing ever has to be invalidated: chunks that die are never
asked for again and fall out.

The cache resists scans. While it is full, a chunk is admitted only when it is read for the second
time among the last reads: the first time only its number is noted. So a backup that reads
everything once displaces nothing, and what is read again and again gets in.

What was just written is often read soon, and writing goes past the page cache. So new chunks are
kept: as if they had been read while there is room, else first in, first out, in up to a quarter of
it. (Johnson and Shasha, 2Q, 1994, keeps new pages apart in this way.)

Invariants: it takes at most `capacity_bytes`, its bookkeeping included; no chunk is in it twice.
"""

from collections import OrderedDict
from collections.abc import Sequence

from clusterfs.store.objects import BLOCK_BYTES

_ENTRY_BYTES = BLOCK_BYTES + 33 + 210  # a bytes object, its place in the order, its cid
_NOTE_BYTES = 130  # a noted number
_COST_BYTES = _ENTRY_BYTES + _NOTE_BYTES


class ChunkCache:
    """Blocks by cid, the least recently used one first."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes // _COST_BYTES
        self._most_written = self._capacity // 4
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._written: OrderedDict[int, bytes] = OrderedDict()
        self._noted: OrderedDict[int, None] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._blocks) + len(self._written)

    @property
    def nbytes(self) -> int:
        """Return about how much memory it takes."""
        return len(self) * _ENTRY_BYTES + len(self._noted) * _NOTE_BYTES

    def get(self, cid: int) -> bytes | None:
        """Return the chunk's block, or None."""
        block = self._blocks.get(cid)
        if block is not None:
            self._blocks.move_to_end(cid)
        else:
            block = self._written.get(cid)
        self.hits += block is not None
        return block

    def wrote(self, first_cid: int, blocks: Sequence[bytes]) -> None:
        """Tell of new chunks with consecutive cids: they are kept for a while."""
        kept, written, most = self._blocks, self._written, self._most_written
        room = self._capacity - len(kept) - len(written)
        for cid, block in enumerate(blocks, first_cid):
            if room > 0:
                room -= 1
                kept[cid] = block
            elif most:
                (written if len(written) >= most else kept).popitem(last=False)
                written[cid] = block

    def offer(self, cid: int, block: bytes | memoryview) -> None:
        """Tell that the chunk was read and verified; it is kept, noted, or not."""
        self.misses += 1
        if len(self) >= self._capacity:
            if cid not in self._noted:
                self._note(cid)
                return
            del self._noted[cid]
            self._blocks.popitem(last=False)
        self._blocks[cid] = bytes(block)

    def _note(self, cid: int) -> None:
        if not self._capacity:
            return
        self._noted[cid] = None
        if len(self._noted) > self._capacity:
            self._noted.popitem(last=False)
