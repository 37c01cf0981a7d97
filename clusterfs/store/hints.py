"""Where the same block may already be: a bounded window of identity -> cid.

A hint is never believed: it counts only if the chunk table says, in the same step, that the chunk
lives and has that identity. So entries may be stale, lost or forgotten at will.

The window is 256 shards (by the identity's first byte) of two generations each. When a shard's
young generation is full it becomes the old one and the old one is dropped; a hit moves an entry to
the young one. No step ever touches more than one small dict.

Invariant: at most `capacity` entries.
"""

from clusterfs.store.chunks import ChunkTable, cids_of_page

_SHARDS = 256


class Hints:
    """The dedup window."""

    def __init__(self, chunks: ChunkTable, capacity: int) -> None:
        self._chunks = chunks
        self._half = max(1, capacity // (2 * _SHARDS))
        self._young: list[dict[bytes, int]] = [{} for _ in range(_SHARDS)]
        self._old: list[dict[bytes, int]] = [{} for _ in range(_SHARDS)]
        self.damaged: set[int] = set()  # cids that did not read back as they should

    def __len__(self) -> int:
        return sum(map(len, self._young)) + sum(map(len, self._old))

    def add(self, identity: bytes, cid: int) -> None:
        """Remember where a block is."""
        shard = identity[0]
        young = self._young[shard]
        young[identity] = cid
        if len(young) >= self._half:
            self._old[shard], self._young[shard] = young, {}

    def find(self, identity: bytes) -> int | None:
        """Return the cid of a live, undamaged chunk with that identity, or None."""
        shard = identity[0]
        cid = self._young[shard].get(identity)
        if cid is None:
            cid = self._old[shard].pop(identity, None)
            if cid is None:
                return None
            self.add(identity, cid)
        if cid in self.damaged or not self._chunks.is_live(cid, identity):
            return None
        return cid

    def fill(self, pages: int) -> None:
        """Rebuild from the newest chunk pages; blocks, runs before the store serves."""
        for number, page in self._chunks.pages(pages):
            for cid, _ in cids_of_page(number, page):
                self.add(self._chunks.identity(cid), cid)
