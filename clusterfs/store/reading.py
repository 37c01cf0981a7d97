"""Reading blocks: from the chunk cache, the log's RAM buffers, or the disk; all of it verified.

Adjacent blocks become one read. What the page cache has is read at once; the rest on a worker
thread, or, if it is scattered as after random writes, on a few at a time. A block that does not
match its checksum is read again past all caches before it is called damaged.

Invariant: nothing is returned that does not have the checksum the chunk table promises.
"""

from array import array
from collections.abc import Callable, Iterator
from operator import itemgetter

import trio
from xxhash import xxh3_64_intdigest

from clusterfs.errors import ChunkCorrupted, WouldBlock
from clusterfs.store.cache import ChunkCache
from clusterfs.store.chunks import ChunkTable
from clusterfs.store.damage import Damage
from clusterfs.store.disk import Disk
from clusterfs.store.format import ZERO_BLOCK
from clusterfs.store.location import UNIT_BYTES, is_packed, place_of, segment_of, units_of
from clusterfs.store.log import Log
from clusterfs.store.objects import BLOCK_BYTES
from clusterfs.store.packing import chunk_of, unpack
from clusterfs.store.segments import Segments

_EXTENT_BLOCKS = 1024
_THREADS = 4  # of one call, for what is scattered
_EXTENTS_EACH = 8  # for fewer a thread is not worth it


class _Extent:
    """Some chunks that lie one behind the other on disk and in the result; all raw or all packed.

    `data` is what the disk gave, and once `wrong` has found it right, the chunks themselves.
    """

    __slots__ = ("checksums", "cids", "data", "location", "packed")

    def __init__(self, location: int) -> None:
        self.location = location
        self.packed: list[int] = []  # locations
        self.checksums: list[int] = []
        self.cids: list[int] = []
        self.data: bytes | None = None

    @property
    def place(self) -> tuple[int, int, int]:
        """Return (segment, offset, length)."""
        segment, offset, _ = place_of(self.location)
        if self.packed:
            return segment, offset, sum(map(units_of, self.packed)) * UNIT_BYTES
        return segment, offset, len(self.cids) * BLOCK_BYTES

    def takes(self, location: int) -> bool:
        """Tell whether a chunk there comes next."""
        if len(self.cids) >= _EXTENT_BLOCKS:
            return False
        if not self.packed:
            return self.location + len(self.cids) == location
        segment, offset, length = place_of(self.packed[-1])
        return is_packed(location) and place_of(location)[:2] == (segment, offset + length)

    def add(self, cid: int, location: int, checksum: int) -> None:
        """Take one more chunk."""
        self.cids.append(cid)
        self.checksums.append(checksum)
        if is_packed(location):
            self.packed.append(location)

    def wrong(self) -> list[int]:
        """Return the indexes of the chunks that do not match."""
        data = memoryview(self.data or b"")
        if self.packed:
            if len(data) == self.place[2]:
                self.data = b"".join(self._unpacked(data))
            data = memoryview(self.data or b"")
        return [
            index
            for index, checksum in enumerate(self.checksums)
            if xxh3_64_intdigest(data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]) != checksum
        ]

    def _unpacked(self, data: memoryview) -> Iterator[bytes]:
        at = 0
        for location in self.packed:
            end = at + units_of(location) * UNIT_BYTES
            # Garbage keeps its place, so that the others keep theirs.
            yield unpack(data[at:end]) or ZERO_BLOCK
            at = end


