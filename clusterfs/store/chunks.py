"""The chunk table: cid -> where a chunk is, how many references it has, what it must read as.

A chunk is one 4 KiB block. Its number, the **cid**, is never used again, so object maps can hold
cids and the cleaner can move chunks without touching a map. The table is kept in pages of 64 cids,
in layers as all state is (see layers.py; written out here because every block of every write
passes through).

Invariants:
  * references(cid) = its occurrences in all object maps and prepared transactions;
  * a chunk whose references reach 0 is dead for good: nothing revives it;
  * live[s] = units stored in segment s, of chunks with references;
  * count = chunks with references; references_total = the sum of all references: the blocks of
    data before they were shared.
"""

import heapq
import struct
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from clusterfs.store.format import seal_value
from clusterfs.store.layers import Rubbish, Values
from clusterfs.store.location import SEGMENT_AT, segment_of, units_of
from clusterfs.store.records import IDENTITY_BYTES

PAGE_CIDS = 64
_PAGE_BITS = 6
_PAGE_MASK = PAGE_CIDS - 1
_PREFIX = b"C"
_KEY = struct.Struct(">cQ")
_CLEAN_PAGES = 8192
_FOUR = 4
_EIGHT = 8


class ChunkPage:
    """64 chunks, column by column."""

    __slots__ = ("checksums", "identities", "live", "locations", "references")

    def __init__(self) -> None:
        self.locations = array("Q", bytes(_EIGHT * PAGE_CIDS))
        self.references = array("I", bytes(_FOUR * PAGE_CIDS))
        self.checksums = array("Q", bytes(_EIGHT * PAGE_CIDS))
        self.identities = bytearray(IDENTITY_BYTES * PAGE_CIDS)
        self.live = 0

    def encode(self) -> bytes:
        """Return the page's columns, one behind the other."""
        return b"".join((self.locations, self.checksums, self.references, self.identities))

    @classmethod
    def decode(cls, value: bytes) -> "ChunkPage":
        """Return the page."""
        page = cls.__new__(cls)
        eight, four = _EIGHT * PAGE_CIDS, _FOUR * PAGE_CIDS
        page.locations = array("Q", value[:eight])
        page.checksums = array("Q", value[eight : 2 * eight])
        page.references = array("I", value[2 * eight : 2 * eight + four])
        page.identities = bytearray(value[2 * eight + four :])
        page.live = PAGE_CIDS - page.references.count(0)
        return page

    def copy(self) -> "ChunkPage":
        """Return an equal page that shares nothing."""
        page = ChunkPage.__new__(ChunkPage)
        page.locations, page.checksums = self.locations[:], self.checksums[:]
        page.references, page.identities = self.references[:], self.identities[:]
        page.live = self.live
        return page


