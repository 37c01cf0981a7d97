"""The cleaner: it moves the live chunks of a segment to a stream of its own, packed if that is on.

Which chunks a segment holds is read from its own logs; which of them still live there, the chunk
table says. A relocation names the old place and counts, now and in replay, only for chunks that are
still there. The segment is free again after the next checkpoint.

Invariant: a chunk is moved only after its bytes were verified; what cannot be read stays where it
is, and its segment is left alone from then on.
"""

from array import array
from collections.abc import Awaitable, Callable, Iterator
from itertools import accumulate
from typing import NamedTuple

import trio
from xxhash import xxh3_64_intdigest

from clusterfs.store.contents import Contents, targets
from clusterfs.store.format import fragments_of, records_of
from clusterfs.store.location import (
    UNIT_BYTES,
    is_packed,
    locate,
    place_of,
    segment_of,
)
from clusterfs.store.log import SMALL_TAIL_BLOCKS, Log
from clusterfs.store.objects import BLOCK_BYTES
from clusterfs.store.packing import Codec, chunk_of, pack
from clusterfs.store.records import Relocate, decode, encode
from clusterfs.store.recovery import LogReader, ValidLog
from clusterfs.store.segments import Segments

_HEAD_BYTES = 5
_CHUNK_RECORD_BYTES = 17
_FIRST_GUESS = 0.7  # what is left of data that is packed, until it was tried
_LEARN = 1 / 64


class Moved(NamedTuple):
    """A chunk on its way."""

    cid: int
    source: int
    stored: bytes