class Reader:
    """Turns cids into verified bytes."""

    def __init__(
        self,
        disk: Disk,
        chunks: ChunkTable,
        segments: Segments,
        log: Log,
        damage: Damage,
        cache: ChunkCache,
    ) -> None:
        self._disk = disk
        self._cache = cache
        self._chunks = chunks
        self._segments = segments
        self._log = log
        self._damage = damage
        self.waits = 0

    def read_nowait(self, cids: "array[int]") -> bytes:
        """Return the blocks. Raises WouldBlock if the disk, or a second look at it, is needed."""
        parts = self._plan(cids)
        for part in parts:
            if isinstance(part, _Extent):
                part.data = self._disk.read_nowait(*part.place)
                if part.data is None or part.wrong():
                    raise WouldBlock("the blocks are not in memory")
        self._keep(parts)
        return _join(parts)

    async def read(self, cids: "array[int]") -> bytes:
        """Return the blocks. Raises ChunkCorrupted."""
        parts = self._plan(cids)
        missing = []
        for part in parts:
            if isinstance(part, _Extent):
                part.data = self._disk.read_nowait(*part.place)
                if part.data is None or part.wrong():
                    missing.append(part)
        if missing:
            self.waits += 1
            # The cleaner may move these chunks meanwhile; the pins keep their old places intact.
            pinned = [segment_of(part.location) for part in missing]
            for segment in pinned:
                self._segments.pin(segment)
            try:
                wrong = await self._fetch(missing)
            finally:
                for segment in pinned:
                    self._segments.unpin(segment)
            if wrong:
                self._damage.note(wrong)
                raise ChunkCorrupted(f"chunks {wrong[:5]} do not have their checksums")
        self._keep(parts)
        return _join(parts)

    async def _fetch(self, missing: list[_Extent]) -> list[int]:
        """Read these; return the cids still wrong. Scattered ones do not wait for each other."""
        share = max(_EXTENTS_EACH, -(-len(missing) // _THREADS))
        wrong: list[int] = []

        async def fetch(extents: list[_Extent]) -> None:
            wrong.extend(await trio.to_thread.run_sync(_read_all, self._disk, extents))

        if len(missing) <= share:
            await fetch(missing)
            return wrong
        async with trio.open_nursery() as nursery:
            for start in range(0, len(missing), share):
                nursery.start_soon(fetch, missing[start : start + share])
        return wrong

    def _keep(self, parts: list[bytes | memoryview | _Extent]) -> None:
        """Offer what was read and verified to the cache."""
        offer = self._cache.offer
        for part in parts:
            if isinstance(part, _Extent):
                data = memoryview(part.data or b"")
                for at, cid in enumerate(part.cids):
                    offer(cid, data[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES])

    def _plan(self, cids: "array[int]") -> list[bytes | memoryview | _Extent]:
        parts: list[bytes | memoryview | _Extent] = []
        extent: _Extent | None = None
        for cid in cids:
            if not cid:
                parts.append(ZERO_BLOCK)
                extent = None
                continue
            if (block := self._cache.get(cid)) is not None:
                parts.append(block)
                extent = None
                continue
            found = self._chunks.find(cid)
            if found is None:
                raise ChunkCorrupted(f"chunk {cid} is lost: a map refers to it, but there is none")
            location, checksum = found
            if (memory := self._log.in_memory(location)) is not None:
                parts.append(bytes(chunk_of(memory, location)))
                extent = None
                continue
            if extent is None or not extent.takes(location):
                extent = _Extent(location)
                parts.append(extent)
            extent.add(cid, location, checksum)
        return parts


def _read_all(disk: Disk, extents: list[_Extent]) -> list[int]:
    """Read each extent, the wrong ones again from the medium; return the cids still wrong."""
    damaged: list[int] = []
    for extent in extents:
        _read_one(extent, disk.read)
        if extent.wrong():
            _read_one(extent, disk.read_direct)
            damaged += [extent.cids[index] for index in extent.wrong()]
    return damaged


def _read_one(extent: _Extent, read: Callable[[int, int, int], bytes]) -> None:
    try:
        extent.data = read(*extent.place)
    except OSError:  # a bad sector: the blocks are damaged, the brick goes on
        extent.data = b""


# A chunk, where it is, and its checksum.
Wanted = tuple[int, int, int]


def wrong_chunks(read: Callable[[int, int, int], bytes], wanted: list[Wanted]) -> list[int]:
    """Read these chunks, neighbours at once; return the cids of those that do not read right."""
    extents: list[_Extent] = []
    for cid, location, checksum in sorted(wanted, key=itemgetter(1)):
        last = extents[-1] if extents else None
        if last is None or not last.takes(location):
            last = _Extent(location)
            extents.append(last)
        last.add(cid, location, checksum)
    wrong: list[int] = []
    for extent in extents:
        _read_one(extent, read)
        wrong += [extent.cids[index] for index in extent.wrong()]
    return wrong


def _join(parts: list[bytes | memoryview | _Extent]) -> bytes:
    pieces = [(part.data or b"") if isinstance(part, _Extent) else part for part in parts]
    return pieces[0] if len(pieces) == 1 and isinstance(pieces[0], bytes) else b"".join(pieces)
