"""The log's writing end: a ring of RAM buffers, sealed in order, written by the executors.

Records and payload are appended to the open log, which lies in a RAM buffer of its own; when it is
full, or somebody wants a sync, it is sealed and handed to the executors. A position is the id of
the log that holds a transaction's end: durable(position) means the transaction survives.

The cleaner has an open log and segments of its own (see tail.py). Its log gets its id when it is
sealed, the user's when it is opened: the user's open log is sealed first.

Invariants:
  * ids are contiguous; a log starts where its stream's last log in the segment ended;
  * a transaction's fragments are contiguous in its stream: nothing lies between BEGIN and COMMIT;
  * a RAM buffer is used again only after its log was written; until then reads find it here;
  * positions become durable in order, and a waiter learns of a failure exactly as BrickFailed.
"""

import mmap
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import trio

from clusterfs.errors import BrickFailed
from clusterfs.store import format as layout
from clusterfs.store.copying import Copy
from clusterfs.store.flush import Flusher, Sealed
from clusterfs.store.format import FRAGMENT_BYTES
from clusterfs.store.location import locate, place_of
from clusterfs.store.objects import BLOCK_BYTES
from clusterfs.store.segments import Segments
from clusterfs.store.tail import CLEANER, USER, Tail

SMALL_TAIL_BLOCKS = 4  # a segment's rest of less than this is left unused
_ONLY = layout.BEGIN | layout.COMMIT
_CUT_BLOCKS = 2 * SMALL_TAIL_BLOCKS  # what a cut at a segment's end may waste, and headers
_SMALL_ROOM_BYTES = 256  # a log with less room for records is sealed

WhenDurable = Callable[[BrickFailed | None], None]

# (first location, number of blocks): payload blocks that lie one behind the other
Run = tuple[int, int]


