"""The log's writing end: a ring of RAM buffers, sealed in order, written by the flush thread.

Records and payload are appended to the open log, which lies in a RAM buffer of its own; when it is
full, or somebody wants a sync, it is sealed and handed to the flush thread. A position is the id of
the log that holds a transaction's end: durable(position) means the transaction survives.

Invariants:
  * ids are contiguous; a log starts where its predecessor in the segment ended;
  * a transaction's fragments are contiguous: nothing is appended between BEGIN and COMMIT;
  * a RAM buffer is used again only after its log was written; until then reads find it here;
  * positions become durable in order, and a waiter learns of a failure exactly as BrickFailed.
"""

import mmap
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import trio

from clusterfs.errors import BrickFailed
from clusterfs.store import format as layout
from clusterfs.store.flush import Flusher, Sealed
from clusterfs.store.format import FRAGMENT_BYTES
from clusterfs.store.location import locate, place_of
from clusterfs.store.objects import BLOCK_BYTES
from clusterfs.store.segments import Segments

SMALL_TAIL_BLOCKS = 4  # a segment's rest of less than this is left unused
_ONLY = layout.BEGIN | layout.COMMIT
_CUT_BLOCKS = 2 * SMALL_TAIL_BLOCKS  # what a cut at a segment's end may waste, and headers
_SMALL_ROOM_BYTES = 256  # a log with less room for records is sealed

WhenDurable = Callable[[BrickFailed | None], None]

# (first location, number of blocks): payload blocks that lie one behind the other
Run = tuple[int, int]


class Tail:
    """Where the log goes on."""

    __slots__ = ("block", "durable", "first_id", "next_id", "previous", "segment")

    def __init__(
        self, segment: int, block: int, first_id: int, next_id: int, previous: int
    ) -> None:
        self.segment = segment  # -1: a new one
        self.block = block
        self.first_id = first_id  # of the first log in the segment
        self.next_id = next_id
        self.previous = previous  # checksum of the log next_id - 1


