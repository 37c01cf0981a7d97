"""The door of the store: transactions in, objects out, one brick behind it.

`apply` and its like change the state in memory at once and append to the log; they return a
position. `sync(position)` returns when that position survives a crash. Everything before a position
survives with it. A failed write or sync makes the brick read-only: every later change and sync
raises BrickFailed, reads go on.

A store belongs to the trio thread that opened it. The plain methods never wait and do no disk I/O,
except for a page of the memory-mapped checkpoint.

Invariants: `validate` executes them.
"""

import contextlib
from array import array
from collections.abc import Callable
from functools import partial

import trio
from blake3 import blake3

from clusterfs.errors import BrickFailed, ChunkCorrupted, InvalidArgument, VersionMismatch
from clusterfs.store.cache import ChunkCache
from clusterfs.store.cleaning import Cleaner
from clusterfs.store.disk import Disk
from clusterfs.store.flush import MAX_EXECUTORS, Flusher
from clusterfs.store.healing import Healer
from clusterfs.store.ingest import Ingest
from clusterfs.store.log import Log
from clusterfs.store.objects import BLOCK_BYTES, STRIPE_BLOCKS, ObjectId, Version, joined
from clusterfs.store.opening import Opening, Options, Tuning
from clusterfs.store.reading import Reader
from clusterfs.store.reclaiming import Reclaiming
from clusterfs.store.records import LOST, Fact
from clusterfs.store.remembering import Memory
from clusterfs.store.room import Need, Room, Space
from clusterfs.store.scrubbing import FACT as SCRUB
from clusterfs.store.scrubbing import Scrubber
from clusterfs.store.transactions import Transactions
from clusterfs.store.upkeep import Upkeep

# What `blocks` says of a block whose chunk does not exist.
LOST_IDENTITY = b"\xff" * 16

_DIGEST_KEYS = 4096
_HINT_PAGES = 16  # 1 ms of work, then a pause
_HINT_PAUSE_S = 0.004