class Log:
    """The open log, the ring, and who waits for it. Belongs to the trio thread."""

    def __init__(
        self, segments: Segments, flusher: Flusher, tail: Tail, *, log_bytes: int, buffers: int
    ) -> None:
        self._segments = segments
        self.flusher = flusher
        self._log_blocks = log_bytes // BLOCK_BYTES
        self._free = deque(memoryview(mmap.mmap(-1, log_bytes)) for _ in range(buffers))
        self._log_bytes = log_bytes
        self._buffers = buffers
        self._extra = 0  # buffers beyond the ring, for a transaction larger than it
        self._open: Sealed | None = None
        self._open_limit = 0
        self._cold: Sealed | None = None  # the cleaner's open log
        self._cold_limit = 0
        self._flushing: deque[Sealed] = deque()
        self._tail = tail
        self._serial = 0
        self._newest_cid = 0
        self.last_sealed: Sealed | None = None
        self.position = tail.next_id - 1  # of the last appended record
        self.durable = tail.next_id - 1
        self._syncing = False
        self._wanted = 0
        self._synced = trio.lowlevel.ParkingLot()
        self._calls: deque[tuple[int, WhenDurable]] = deque()  # in the order of positions
        self._untold = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self.failed: OSError | None = None
        self._on_failed: Callable[[OSError], None] = lambda _: None
        self.bytes_written = 0
        self.user_bytes_written = 0
        self.logs_written = 0

    def start(self, on_failed: Callable[[OSError], None]) -> None:
        """Start the flush thread."""
        self._on_failed = on_failed
        self.flusher.start(self._when_written, self._when_durable, self.fail)

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
            self.seal_all()
            await self._room.park()
        self.check()

    def segment_room_blocks(self) -> int:
        """Return how many blocks the current and the ready segments still take."""
        segments, log = self._segments, self._open
        rest = self._rest(USER)
        if log is not None:
            rest -= layout.blocks_needed(len(log.records), log.payload_blocks)
        if rest < SMALL_TAIL_BLOCKS:
            rest = 0
        return rest + len(segments.ready) * segments.size_blocks

    def cleaning_room_blocks(self) -> int:
        """Return how many blocks the cleaner's and the ready segments still take."""
        rest, log = self._rest(CLEANER), self._cold
        if log is not None:
            rest -= layout.blocks_needed(len(log.records), log.payload_blocks)
        if rest < SMALL_TAIL_BLOCKS:
            rest = 0
        return rest + len(self._segments.ready) * self._segments.size_blocks

    def _rest(self, stream: int) -> int:
        place = self._tail.places[stream]
        return self._segments.size_blocks - place.block if place.segment >= 0 else 0

    def open_bytes(self) -> int:
        """Return how much is written in the segments that the streams fill."""
        return sum(p.block * BLOCK_BYTES for p in self._tail.places if p.segment >= 0)

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
        self._newest_cid = first_cid or self._newest_cid
        if len(ranges) <= 1:
            log = self._open if self._open is not None else self._open_next()
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
        copy = Copy(payload, ranges)
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

    # -- the cleaner's stream

    def relocate(self, body: bytes, payload: memoryview) -> tuple[int, int]:
        """Append a relocation that fits (see `fits_cold`); return (segment, block) of its payload.

        The payload is padded to whole blocks.
        """
        blocks = -(-len(payload) // BLOCK_BYTES)
        assert self.fits_cold(len(body), blocks), "a relocation lies in one log"
        if self._cold is None:
            self._cold, self._cold_limit = self._new_log(CLEANER)
        log = self._cold
        self._serial += 1
        log.records += layout.pack_fragment(_ONLY, len(body), blocks, 0, self._serial) + body
        log.fragments += 1
        at = (1 + log.payload_blocks) * BLOCK_BYTES
        end = at + len(payload)
        log.memory[at:end] = payload
        log.memory[end : at + blocks * BLOCK_BYTES] = bytes(at + blocks * BLOCK_BYTES - end)
        first = log.block + 1 + log.payload_blocks
        log.payload_blocks += blocks
        return log.segment, first

    def fits_cold(self, body_bytes: int, blocks: int) -> bool:
        """Tell whether a relocation like this fits into the cleaner's open log, or a new one."""
        log, limit, records = self._cold, self._log_blocks, FRAGMENT_BYTES + body_bytes
        if log is None:
            rest = self._rest(CLEANER)
            limit = min(limit, rest) if rest >= SMALL_TAIL_BLOCKS else limit
            return layout.blocks_needed(records, blocks) <= limit
        records += len(log.records)
        return layout.blocks_needed(records, log.payload_blocks + blocks) <= self._cold_limit

    # -- pieces

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

    def _take_blocks(self, log: Sealed, copy: Copy, blocks: int) -> Run:
        first = log.block + 1 + log.payload_blocks
        at = (1 + log.payload_blocks) * BLOCK_BYTES
        copy.into(log.memory, at, blocks * BLOCK_BYTES)
        log.payload_blocks += blocks
        return locate(log.segment, first), blocks

    def _open_next(self) -> Sealed:
        self._open, self._open_limit = self._new_log(USER)
        return self._open

    def _new_log(self, stream: int) -> tuple[Sealed, int]:
        """Return an empty log at the stream's place, and how many blocks it may have."""
        place, segments = self._tail.places[stream], self._segments
        if place.segment >= 0 and segments.size_blocks - place.block < SMALL_TAIL_BLOCKS:
            if stream == USER and self._newest_cid:
                segments.born[place.segment] = self._newest_cid
            segments.close(place.segment, place.first_id, place.last_id)
            place.segment = -1
        if place.segment < 0:
            place.enter(segments.take(cold=stream == CLEANER))
        if not self._free:
            self._free.append(memoryview(mmap.mmap(-1, self._log_bytes)))
            self._extra += 1
        log = Sealed(self._tail.next_id, place.segment, place.block, self._free.popleft())
        log.stream = stream
        return log, min(self._log_blocks, segments.size_blocks - place.block)

    def seal(self, *, mark: bool = False, sync: bool = False) -> None:
        """Hand the user's open log to the executors. mark: if none is open, write an empty one.

        sync: if one is handed over, it is synced with all before it.
        """
        if self._open is None:
            if not mark:
                return
            self._open_next()
        log = self._open
        assert log is not None
        self._open = None
        self.user_bytes_written += self._hand_over(log, sync=sync)

    def seal_cold(self) -> None:
        """Hand the cleaner's open log to the executors."""
        if self._cold is not None:
            self.seal()  # its id was given first
            log, self._cold = self._cold, None
            log.id = self._tail.next_id
            self._hand_over(log)

    def seal_all(self) -> None:
        """Hand over what is open, the cleaner's log too."""
        self.seal_cold()
        self.seal()

    def _hand_over(self, log: Sealed, *, sync: bool = False) -> int:
        log.kind = layout.KIND_DATA if log.fragments else layout.KIND_MARK
        log.blocks = layout.blocks_needed(len(log.records), log.payload_blocks)
        self._tail.places[log.stream].advance(log.id, log.blocks)
        self._tail.next_id = log.id + 1
        self.last_sealed = log
        self._flushing.append(log)
        self.bytes_written += log.blocks * BLOCK_BYTES
        self.logs_written += 1
        self.flusher.write(log, sync=sync)
        return log.blocks * BLOCK_BYTES

    def _is_untold(self) -> bool:
        return self.flusher.marked < self.position <= self.durable

    async def wait_unmarked(self) -> None:
        """Wait until no header on disk tells that the last record is durable, though it is."""
        while not self._is_untold():
            await self._untold.park()

    def mark_durable(self) -> None:
        """If no header on disk tells yet what is durable, write one that does."""
        idle = self.failed is None and self._open is None and not self._flushing
        if idle and self._is_untold() and self.segment_room_blocks() > SMALL_TAIL_BLOCKS:
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
            self.seal(sync=True)
        else:
            self.flusher.sync()

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
        self._untold.unpark_all()

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

    async def stop(self) -> None:
        """End the flush thread."""
        await self.flusher.stop()

    # -- reads of what is not on disk yet

    def in_memory(self, location: int) -> memoryview | None:
        """Return the stored bytes at that location if they still lie in a RAM buffer."""
        if self._open is None and not self._flushing and self._cold is None:
            return None
        segment, offset, length = place_of(location)
        for log in self._in_flight():
            if log.segment == segment:
                at = offset - log.block * BLOCK_BYTES
                if BLOCK_BYTES <= at < (1 + log.payload_blocks) * BLOCK_BYTES:
                    return log.memory[at : at + length]
        return None

    def _in_flight(self) -> Iterator[Sealed]:
        if self._open is not None:
            yield self._open
        if self._cold is not None:
            yield self._cold
        yield from self._flushing

    @property
    def tail(self) -> Tail:
        """Return where the next log goes; nothing may be open."""
        assert self._open is None
        assert self._cold is None
        return self._tail

    @property
    def last_id(self) -> int:
        """Return the id of the last sealed log."""
        return self._tail.next_id - 1

    @property
    def backlog(self) -> int:
        """Return how many logs are sealed but not yet written."""
        return len(self._flushing)