class Log:
    """The open log, the ring, and who waits for it. Belongs to the trio thread."""

    def __init__(
        self, segments: Segments, flusher: Flusher, tail: Tail, *, log_bytes: int, buffers: int
    ) -> None:
        self._segments = segments
        self._flusher = flusher
        self._log_blocks = log_bytes // BLOCK_BYTES
        self._free = deque(memoryview(mmap.mmap(-1, log_bytes)) for _ in range(buffers))
        self._log_bytes = log_bytes
        self._buffers = buffers
        self._extra = 0  # buffers beyond the ring, for a transaction larger than it
        self._open: Sealed | None = None
        self._open_limit = 0
        self._flushing: deque[Sealed] = deque()
        self._tail = tail
        self._serial = 0
        self.last_sealed: Sealed | None = None
        self.position = tail.next_id - 1  # of the last appended record
        self.durable = tail.next_id - 1
        self._syncing = False
        self._waiting = 0
        self._wanted = 0
        self._synced = trio.lowlevel.ParkingLot()
        self._calls: deque[tuple[int, WhenDurable]] = deque()  # in the order of positions
        self._room = trio.lowlevel.ParkingLot()
        self.failed: OSError | None = None
        self._on_failed: Callable[[OSError], None] = lambda _: None
        self.bytes_written = 0
        self.logs_written = 0

    def start(self, on_failed: Callable[[OSError], None]) -> None:
        """Start the flush thread."""
        self._on_failed = on_failed
        self._flusher.start(self._when_written, self._when_durable, self.fail)

    # -- room

    def has_ring_room(self, nbytes: int) -> bool:
        """Tell whether that many bytes of payload and records can be appended now."""
        if not self._flushing and self._open is None:
            return True  # larger than the ring: it grows for a while
        room = max(0, len(self._free) - 1) * (self._log_bytes - 2 * BLOCK_BYTES)
        if self._open is not None and len(self._free) >= 1:
            room += self._log_bytes - 2 * BLOCK_BYTES
        return nbytes <= room

    async def wait_ring_room(self, nbytes: int) -> None:
        """Wait until `has_ring_room`. Raises BrickFailed."""
        while not self.has_ring_room(nbytes):
            self.check()
            self.seal()
            await self._room.park()
        self.check()

    def segment_room_blocks(self) -> int:
        """Return how many blocks the current and the ready segments still take."""
        segments, tail, log = self._segments, self._tail, self._open
        rest = segments.size_blocks - tail.block if tail.segment >= 0 else 0
        if log is not None:
            rest -= layout.blocks_needed(len(log.records), log.payload_blocks)
        if rest < SMALL_TAIL_BLOCKS:
            rest = 0
        return rest + len(segments.ready) * segments.size_blocks

    def blocks_of(self, nbytes: int) -> int:
        """Return how many blocks of the log so many bytes take at worst, headers and cuts too."""
        blocks = -(-nbytes // BLOCK_BYTES)
        return blocks + blocks // (self._log_blocks - 2) + _CUT_BLOCKS

    def check(self) -> None:
        """Raise BrickFailed if the brick is read-only by now."""
        if self.failed is not None:
            raise self._failure() from self.failed

    def _failure(self) -> BrickFailed:
        return BrickFailed(f"the brick is read-only after: {self.failed}")

    # -- append

    def append(
        self,
        body: bytes,
        payload: memoryview,
        ranges: Sequence[tuple[int, int]] = (),
        first_cid: int = 0,
    ) -> list[Run]:
        """Append one transaction; return where its payload blocks are. Room has been checked.

        ranges: (first, end) bytes of `payload` that are stored, whole blocks, in order.
        """
        self._serial += 1
        log = self._open
        if log is not None and len(ranges) <= 1:
            blocks = (ranges[0][1] - ranges[0][0]) // BLOCK_BYTES if ranges else 0
            records = len(log.records) + FRAGMENT_BYTES + len(body)
            if layout.blocks_needed(records, log.payload_blocks + blocks) <= self._open_limit:
                return self._append_at_once(log, body, payload, ranges, blocks, first_cid)
        return self._append_in_pieces(body, payload, ranges, first_cid)

    def _append_at_once(
        self,
        log: Sealed,
        body: bytes,
        payload: memoryview,
        ranges: Sequence[tuple[int, int]],
        blocks: int,
        first_cid: int,
    ) -> list[Run]:
        head = layout.pack_fragment(_ONLY, len(body), blocks, first_cid, self._serial)
        log.records += head + body
        log.fragments += 1
        self.position = log.id
        if not blocks:
            return []
        index = 1 + log.payload_blocks
        at = index * BLOCK_BYTES
        first, end = ranges[0]
        log.memory[at : at + end - first] = payload[first:end]
        log.payload_blocks += blocks
        return [(locate(log.segment, log.block + index), blocks)]

    def _append_in_pieces(
        self,
        body: bytes,
        payload: memoryview,
        ranges: Sequence[tuple[int, int]],
        first_cid: int,
    ) -> list[Run]:
        runs: list[Run] = []
        copy = _Copy(payload, ranges)
        flags, at, cid = layout.BEGIN, 0, first_cid
        while True:
            log, room = self._log_with_room()
            piece = body[at : at + room] if at or room < len(body) else body
            at += len(piece)
            blocks = 0
            if at == len(body) and copy.left:
                blocks = min(copy.left, self._payload_room(log, len(piece)))
            last = at == len(body) and blocks == copy.left
            flags |= layout.COMMIT if last else 0
            log.records += layout.pack_fragment(flags, len(piece), blocks, cid, self._serial)
            log.records += piece
            log.fragments += 1
            if blocks:
                runs.append(self._take_blocks(log, copy, blocks))
                cid += blocks if first_cid else 0
            if last:
                break
            flags = 0
            self.seal()
        self.position = log.id
        return runs

    def whole_room(self, head_bytes: int, block_record_bytes: int) -> int:
        """Return how many payload blocks, each with such a record, fit uncut into one log."""
        while True:
            log, _ = self._log_with_room()
            head = len(log.records) + FRAGMENT_BYTES + head_bytes
            blocks = self._open_limit - 1 - log.payload_blocks
            while blocks > 0:
                records = head + blocks * block_record_bytes
                if layout.blocks_needed(records, log.payload_blocks + blocks) <= self._open_limit:
                    return blocks
                blocks -= 1
            self.seal()

    def _log_with_room(self) -> tuple[Sealed, int]:
        """Return a log with some room, and how many bytes of a body go into it."""
        log = self._open
        if log is not None:
            room = layout.record_room(self._open_limit, len(log.records), log.payload_blocks)
            if room >= _SMALL_ROOM_BYTES:
                return log, room - FRAGMENT_BYTES
            self.seal()
        log = self._open_next()
        return log, layout.record_room(self._open_limit, 0, 0) - FRAGMENT_BYTES

    def _payload_room(self, log: Sealed, piece_bytes: int) -> int:
        records = len(log.records) + FRAGMENT_BYTES + piece_bytes
        return self._open_limit - layout.blocks_needed(records, log.payload_blocks)

    def _take_blocks(self, log: Sealed, copy: "_Copy", blocks: int) -> Run:
        first = log.block + 1 + log.payload_blocks
        at = (1 + log.payload_blocks) * BLOCK_BYTES
        copy.into(log.memory, at, blocks * BLOCK_BYTES)
        log.payload_blocks += blocks
        return locate(log.segment, first), blocks

    def _open_next(self) -> Sealed:
        tail, segments = self._tail, self._segments
        if tail.segment >= 0 and segments.size_blocks - tail.block < SMALL_TAIL_BLOCKS:
            segments.close(tail.first_id, tail.next_id - 1)
            tail.segment = -1
        if tail.segment < 0:
            tail.segment, tail.block, tail.first_id = segments.take(), 0, tail.next_id
        if not self._free:
            self._free.append(memoryview(mmap.mmap(-1, self._log_bytes)))
            self._extra += 1
        log = Sealed(tail.next_id, tail.segment, tail.block, self._free.popleft())
        self._open_limit = min(self._log_blocks, segments.size_blocks - tail.block)
        self._open = log
        return log

    def seal(self, *, mark: bool = False) -> None:
        """Hand the open log to the flush thread. mark: if none is open, write an empty one."""
        if self._open is None:
            if not mark:
                return
            self._open_next()
        log = self._open
        assert log is not None
        self._open = None
        log.kind = layout.KIND_DATA if log.fragments else layout.KIND_MARK
        log.blocks = layout.blocks_needed(len(log.records), log.payload_blocks)
        self._tail.block += log.blocks
        self._tail.next_id = log.id + 1
        self.last_sealed = log
        self._flushing.append(log)
        self.bytes_written += log.blocks * BLOCK_BYTES
        self.logs_written += 1
        self._flusher.write(log)

    def mark_durable(self) -> None:
        """If no header on disk tells yet what is durable, write one that does."""
        idle = self.failed is None and self._open is None and not self._syncing
        untold = self._flusher.marked < self.durable == self.position
        if idle and untold and self.segment_room_blocks() > SMALL_TAIL_BLOCKS:
            self.seal(mark=True)

    # -- durability

    async def sync(self, position: int) -> None:
        """Return once everything up to `position` is durable. Raises BrickFailed."""
        self.check()
        self._wanted = max(self._wanted, position)
        while self.durable < position:
            self.check()
            if not self._syncing:
                self._syncing = True
                # Others that are about to run may append and wait too: one sync for all of them.
                await trio.lowlevel.cancel_shielded_checkpoint()
                self._start_sync()
                self.check()
            await self._synced.park()

    def when_durable(self, position: int, done: WhenDurable) -> None:
        """Call `done` once everything up to `position` is durable, or with BrickFailed.

        As `sync`, without a task. Positions are those of the moment, so they only grow.
        """
        if self.failed is not None:
            done(self._failure())
        elif position <= self.durable:
            done(None)
        else:
            self._calls.append((position, done))
            self._wanted = max(self._wanted, position)
            if not self._syncing:
                self._syncing = True
                self._start_sync()

    def _start_sync(self) -> None:
        if self.failed is not None:
            return
        if self._open is not None and self._open.id <= self._wanted:
            self.seal()
        self._flusher.sync()

    def _when_written(self, logs: list[Sealed]) -> None:
        for log in logs:
            first = self._flushing.popleft()
            assert first is log
            if self._extra:
                self._extra -= 1
            else:
                self._free.append(log.memory)
            log.memory = memoryview(b"")
        self._room.unpark_all()

    def _when_durable(self, log_id: int) -> None:
        self.durable = max(self.durable, log_id)
        if self._wanted > self.durable and self.failed is None:
            self._start_sync()
        else:
            self._syncing = False
        while self._calls and self._calls[0][0] <= self.durable:
            self._calls.popleft()[1](None)
        self._synced.unpark_all()

    def fail(self, error: OSError) -> None:
        """Make the brick read-only; every waiter learns it."""
        if self.failed is None:
            self.failed = error
            self._syncing = False
            self._synced.unpark_all()
            self._room.unpark_all()
            self._on_failed(error)
            while self._calls:
                self._calls.popleft()[1](self._failure())

    def set_executors(self, count: int) -> None:
        """Write with so many threads from now on."""
        self._flusher.set_executors(count)

    @property
    def executors(self) -> int:
        """Return how many threads write."""
        return self._flusher.executors

    async def stop(self) -> None:
        """End the flush thread."""
        await self._flusher.stop()

    # -- reads of what is not on disk yet

    def in_memory(self, location: int) -> memoryview | None:
        """Return the block at that location if it still lies in a RAM buffer."""
        if self._open is None and not self._flushing:
            return None
        segment, offset, _ = place_of(location)
        for log in self._in_flight():
            if log.segment == segment:
                index = offset // BLOCK_BYTES - log.block - 1
                if 0 <= index < log.payload_blocks:
                    at = (1 + index) * BLOCK_BYTES
                    return log.memory[at : at + BLOCK_BYTES]
        return None

    def _in_flight(self) -> Iterator[Sealed]:
        if self._open is not None:
            yield self._open
        yield from self._flushing

    @property
    def tail(self) -> Tail:
        """Return where the next log goes; nothing may be open."""
        assert self._open is None
        return self._tail

    @property
    def syncs(self) -> int:
        """Return how often the disk was synced."""
        return self._flusher.syncs

    @property
    def backlog(self) -> int:
        """Return how many logs are sealed but not yet written."""
        return len(self._flushing)


class _Copy:
    """Copies the wanted ranges of a payload, in order, in pieces of any size."""

    __slots__ = ("_at", "_index", "_payload", "_ranges", "left")

    def __init__(self, payload: memoryview, ranges: Sequence[tuple[int, int]]) -> None:
        self._payload = payload
        self._ranges = ranges
        self._index = 0
        self._at = ranges[0][0] if ranges else 0
        self.left = sum(end - first for first, end in ranges) // BLOCK_BYTES

    def into(self, memory: memoryview, at: int, nbytes: int) -> None:
        """Copy the next nbytes to memory[at:]."""
        self.left -= nbytes // BLOCK_BYTES
        while nbytes:
            end = self._ranges[self._index][1]
            size = min(nbytes, end - self._at)
            memory[at : at + size] = self._payload[self._at : self._at + size]
            at += size
            nbytes -= size
            self._at += size
            if self._at == end and self._index + 1 < len(self._ranges):
                self._index += 1
                self._at = self._ranges[self._index][0]