class Cleaner:
    """Frees segments."""

    def __init__(
        self, reader: LogReader, contents: Contents, segments: Segments, log: Log, codec: Codec
    ) -> None:
        self._reader = reader
        self._contents = contents
        self._segments = segments
        self._log = log
        self.codec: Codec = codec
        self._filled: dict[int, int] = {}  # cold segment -> units in it
        self._packs_to = _FIRST_GUESS
        self.moved = 0  # chunks
        self.packed = 0  # chunks

    @property
    def packs_to(self) -> float:
        """Return what is left, probably, of raw data that is moved: 1 if nothing is packed."""
        return 1.0 if self.codec == "off" else self._packs_to

    async def clean(self, segment: int, pace: Callable[[int], Awaitable[None]]) -> None:
        """Move what lives in the segment; `pace` is told how many blocks, and may wait.

        Raises BrickFailed.
        """
        span = self._segments.used.get(segment)
        if span is None:
            return  # a checkpoint has freed it since it was chosen
        first, last = span
        self._segments.pin(segment)
        try:
            # A generator that reads: each step of it is one log, on a worker thread.
            logs = self._reader.chain(segment, first, last)
            while (log := await trio.to_thread.run_sync(_next_of, logs)) is not None:
                live = self._living(chunks_in(log))
                moved = await trio.to_thread.run_sync(self._prepare, log, live)
                if not await self._move(moved):
                    return
                await pace(sum(len(chunk.stored) for chunk in moved) // BLOCK_BYTES)
        finally:
            self._segments.unpin(segment)
        if self._contents.state.chunks.live.get(segment, 0):
            self._segments.damaged.add(segment)

    def _living(self, found: "array[int]") -> list[tuple[int, int, int]]:
        """Return (cid, location, checksum) of those that the table still knows there."""
        find = self._contents.state.chunks.find
        live = []
        for index in range(0, len(found), 2):
            known = find(found[index])
            if known is not None and known[0] == found[index + 1]:
                live.append((found[index], *known))
        return live

    def _prepare(self, log: ValidLog, live: list[tuple[int, int, int]]) -> list[Moved]:
        """Verify, and pack what is raw; on a thread. What is damaged is left out."""
        start, content = log.header.block * BLOCK_BYTES, memoryview(log.content)
        good = []
        for cid, location, checksum in live:
            _, offset, length = place_of(location)
            stored = content[offset - start : offset - start + length]
            chunk = chunk_of(stored, location)
            if xxh3_64_intdigest(chunk) == checksum:
                raw = not is_packed(location)
                good.append(
                    Moved(cid, location, pack(stored, self.codec) if raw else bytes(stored))
                )
        return good

    async def _move(self, chunks: list[Moved]) -> bool:
        """Move these; False if the room that was there when the cleaning began is gone."""
        while chunks:
            await self._log.wait_ring_room(sum(len(chunk.stored) for chunk in chunks))
            count = self._fitting(chunks)
            if self._log.cleaning_room_blocks() < SMALL_TAIL_BLOCKS:
                return False
            if count:
                self._relocate(chunks[:count])
                chunks = chunks[count:]
            else:
                self._log.seal_cold()
        return True

    def _fitting(self, chunks: list[Moved]) -> int:
        """Return how many of the first chunks fit into the cleaner's log."""
        ends = list(accumulate(len(chunk.stored) for chunk in chunks))
        low, high = 0, len(chunks)
        while low < high:
            middle = (low + high + 1) // 2
            body_bytes = _HEAD_BYTES + middle * _CHUNK_RECORD_BYTES
            if self._log.fits_cold(body_bytes, -(-ends[middle - 1] // BLOCK_BYTES)):
                low = middle
            else:
                high = middle - 1
        return low

    def _relocate(self, chunks: list[Moved]) -> None:
        """Log and enact one relocation; no await between looking and moving."""
        find = self._contents.state.chunks.find
        here = [c for c in chunks if (found := find(c.cid)) is not None and found[0] == c.source]
        if not here:
            return
        record = Relocate(
            array("Q", [chunk.cid for chunk in here]),
            array("Q", [chunk.source for chunk in here]),
            bytes(len(chunk.stored) // UNIT_BYTES for chunk in here),
        )
        payload = b"".join(chunk.stored for chunk in here)
        segment, block = self._log.relocate(encode(record), memoryview(payload))
        self._contents.enact(record, [(locate(segment, block), -(-len(payload) // BLOCK_BYTES))])
        self._note(segment, here)

    def _note(self, segment: int, chunks: list[Moved]) -> None:
        """Keep the age of what lies in the segment, and what packing gives."""
        segments = self._segments
        source = segment_of(chunks[0].source)
        units = sum(len(chunk.stored) for chunk in chunks) // UNIT_BYTES
        before = self._filled.get(segment, 0) if segment in segments.born else 0
        mean, born = segments.born.get(segment, 0), segments.born.get(source, 0)
        segments.born[segment] = (mean * before + born * units) // (before + units)
        self._filled = {segment: before + units}
        self.moved += len(chunks)
        raw = [chunk for chunk in chunks if not is_packed(chunk.source)]
        self.packed += sum(len(chunk.stored) < BLOCK_BYTES for chunk in raw)
        if raw and self.codec != "off":
            left = sum(len(chunk.stored) for chunk in raw) / (len(raw) * BLOCK_BYTES)
            self._packs_to += (left - self._packs_to) * min(1, len(raw) * _LEARN)


def _next_of(logs: Iterator[ValidLog]) -> ValidLog | None:
    """Return the next log; None too where the segment cannot be read, for whatever reason."""
    try:
        return next(logs, None)
    except OSError:
        return None


def chunks_in(log: ValidLog) -> "array[int]":
    """Return cid, location, cid, location, ... of all chunks in the log."""
    found = array("Q")
    segment, block = log.header.segment, log.header.block + 1
    for fragment in fragments_of(records_of(log.content, log.header)):
        first = locate(segment, block)
        if fragment.first_cid:
            for index in range(fragment.blocks):
                found.extend((fragment.first_cid + index, first + index))
        elif fragment.blocks:
            record = decode(fragment.body)
            assert isinstance(record, Relocate)
            for pair in zip(record.cids, targets(record, first), strict=True):
                found.extend(pair)
        block += fragment.blocks
    return found