class Store(Transactions):
    """One open brick: what changes it (see transactions.py), what reads it, what keeps it going."""

    @classmethod
    async def open(
        cls,
        disk: Disk,
        key: bytes,
        *,
        store_id: str | None = None,
        cluster_id: str = "",
        options: Options | None = None,
        on_failed: Callable[[OSError], None] | None = None,
    ) -> "Store":
        """Lock the brick, replay its log, start its thread and task.

        disk: closed again if this fails. key: 32 bytes, the cluster's secret for identities.
        on_failed: called once when the brick becomes read-only.
        Raises SetupError; BrickDamaged if what was durable cannot be read.
        """
        options = options or Options()
        opening = Opening(disk, options)
        try:
            await trio.to_thread.run_sync(
                partial(opening.recover, store_id=store_id, cluster_id=cluster_id)
            )
        except BaseException:
            disk.close()
            raise
        store = cls(disk, key, options, opening)
        store._log.start(on_failed or (lambda _: None))
        opening.values.on_damage = store._log.fail
        await store._upkeep.make_segments()
        trio.lowlevel.spawn_system_task(store._upkeep.run)
        trio.lowlevel.spawn_system_task(store._fill_hints)
        trio.lowlevel.spawn_system_task(store._scrubber.run)
        trio.lowlevel.spawn_system_task(store._look_again)
        return store

    async def _fill_hints(self) -> None:
        """Rebuild the rest of the dedup window, little by little."""
        more = True
        with contextlib.suppress(BrickFailed):  # the checkpoint rotted: the log tells everybody
            while more and not self._closed:
                more = self._hints.fill_more(_HINT_PAGES)
                await trio.sleep(_HINT_PAUSE_S)

    async def _look_again(self) -> None:
        """Read what was damaged when the store was closed."""
        with contextlib.suppress(BrickFailed):
            await self._memory.look_again()

    def __init__(self, disk: Disk, key: bytes, options: Options, opening: Opening) -> None:
        """Put the parts together; `open` is the way in."""
        assert len(key) == 32, "a BLAKE3 key has 32 bytes"  # noqa: PLR2004
        self._disk = disk
        self._key = key
        self._opening = opening
        self._segments = segments = opening.segments
        superblock, tail = opening.superblock, opening.recovered.tail
        self.store_id = superblock.store_id
        contents, hints, chunks = opening.contents, opening.hints, opening.contents.state.chunks
        flusher = Flusher(
            disk, superblock.store_bytes, superblock.epoch, tail.previous, tail.next_id - 1
        )
        log = Log(segments, flusher, tail, log_bytes=options.log_bytes, buffers=options.buffers)
        flusher.set_executors(options.executors)
        cleaner = Cleaner(opening.reader, contents, segments, log, options.compression)
        upkeep = Upkeep(
            disk,
            segments,
            contents.state,
            log,
            opening.checkpoint,
            Reclaiming(segments, chunks, log, cleaner),
            epoch=superblock.epoch,
            segment_bytes=superblock.segment_bytes,
            size_limit_bytes=options.most_bytes(superblock.segment_bytes),
            checkpoint_bytes=options.checkpoint_bytes,
        )
        self._cache = ChunkCache(options.cache_bytes)
        super().__init__(
            contents,
            log,
            hints,
            Ingest(hints, key, contents.state, self._cache),
            Room(segments, contents.state, log),
            upkeep,
        )
        self._damage = opening.damage
        self._reader = Reader(disk, chunks, segments, log, self._damage, self._cache)
        self._healer = Healer(contents, log, self._damage, self._ingest.identity)
        self._memory = Memory(disk, contents, segments, self._damage, self.set_fact)
        stored = contents.facts.get(SCRUB)
        self._scrubber = Scrubber(
            disk,
            opening.table,
            chunks,
            segments,
            log,
            self._damage,
            stored if isinstance(stored, bytes) else b"",
            partial(self.set_fact, SCRUB),
        )
        self._cleaner = cleaner
        self._verified: set[int] = set()
        self._closed = False

    async def close(self) -> None:
        """Write a last checkpoint, stop, let the brick go. Raises nothing for a failed brick."""
        if self._closed:
            return
        self._closed = True
        self._scrubber.close()
        with trio.CancelScope(shield=True):
            await self._upkeep.stop()
            if self._log.failed is None:
                with contextlib.suppress(BrickFailed):
                    await self._upkeep.take_checkpoint()
            await self._log.stop()
            self._opening.table.close()
            self._disk.close()

    async def sync(self, position: int | None = None) -> None:
        """Return when everything up to `position` (default: all) survives a crash."""
        await self._log.sync(self._log.position if position is None else position)

    def when_durable(self, done: Callable[[BrickFailed | None], None]) -> None:
        """Call `done`, perhaps at once, when everything up to now survives a crash.

        With BrickFailed if it may not. No task waits for it.
        """
        self._log.when_durable(self._log.position, done)

    # -- objects

    def version(self, object_id: ObjectId) -> Version:
        """Return the object's version; ABSENT, or INCOMPLETE while it is being replaced."""
        return self._state.version(object_id)

    def group(self, object_id: ObjectId) -> int | None:
        """Return the object's group, None if it does not exist."""
        head = self._state.head(object_id)
        return None if head is None else head.group

    def get(self, object_id: ObjectId, key: bytes) -> bytes | None:
        """Return the value of a key, or None."""
        return self._state.get(object_id, key)

    def scan(
        self, object_id: ObjectId, prefix: bytes = b"", after: bytes = b"", limit: int = 1 << 30
    ) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` sorted pairs; keys start with `prefix` and are > `after`."""
        return self._state.scan(object_id, prefix, after, limit)

    def read_nowait(self, object_id: ObjectId, first: int, count: int) -> bytes:
        """Return `count` blocks, holes as zeros. Raises WouldBlock if a disk must be asked."""
        return self._reader.read_nowait(self._state.cids(object_id, first, count))

    async def read(self, object_id: ObjectId, first: int, count: int) -> bytes:
        """Return `count` blocks as of this call, holes as zeros. Raises ChunkCorrupted."""
        cids = self._state.cids(object_id, first, count)
        try:
            return await self._reader.read(cids)
        except ChunkCorrupted as error:
            for block, cid in enumerate(cids, first):
                if cid and self._state.chunks.find(cid) is None:
                    self._damage.note_lost(object_id, block)
            text = f"object {object_id.hex()}, blocks {first} to {first + count - 1}: {error}"
            raise ChunkCorrupted(text) from error

    def objects(
        self, group: int | None = None, after: ObjectId | bytes = b"", limit: int = 1 << 30
    ) -> list[tuple[ObjectId, Version]]:
        """Return up to `limit` objects with id > `after`, in order."""
        return self._state.objects(group, after, limit)

    def marked(self) -> list[ObjectId]:
        """Return the objects that have the key MARK."""
        return sorted(self._state.marked)

    def blocks(
        self, object_id: ObjectId, first: int = 0, count: int = STRIPE_BLOCKS
    ) -> list[tuple[int, bytes]]:
        """Return (block, 16-byte identity) of the blocks that are no holes, in order."""
        identity = self._state.chunks.identity
        placed = self._state.placed(object_id, first, first + count)
        return [(block, LOST_IDENTITY if c == LOST else identity(c)) for block, c in placed]

    def extents(self, object_id: ObjectId, first: int, count: int) -> list[tuple[int, int]]:
        """Return (first, count) of the stretches of blocks that are no holes, in order."""
        return joined(n for n, _ in self._state.placed(object_id, first, first + count))

    def has_chunk(self, identity: bytes) -> bool:
        """Tell whether a chunk of that identity was written or verified by this process."""
        cid = self._hints.find(identity)
        return cid is not None and (cid >= self._opening.first_cid or cid in self._verified)

    async def find_chunk(self, identity: bytes) -> bool:
        """As has_chunk, but look on the disk if need be."""
        if self.has_chunk(identity):
            return True
        cid = self._hints.find(identity)
        if cid is None:
            return False
        try:
            block = await self._reader.read(array("Q", [cid]))
        except ChunkCorrupted:
            return False
        if self._ingest.identity(block) != identity:
            self._damage.note([cid])
            return False
        self._verified.add(cid)
        return self._hints.find(identity) == cid

    async def digest(self, object_id: ObjectId) -> bytes:
        """Return 16 bytes that are equal for objects with equal keys, values and blocks.

        Made in steps. Raises VersionMismatch if the object changes meanwhile.
        """
        version, state, after = self.version(object_id), blake3(key=self._key), b""
        while page := self._state.scan(object_id, b"", after, _DIGEST_KEYS):
            for key, value in page:
                state.update(b"%d,%d:" % (len(key), len(value)) + key + value)
            after = page[-1][0]
            await trio.lowlevel.checkpoint()
            if self.version(object_id) != version:
                raise VersionMismatch("the object changed while its digest was made")
        state.update(b";")
        for block, identity in self.blocks(object_id):
            state.update(block.to_bytes(8, "little") + identity)
        return state.digest(16)

    # -- facts, space, upkeep

    def fact(self, name: str) -> int | bytes | None:
        """Return a small durable value, None if it was never set."""
        return self._contents.facts.get(name)

    def set_fact(self, name: str, value: int | bytes) -> int:
        """Set a small durable value; b"" removes it."""
        return self._append_small(Fact(name, value))

    def space(self) -> Space:
        """Return how full the brick is, in bytes."""
        return self._room.space()

    def usage(self) -> dict[str, int]:
        """Return where the brick's room went, in bytes; see Room.usage."""
        return self._room.usage()

    def statistics(self) -> dict[str, int]:
        """Return counters and sizes; they start at 0 with the process."""
        return {
            "log_bytes_written": self._log.bytes_written,
            "logs_written": self._log.logs_written,
            "syncs": self._log.flusher.syncs,
            "position": self._log.position,
            "durable": self._log.durable,
            "checkpoints": self._opening.checkpoint.taken,
            "replayed_logs": self._opening.recovered.replayed,
            "logical_blocks": self._state.logical_blocks,
            "unique_blocks": self._state.chunks.count,
            "shared_blocks": self._state.logical_blocks - self._state.chunks.count,
            "zero_blocks": self._ingest.zeros,
            "new_blocks": self._ingest.fresh,
            "deduplicated_blocks": self._ingest.deduplicated,
            "cloned_blocks": self._ingest.shared,
            "relocated_blocks": self._cleaner.moved,
            "packed_blocks": self._cleaner.packed,
            "reads_that_waited": self._reader.waits,
            "live_blocks": self._room.live_blocks,
            "damaged_chunks": self._healer.damaged(),
            "damage_found": self._damage.found,
            "damage_healed": self._damage.healed,
            "segments": self._segments.count,
            "segments_free": self._segments.free,
            "hints": len(self._hints),
            "hints_bytes": self._hints.nbytes,
            "cached_chunks": len(self._cache),
            "cached_bytes": self._cache.nbytes,
            "cache_hits": self._cache.hits,
            "cache_misses": self._cache.misses,
        }

    def tune(self, wanted: Tuning) -> dict[str, int | str]:
        """Change what may change while the store is open; return how it is now.

        Raises InvalidArgument.
        """
        if wanted.flush_executors is not None:
            if not 0 < wanted.flush_executors <= MAX_EXECUTORS:
                raise InvalidArgument(f"there may be 1 to {MAX_EXECUTORS} flush executors")
            self._log.flusher.set_executors(wanted.flush_executors)
        if wanted.compression is not None:
            self._cleaner.codec = wanted.compression
        return {"flush_executors": self._log.flusher.executors, "compression": self._cleaner.codec}

    def health(self) -> list[str]:
        """Return what an administrator should act on, a sentence each; nothing if all is well."""
        if self._log.failed is not None:
            why = f"the brick is read-only: {self._log.failed}; nothing written since is kept."
            return [f"{why} Replace the disk and let the node synchronise a new brick"]
        if self._upkeep.short:
            return ["the brick's filesystem is full: no room for a checkpoint; make room on it"]
        return []

    @property
    def failed(self) -> OSError | None:
        """Return why the brick is read-only, None if it is not."""
        return self._log.failed

    @property
    def position(self) -> int:
        """Return the position of the last change."""
        return self._log.position

    # -- damage

    def start_scrub(self, rate_bytes: int) -> None:
        """Verify every chunk on the medium, at most so many bytes a second; or go on with it."""
        self._scrubber.start(rate_bytes)

    def stop_scrub(self) -> None:
        """Stop the scrub where it is."""
        self._scrubber.stop()

    def scrub_progress(self) -> dict[str, int | float | bool | None]:
        """Return where the scrub is and what it found."""
        return self._scrubber.progress()

    def damaged(self) -> int:
        """Return how many damaged chunks and lost blocks are known now."""
        return self._healer.damaged()

    async def damaged_blocks(self, limit: int) -> list[tuple[ObjectId, int]]:
        """Return (object, block) of known damage, one block of each chunk."""
        return await self._healer.blocks(limit)

    def heal(self, object_id: ObjectId, block: int, data: bytes) -> bool:
        """Give a damaged block its data back; False if it is not what was there.

        Raises BrickFailed, WouldBlock.
        """
        self._log.check()
        self._check_room(Need(0, 2 * BLOCK_BYTES), ())
        return self._healer.heal(object_id, block, data)

    async def checkpoint(self) -> None:
        """Take a checkpoint now."""
        await self._upkeep.take_checkpoint()

    def validate(self) -> None:
        """Execute the invariants; reads everything."""
        self._contents.validate()
        self._segments.validate(self._state.chunks.live)
