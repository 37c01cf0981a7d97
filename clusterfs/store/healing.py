"""Damaged chunks: which there are, where their blocks are, and good data put in their place.

A chunk that does not read as its checksum says is noted, whoever finds it: a read, the scrub, the
cleaner. It is never shared again. A replica has the same block under the same identity, at the same
place of the same object; so `blocks` finds one object that refers to each damaged chunk, and `heal`
takes the block from there: if checksum and identity are right, the chunk is moved to the log's end.
All that refer to the chunk are healed by that, and no map changes.

Invariants:
  * `heal` never changes what a chunk reads as: the data has its checksum and its identity;
  * no step of `blocks` looks at more than one object.
"""

from array import array
from collections.abc import Callable

import trio
from xxhash import xxh3_64_intdigest

from clusterfs.errors import BrickFailed, WouldBlock
from clusterfs.store.contents import Contents
from clusterfs.store.damage import Damage
from clusterfs.store.location import BLOCK_UNITS, locate
from clusterfs.store.log import SMALL_TAIL_BLOCKS, Log
from clusterfs.store.objects import BLOCK_BYTES, ObjectId
from clusterfs.store.records import LOST, Relocate, encode

_OBJECTS = 64


class Healer:
    """Finds and replaces damaged chunks."""

    def __init__(
        self,
        contents: Contents,
        log: Log,
        damage: Damage,
        identify: Callable[[bytes | memoryview], bytes],
    ) -> None:
        self._contents = contents
        self._log = log
        self._damage = damage
        self._identify = identify

    def damaged(self) -> int:
        """Return how many damaged chunks and lost blocks there are."""
        find = self._contents.state.chunks.find
        try:
            for cid in [cid for cid in self._damage.cids if find(cid) is None]:
                self._damage.forget(cid)
            return len(self._damage.cids) + len(self._still_lost())
        except BrickFailed:  # the checkpoint cannot be read: which of them still live is unknown
            return len(self._damage)

    async def blocks(self, limit: int) -> list[tuple[ObjectId, int]]:
        """Return one block of each damaged chunk, and the lost blocks; at most `limit`.

        A chunk to which only prepared transactions refer has none yet.
        """
        state = self._contents.state
        found = self._still_lost()[:limit]
        wanted = set(self._damage.cids)
        after: ObjectId | bytes = b""
        while wanted and len(found) < limit:
            page = state.objects(None, after, _OBJECTS)
            for object_id, _ in page:
                for block, cid in state.placed(object_id, 0, 1 << 32):
                    if cid in wanted:
                        wanted.discard(cid)
                        found.append((object_id, block))
                await trio.lowlevel.checkpoint()
            if len(page) < _OBJECTS:
                break
            after = page[-1][0]
        return found[:limit]

    def _still_lost(self) -> list[tuple[ObjectId, int]]:
        """Return the blocks that are lost; those written since are not."""
        state, lost = self._contents.state, self._damage.lost
        for object_id, block in list(lost):
            cid = state.cids(object_id, block, 1)[0]
            if not cid or (cid != LOST and state.chunks.find(cid) is not None):
                del lost[object_id, block]
                self._damage.healed += 1
        return list(lost)

    def heal(self, object_id: ObjectId, block: int, data: bytes) -> bool:
        """Give a damaged block its data back; False if this is not what it must read as.

        Raises BrickFailed, and WouldBlock when there is no room yet.
        """
        assert len(data) == BLOCK_BYTES
        chunks = self._contents.state.chunks
        cid = self._contents.state.cids(object_id, block, 1)[0]
        known = chunks.find(cid)
        if known is None:
            return False
        location, checksum = known
        if cid not in self._damage.cids:
            return True
        if xxh3_64_intdigest(data) != checksum or self._identify(data) != chunks.identity(cid):
            return False
        record = Relocate(array("Q", [cid]), array("Q", [location]), bytes((BLOCK_UNITS,)))
        body = encode(record)
        if not self._log.fits_cold(len(body), 1):
            self._log.seal_cold()
        if self._log.cleaning_room_blocks() < SMALL_TAIL_BLOCKS:
            raise WouldBlock("the log waits for the cleaner or for a new segment")
        segment, first = self._log.relocate(body, memoryview(data))
        self._contents.enact(record, [(locate(segment, first), 1)])
        self._damage.forget(cid)
        self._damage.healed += 1
        return True