class ChunkTable:
    """All chunks of the brick."""

    def __init__(self, values: Values) -> None:
        self._values = values
        self._dirty: dict[int, ChunkPage | None] = {}
        self._frozen: dict[int, ChunkPage | None] = {}
        self._clean: OrderedDict[int, ChunkPage] = OrderedDict()
        self._emptied: set[int] = set()
        self.next_cid = 1
        self.live: dict[int, int] = {}  # segment -> units stored of chunks with references
        self.live_total = 0
        self.references_total = 0
        self.count = 0

    @property
    def dirty_count(self) -> int:
        """Return how many pages the next checkpoint will write."""
        return len(self._dirty)

    def add(
        self,
        first_cid: int,
        runs: Sequence[tuple[int, int]],
        checksums: Sequence[int],
        identities: bytes | bytearray,
    ) -> None:
        """Enter new chunks with consecutive cids; they have no references yet.

        runs: (location of the first, how many) that lie one behind the other.
        """
        cid, index = first_cid, 0
        if len(checksums) == 1:
            self._enter_one(cid, runs[0][0], checksums[0], identities)
            return
        for first, count in runs:
            done = 0
            while done < count:
                size = min(count - done, PAGE_CIDS - (cid & _PAGE_MASK))
                end, at = index + size, index * IDENTITY_BYTES
                self._enter(
                    cid,
                    range(first + done, first + done + size),
                    checksums[index:end],
                    identities[at : end * IDENTITY_BYTES],
                )
                done += size
                cid += size
                index = end
        self.next_cid = max(self.next_cid, cid)

    def _enter(
        self,
        cid: int,
        locations: range,
        checksums: Sequence[int],
        identities: bytes | bytearray,
    ) -> None:
        """Fill slots of one page."""
        number, slot = cid >> _PAGE_BITS, cid & _PAGE_MASK
        page = self._dirty.get(number) or self._own(number, create=True)
        assert page is not None
        size = len(locations)
        page.locations[slot : slot + size] = array("Q", locations)
        page.checksums[slot : slot + size] = array("Q", checksums)
        page.identities[slot * IDENTITY_BYTES : (slot + size) * IDENTITY_BYTES] = identities

    def _enter_one(
        self, cid: int, location: int, checksum: int, identity: bytes | bytearray
    ) -> None:
        """Do the same for one chunk."""
        number, slot = cid >> _PAGE_BITS, cid & _PAGE_MASK
        page = self._dirty.get(number) or self._own(number, create=True)
        assert page is not None
        page.locations[slot], page.checksums[slot] = location, checksum
        page.identities[slot * IDENTITY_BYTES : (slot + 1) * IDENTITY_BYTES] = identity
        if cid >= self.next_cid:
            self.next_cid = cid + 1

    def take(self, cid: int) -> None:
        """Count one more reference."""
        page = self._dirty.get(cid >> _PAGE_BITS) or self._own(cid >> _PAGE_BITS)
        assert page is not None, f"chunk {cid} is not in the table"
        slot = cid & _PAGE_MASK
        if not page.references[slot]:
            page.live += 1
            self.count += 1
            location = page.locations[slot]
            segment, units = segment_of(location), units_of(location)
            self.live[segment] = self.live.get(segment, 0) + units
            self.live_total += units
        page.references[slot] += 1
        self.references_total += 1

    def drop(self, cid: int) -> None:
        """Count one reference less; the last one kills the chunk."""
        number = cid >> _PAGE_BITS
        page = self._dirty.get(number) or self._own(number)
        assert page is not None, f"chunk {cid} is not in the table"
        slot = cid & _PAGE_MASK
        page.references[slot] -= 1  # raises OverflowError below 0
        self.references_total -= 1
        if not page.references[slot]:
            page.live -= 1
            self.count -= 1
            location = page.locations[slot]
            units = units_of(location)
            self.live[segment_of(location)] -= units
            self.live_total -= units
            if not page.live:
                self._emptied.add(number)

    def take_all(self, cids: Iterable[int]) -> None:
        """Count one more reference for each; 0 is none. As `take`, all in one go."""
        number, taken, place, run = -1, 0, 0, 0
        for cid in cids:
            if not cid:
                continue
            if cid >> _PAGE_BITS != number:
                number = cid >> _PAGE_BITS
                page = self._page_of(cid)
                locations, references = page.locations, page.references
            slot = cid & _PAGE_MASK
            count = references[slot]
            references[slot] = count + 1
            taken += 1
            if not count:
                page.live += 1
                if locations[slot] >> SEGMENT_AT != place:
                    self._count(place, run)
                    place, run = locations[slot] >> SEGMENT_AT, 0
                run += 1
        self._count(place, run)
        self.references_total += taken

    def drop_all(self, cids: Iterable[int]) -> None:
        """Count one reference less for each; 0 is none. As `drop`, all in one go."""
        number, dropped, place, run = -1, 0, 0, 0
        for cid in cids:
            if not cid:
                continue
            if cid >> _PAGE_BITS != number:
                number = cid >> _PAGE_BITS
                page = self._page_of(cid)
                locations, references = page.locations, page.references
            slot = cid & _PAGE_MASK
            count = references[slot] - 1
            references[slot] = count  # raises OverflowError below 0
            dropped += 1
            if not count:
                page.live -= 1
                if not page.live:
                    self._emptied.add(number)
                if locations[slot] >> SEGMENT_AT != place:
                    self._count(place, -run)
                    place, run = locations[slot] >> SEGMENT_AT, 0
                run += 1
        self._count(place, -run)
        self.references_total -= dropped

    def _page_of(self, cid: int) -> ChunkPage:
        """Return the page of a chunk that exists, for changing."""
        page = self._dirty.get(cid >> _PAGE_BITS) or self._own(cid >> _PAGE_BITS)
        assert page is not None, f"chunk {cid} is not in the table"
        return page

    def _count(self, place: int, chunks: int) -> None:
        """Count chunks that live from now on, or (below 0) no more.

        place: their location without the block; raw chunks of one segment have it in common.
        """
        if chunks:
            location = place << SEGMENT_AT
            segment, units = segment_of(location), units_of(location) * chunks
            self.live[segment] = self.live.get(segment, 0) + units
            self.live_total += units
            self.count += chunks

    def move(self, cid: int, source: int, target: int) -> bool:
        """Relocate a chunk, if it still lives at `source`."""
        found = self.find(cid)
        if found is None or found[0] != source:
            return False
        page = self._own(cid >> _PAGE_BITS)
        assert page is not None
        page.locations[cid & _PAGE_MASK] = target
        before, after, segment = units_of(source), units_of(target), segment_of(target)
        self.live[segment_of(source)] -= before
        self.live[segment] = self.live.get(segment, 0) + after
        self.live_total += after - before
        return True

    def freed(self, cid: int, count: int) -> int:
        """Return how many units become free if so many references are dropped."""
        page = self.page(cid >> _PAGE_BITS)
        slot = cid & _PAGE_MASK
        if page is None or not 0 < page.references[slot] <= count:
            return 0
        return units_of(page.locations[slot])

    def find(self, cid: int) -> tuple[int, int] | None:
        """Return (location, checksum) of a live chunk, or None."""
        page = self.page(cid >> _PAGE_BITS)
        slot = cid & _PAGE_MASK
        if page is None or not page.references[slot]:
            return None
        return page.locations[slot], page.checksums[slot]

    def is_live(self, cid: int, identity: bytes) -> bool:
        """Tell whether a chunk with references has exactly this content."""
        page = self.page(cid >> _PAGE_BITS)
        slot = cid & _PAGE_MASK
        at = slot * IDENTITY_BYTES
        return (
            page is not None
            and page.references[slot] > 0
            and page.identities[at : at + IDENTITY_BYTES] == identity
        )

    def identity(self, cid: int) -> bytes:
        """Return the identity of a live chunk."""
        page = self.page(cid >> _PAGE_BITS)
        assert page is not None, f"chunk {cid} is not in the table"
        at = (cid & _PAGE_MASK) * IDENTITY_BYTES
        return bytes(page.identities[at : at + IDENTITY_BYTES])

    def page(self, number: int) -> ChunkPage | None:
        """Return a page for reading."""
        page = self._dirty.get(number)
        if page is not None:
            return page
        if number in self._dirty:
            return None
        if number in self._frozen:
            return self._frozen[number]
        page = self._clean.get(number)
        if page is not None:
            self._clean.move_to_end(number)
            return page
        page = self._load(number)
        if page is not None:
            self._clean[number] = page
            if len(self._clean) > _CLEAN_PAGES:
                self._clean.popitem(last=False)
        return page

    def _own(self, number: int, *, create: bool = False) -> ChunkPage | None:
        """Return a page for changing: it is in the dirty layer and nowhere else."""
        if number in self._dirty:
            page = self._dirty[number]
        elif number in self._frozen:
            frozen = self._frozen[number]
            page = None if frozen is None else frozen.copy()
        else:
            page = self._clean.pop(number, None) or self._load(number)
        if page is None and create:
            page = ChunkPage()
        if page is not None:
            self._dirty[number] = page
        return page

    def _load(self, number: int) -> ChunkPage | None:
        if number > self.next_cid >> _PAGE_BITS:
            return None
        value = self._values.get(_KEY.pack(_PREFIX, number))
        return None if value is None else ChunkPage.decode(value)

    def freeze(self) -> None:
        """Start a new dirty layer; between transactions: a new chunk has no references at first."""
        assert not self._frozen
        for number in self._emptied:
            page = self._dirty.get(number)
            if page is not None and not page.live and number < self.next_cid >> _PAGE_BITS:
                self._dirty[number] = None
        self._emptied.clear()
        self._frozen, self._dirty = self._dirty, {}

    def frozen_changes(self) -> Iterator[tuple[bytes, bytes | None]]:
        """Yield the frozen layer as the table keeps it; runs on a worker thread."""
        for number, page in self._frozen.items():
            key = _KEY.pack(_PREFIX, number)
            yield key, None if page is None else seal_value(key, page.encode())

    def thaw(self) -> Rubbish:
        """Forget the frozen layer."""
        rubbish: Rubbish = [self._frozen]
        self._frozen = {}
        return rubbish

    def numbers(self, first: int = 0, limit: int = 1 << 60) -> "array[int]":
        """Return the numbers of up to `limit` pages that exist, from `first` on, in order."""
        above = {n: page for n, page in self._frozen.items() if n >= first}
        above.update((n, page) for n, page in self._dirty.items() if n >= first)
        stored = self._values.keys(_KEY.pack(_PREFIX, first), bytes((_PREFIX[0] + 1,)))
        lower = (_KEY.unpack(key)[1] for key in stored)
        merged = heapq.merge(sorted(above), (n for n in lower if n not in above))
        found = (n for n in merged if above.get(n, self) is not None)
        return array("Q", islice(found, limit))

    def pages(self) -> Iterator[tuple[int, ChunkPage]]:
        """Yield all pages, in order; nothing may change meanwhile."""
        for number in self.numbers():
            page = self.page(number)
            assert page is not None
            yield number, page

    def correct(self, cid: int, references: int) -> None:
        """Set a chunk's number of references to what was counted."""
        page = self._own(cid >> _PAGE_BITS)
        assert page is not None, f"chunk {cid} is not in the table"
        for _ in range(references - page.references[cid & _PAGE_MASK]):
            self.take(cid)
        for _ in range(page.references[cid & _PAGE_MASK] - references):
            self.drop(cid)


def cids_of_page(number: int, page: ChunkPage) -> Iterator[tuple[int, int]]:
    """Yield (cid, references) of the page's live chunks."""
    for slot, references in enumerate(page.references):
        if references:
            yield number << _PAGE_BITS | slot, references
