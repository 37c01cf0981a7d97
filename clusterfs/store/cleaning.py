"""The cleaner: it moves the live chunks of the emptiest segment to the log's end.

Which chunks a segment holds is read from its own logs; which of them still live there, the chunk
table says. A relocation names the old place and counts, now and in replay, only for chunks that are
still there. The segment is free again after the next checkpoint.

Invariant: a chunk is moved only after its bytes were verified; a segment with an unreadable log or
chunk is left alone.
"""

from array import array
from collections.abc import Callable

import trio
from xxhash import xxh3_64_intdigest

from clusterfs.store.contents import Contents, locations
from clusterfs.store.disk import Disk
from clusterfs.store.format import (
    fragments_of,
    records_of,
)
from clusterfs.store.location import locate, place_of, units_of
from clusterfs.store.log import Log
from clusterfs.store.objects import BLOCK_BYTES
from clusterfs.store.records import Relocate, decode, encode
from clusterfs.store.recovery import LogReader
from clusterfs.store.segments import Segments

_BATCH_BLOCKS = 64
_HEAD_BYTES = 5
_BLOCK_RECORD_BYTES = 16

# A chunk and the place where its bytes were found.
Moved = tuple[int, int, bytes]


class Cleaner:
    """Frees segments."""

    def __init__(
        self,
        disk: Disk,
        reader: LogReader,
        contents: Contents,
        segments: Segments,
        log: Log,
    ) -> None:
        self._disk = disk
        self._reader = reader
        self._contents = contents
        self._segments = segments
        self._log = log
        self.moved = 0

    async def clean(self, segment: int) -> None:
        """Move what lives in the segment. Raises BrickFailed."""
        first, last = self._segments.used[segment]
        found = await trio.to_thread.run_sync(self._chunks_of, segment, first, last)
        live = self._living(found)
        held = self._contents.state.chunks.live.get(segment, 0)
        if sum(units_of(location) for _, location, _ in live) < held:
            self._segments.damaged.add(segment)
        for at in range(0, len(live), _BATCH_BLOCKS):
            batch = live[at : at + _BATCH_BLOCKS]
            self._segments.pin(segment)
            try:
                blocks = await trio.to_thread.run_sync(self._read, batch)
            finally:
                self._segments.unpin(segment)
            if len(blocks) < len(batch):
                self._segments.damaged.add(segment)
            await self._move(blocks)

    def _chunks_of(self, segment: int, first: int, last: int) -> "array[int]":
        """Return cid, location, cid, location, ... of all payload in the segment; on a thread."""
        found = array("Q")
        for log in self._reader.chain(segment, first, last):
            block = log.header.block + 1
            for fragment in fragments_of(records_of(log.content, log.header)):
                cids: range | array[int] = range(
                    fragment.first_cid, fragment.first_cid + fragment.blocks
                )
                if fragment.blocks and not fragment.first_cid:
                    record = decode(fragment.body)
                    assert isinstance(record, Relocate)
                    cids = record.cids
                for index, cid in enumerate(cids):
                    found.extend((cid, locate(segment, block + index)))
                block += fragment.blocks
        return found

    def _living(self, found: "array[int]") -> list[tuple[int, int, int]]:
        """Return (cid, location, checksum) of those that the table still knows there."""
        find = self._contents.state.chunks.find
        live = []
        for index in range(0, len(found), 2):
            known = find(found[index])
            if known is not None and known[0] == found[index + 1]:
                live.append((found[index], *known))
        return live

    def _read(self, batch: list[tuple[int, int, int]]) -> list[Moved]:
        """Read and verify; on a thread. What is damaged is left out."""
        read: Callable[[int, int, int], bytes] = self._disk.read
        good = []
        for cid, location, checksum in batch:
            block = read(*place_of(location))
            if xxh3_64_intdigest(block) == checksum:
                good.append((cid, location, block))
        return good

    async def _move(self, blocks: list[Moved]) -> None:
        while blocks:
            await self._log.wait_ring_room(len(blocks) * BLOCK_BYTES)
            size = min(len(blocks), self._log.whole_room(_HEAD_BYTES, _BLOCK_RECORD_BYTES))
            self._relocate(blocks[:size])
            blocks = blocks[size:]

    def _relocate(self, blocks: list[Moved]) -> None:
        """Log and enact one relocation; no await between looking and moving."""
        find = self._contents.state.chunks.find
        here = [b for b in blocks if (found := find(b[0])) is not None and found[0] == b[1]]
        if not here:
            return
        cids = array("Q", [cid for cid, _, _ in here])
        sources = array("Q", [location for _, location, _ in here])
        record = Relocate(cids, sources)
        payload = b"".join(block for _, _, block in here)
        runs = self._log.append(encode(record), memoryview(payload), [(0, len(payload))])
        assert len(locations(runs)) == len(here)
        assert len(runs) == 1, "a relocation lies in one log"
        self._contents.enact(record, runs)
        self.moved += len(here)
