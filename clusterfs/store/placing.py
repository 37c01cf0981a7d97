"""What operations do to the map of one object: blocks placed, discarded, taken over from clones.

The map is Held meanwhile (whole_maps.py): before the first change of a page it is made the object's
own. References of what comes are taken, of what goes dropped.

Invariant: a Held counts exactly what the operations gave and took.
"""

from array import array

from clusterfs.store.chunks import ChunkTable
from clusterfs.store.maps import MAP_BITS, MAP_BLOCKS, Maps, chunks_of
from clusterfs.store.objects import STRIPE_BLOCKS, Discard
from clusterfs.store.records import HOLE, LOST, Placed, Resolved, SharedMap, SharedPages
from clusterfs.store.whole_maps import Held, WholeMaps

_MAP_MASK = MAP_BLOCKS - 1


class Placing:
    """Changes maps."""

    def __init__(self, chunks: ChunkTable, maps: Maps, whole_maps: WholeMaps) -> None:
        self._chunks = chunks
        self._maps = maps
        self._whole_maps = whole_maps

    @property
    def logical_blocks(self) -> int:
        """Return how many blocks objects have, however many of them are one chunk."""
        return self._chunks.references_total + self._maps.repeated

    def perform(self, held: Held, operation: Resolved) -> None:
        """Do one operation that concerns blocks."""
        match operation:
            case Placed(first=first, cids=cids):
                self._place(held, first, cids)
            case Discard(first=first, count=count):
                self._discard(held, first, first + count)
            case SharedPages():
                blocks = self._maps.give(self._whole_maps.own(held), operation)
                held.logical -= blocks  # they were counted when they were held
            case SharedMap(number=number):
                self.empty(held)
                counts = self._whole_maps.find(number)
                assert counts is not None, f"nothing holds map {number}"
                held.become(number, counts.blocks, self.logical_blocks)
            case _:
                raise AssertionError(operation)

    def empty(self, held: Held) -> None:
        """Take all blocks from an object."""
        if held.number or held.blocks:
            self._whole_maps.let_go(held.object_id, held.number)
            held.become(0, 0, self.logical_blocks)

    def _place(self, held: Held, first: int, cids: "array[int]") -> None:
        owner = self._whole_maps.own(held)
        if len(cids) == 1:
            self._place_one(owner, first, cids[0])
            return
        at = 0
        while at < len(cids):
            block = first + at
            size = min(len(cids) - at, MAP_BLOCKS - (block & _MAP_MASK))
            self._place_in_page(owner, block, cids[at : at + size] if size < len(cids) else cids)
            at += size

    def _place_in_page(self, owner: bytes, block: int, placed: "array[int]") -> None:
        number, slot, size = block >> MAP_BITS, block & _MAP_MASK, len(placed)
        self._chunks.take_all(chunks_of(placed) if LOST in placed else placed)
        if size == MAP_BLOCKS:
            whole = None if placed.count(HOLE) == MAP_BLOCKS else placed[:]
            self._maps.replace(owner, number, whole)
            return
        page = self._maps.own(owner, number)
        replaced = page[slot : slot + size]
        page[slot : slot + size] = placed
        self._chunks.drop_all(chunks_of(replaced) if LOST in replaced else replaced)
        if HOLE in placed:
            self._maps.remove_if_empty(owner, number, page)

    def _place_one(self, owner: bytes, block: int, cid: int) -> None:
        """Do the same for one block."""
        number, slot = block >> MAP_BITS, block & _MAP_MASK
        page = self._maps.own(owner, number)
        old, page[slot] = page[slot], cid
        if cid and cid != LOST:
            self._chunks.take(cid)
        if old and old != LOST:
            self._chunks.drop(old)
        if cid == HOLE:
            self._maps.remove_if_empty(owner, number, page)

    def _discard(self, held: Held, first: int, end: int) -> None:
        if first == 0 and end >= STRIPE_BLOCKS:
            self.empty(held)
            return
        pages = [number for number, _ in self._maps.entries(held.owner, first >> MAP_BITS)]
        if not pages or pages[0] << MAP_BITS >= end:
            return
        owner = self._whole_maps.own(held)
        for number in pages:
            base = number << MAP_BITS
            low, high = max(first, base), min(end, base + MAP_BLOCKS)
            if low < high:
                self._place_in_page(owner, low, array("Q", bytes(8 * (high - low))))
