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
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import trio
from blake3 import blake3

from clusterfs.errors import (
    BrickDamaged,
    BrickFailed,
    ChunkCorrupted,
    InvalidArgument,
    NoSuchChunk,
    OutOfSpace,
    SetupError,
    VersionMismatch,
    WouldBlock,
)
from clusterfs.store.checkpoint import Checkpoint
from clusterfs.store.chunks import PAGE_CIDS
from clusterfs.store.cleaning import Cleaner
from clusterfs.store.contents import Contents
from clusterfs.store.disk import Buffer, Disk
from clusterfs.store.flush import Flusher
from clusterfs.store.hints import Hints
from clusterfs.store.ingest import Ingest, Ingested
from clusterfs.store.layers import Values
from clusterfs.store.log import Log
from clusterfs.store.objects import (
    ABSENT,
    BLOCK_BYTES,
    STRIPE_BLOCKS,
    Change,
    ObjectId,
    Operation,
    Put,
    Transaction,
    Version,
    Write,
)
from clusterfs.store.outcomes import Outcome
from clusterfs.store.reading import Reader
from clusterfs.store.records import (
    Abort,
    Changes,
    Commit,
    Fact,
    ForgetClient,
    ForgetOutcomes,
    Placed,
    Prepared,
    Record,
    Replaced,
    Stable,
    encode,
)
from clusterfs.store.recovery import LogReader, Recovered, Recovery
from clusterfs.store.room import Need, Room, Space, need_of
from clusterfs.store.segments import Segments
from clusterfs.store.superblock import Superblock, enter_epoch, open_superblock
from clusterfs.store.upkeep import Upkeep

_MIN_SEGMENTS = 6
_MAX_KEY_BYTES = 320


class Options(msgspec.Struct, frozen=True):
    """Sizes. Only segment_bytes is fixed once the brick exists."""

    segment_bytes: int = 64 << 20
    log_bytes: int = 1 << 20
    buffers: int = 16  # RAM buffers of log_bytes each
    size_limit_bytes: int | None = None  # None: what the filesystem has free, less a reserve
    checkpoint_bytes: int = 256 << 20  # log between two checkpoints
    hints: int = 1 << 20  # blocks in the dedup window


class Store:
    """One open brick."""

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
        opening = _Opening(disk, options)
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
        return store

    def __init__(self, disk: Disk, key: bytes, options: Options, opening: "_Opening") -> None:
        """Put the parts together; `open` is the way in."""
        assert len(key) == 32, "a BLAKE3 key has 32 bytes"  # noqa: PLR2004
        self._disk = disk
        self._opening = opening
        self._contents, self._segments = opening.contents, opening.segments
        self._state, self._outcomes = self._contents.state, self._contents.outcomes
        superblock, tail = opening.superblock, opening.recovered.tail
        self.store_id = superblock.store_id
        flusher = Flusher(
            disk, superblock.store_bytes, superblock.epoch, tail.previous, tail.next_id - 1
        )
        self._log = Log(
            self._segments, flusher, tail, log_bytes=options.log_bytes, buffers=options.buffers
        )
        chunks = self._state.chunks
        self._hints = opening.hints
        self._ingest = Ingest(self._hints, key)
        self._key = key
        self._reader = Reader(disk, chunks, self._segments, self._log, self._hints)
        self._room = Room(self._segments, chunks, self._log)
        self._verified: set[int] = set()
        self._upkeep = Upkeep(
            disk,
            self._segments,
            self._state,
            self._log,
            opening.checkpoint,
            Cleaner(disk, opening.reader, self._contents, self._segments, self._log),
            epoch=superblock.epoch,
            segment_bytes=superblock.segment_bytes,
            checkpoint_bytes=options.checkpoint_bytes,
        )
        self._closed = False

    async def close(self) -> None:
        """Write a last checkpoint, stop, let the brick go. Raises nothing for a failed brick."""
        if self._closed:
            return
        self._closed = True
        with trio.CancelScope(shield=True):
            await self._upkeep.stop()
            if self._log.failed is None:
                with contextlib.suppress(BrickFailed):
                    await self._upkeep.take_checkpoint()
            await self._log.stop()
            self._opening.table.close()
            self._disk.close()

    # -- transactions

    async def admit(self, nbytes: int) -> None:
        """Wait until a transaction with nbytes of payload, keys and values can be applied.

        A guess for callers who have no transaction yet; `admit_transaction` is exact.
        """
        await self._admit(Need(-(-nbytes // BLOCK_BYTES), nbytes + nbytes // 64 + BLOCK_BYTES))

    async def admit_transaction(self, transaction: Transaction) -> None:
        """Wait until `apply` or `prepare` of this transaction will not raise WouldBlock.

        Holds until the caller's next await. Raises OutOfSpace, BrickFailed.
        """
        need = need_of(transaction.changes)
        self._room.check_space(need.data_blocks)
        await self._admit(need)

    async def _admit(self, need: Need) -> None:
        while True:
            self._log.check()
            if not self._room.has_segments(need):
                if not await self._upkeep.gain(self._log.blocks_of(need.nbytes)):
                    self._log.check()
                    if self._room.has_segments(need):
                        continue
                    raise OutOfSpace("the brick is full, and nothing can be cleaned")
            elif not self._log.has_ring_room(need.nbytes):
                await self._log.wait_ring_room(need.nbytes)
            else:
                return

    def apply(self, transaction: Transaction, payload: Buffer = b"") -> int:
        """Apply a transaction in memory and log it; return its position. All or nothing.

        A transaction that is already applied changes nothing. Raises VersionMismatch, OutOfSpace,
        WouldBlock (see `admit`), BrickFailed, InvalidArgument.
        """
        self._log.check()
        if self._outcomes.applied(transaction.client, transaction.sequence):
            return self._log.position
        return self._append_changes(Changes, transaction, payload)

    def prepare(self, transaction: Transaction, payload: Buffer = b"") -> int:
        """Log a transaction that waits for `commit` or `abort`; its objects are locked until then.

        Raises what `apply` raises; VersionMismatch too if it was aborted before it arrived.
        """
        self._log.check()
        key = (transaction.client, transaction.sequence)
        if key in self._outcomes.prepared or self._outcomes.applied(*key):
            return self._log.position
        if self._outcomes.outcome(*key) == "aborted":
            raise VersionMismatch("the transaction was aborted before it was prepared")
        return self._append_changes(Prepared, transaction, payload)

    def commit(self, client: int, sequence: int) -> int:
        """Apply a prepared transaction. One that is neither prepared nor decided is an error."""
        key = (client, sequence)
        if self._outcomes.outcome(*key) == "committed":
            return self._log.position
        assert key in self._outcomes.prepared, f"{key} is not prepared"
        return self._append_small(Commit(client, sequence))

    def abort(self, client: int, sequence: int) -> int:
        """Record that a transaction, prepared here or not, will never apply."""
        outcome = self._outcomes.outcome(client, sequence)
        assert outcome != "committed", f"({client}, {sequence}) is committed"
        if outcome is not None:
            return self._log.position
        return self._append_small(Abort(client, sequence))

    def prepared(self) -> list[Transaction]:
        """Return the prepared transactions; the data of their writes is not included."""
        return [_unresolved(prepared) for prepared in self._outcomes.prepared.values()]

    def outcome(self, client: int, sequence: int) -> Outcome | None:
        """Return what was decided about a transaction that was prepared or aborted, or None."""
        return self._outcomes.outcome(client, sequence)

    def forget_outcomes(self, client: int, below: int) -> int:
        """Forget the client's outcomes with a lower sequence."""
        return self._append_small(ForgetOutcomes(client, below))

    def applied(self, client: int, sequence: int) -> bool:
        """Tell whether the transaction is applied."""
        return self._outcomes.applied(client, sequence)

    def set_stable(self, client: int, sequence: int) -> int:
        """Every sequence up to this one is applied everywhere; the single ones are forgotten."""
        known = self._outcomes.clients.get(client)
        if known is not None and known.stable >= sequence:
            return self._log.position
        return self._append_small(Stable(client, sequence))

    def forget_client(self, client: int) -> int:
        """Forget all about a client that is gone for good."""
        return self._append_small(ForgetClient(client))

    def replace(
        self,
        object_id: ObjectId,
        group: int,
        version: Version,
        operations: Sequence[Operation],
        payload: Buffer = b"",
        shares: Sequence[tuple[int, bytes]] = (),
    ) -> int:
        """Change an object for resync, whatever version it has; it is at `version` afterwards.

        With version INCOMPLETE a long replacement may come in pieces; the last one gives the real
        version. shares: (block, identity) of blocks this brick has already, see `has_chunk`.
        Raises NoSuchChunk (nothing happened), and what `apply` raises.
        """
        self._log.check()
        change = Change(object_id, group, ABSENT, version, tuple(operations))
        need = self._check_shape((change,), payload)
        self._check_room(need)
        shared = self._resolve_shares(shares)
        ingested = self._ingest.resolve((change,), memoryview(payload), self._next_cid)
        resolved = ingested.changes[0]
        both = msgspec.structs.replace(resolved, operations=[*resolved.operations, *shared])
        ingested.changes[0] = both
        return self._append_ingested(Replaced(0, 0, 0, ingested.changes), ingested, payload)

    async def sync(self, position: int | None = None) -> None:
        """Return when everything up to `position` (default: all) survives a crash."""
        await self._log.sync(self._log.position if position is None else position)

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
        return await self._reader.read(self._state.cids(object_id, first, count))

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
        return [(block, identity(cid)) for block, cid in placed]

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
            self._hints.damaged.add(cid)
            return False
        self._verified.add(cid)
        return self._hints.find(identity) == cid

    def digest(self, object_id: ObjectId) -> bytes:
        """Return 16 bytes that are equal for objects with equal keys, values and blocks."""
        state = blake3(key=self._key)
        for key, value in self._state.scan(object_id, b"", b"", 1 << 60):
            state.update(b"%d,%d:" % (len(key), len(value)) + key + value)
        state.update(b";")
        for block, identity in self.blocks(object_id, 0, 1 << 32):
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

    def statistics(self) -> dict[str, int]:
        """Return counters and sizes; they start at 0 with the process."""
        return {
            "log_bytes_written": self._log.bytes_written,
            "logs_written": self._log.logs_written,
            "syncs": self._log.syncs,
            "position": self._log.position,
            "durable": self._log.durable,
            "checkpoints": self._opening.checkpoint.taken,
            "replayed_logs": self._opening.recovered.replayed,
            "deduplicated_blocks": self._ingest.deduplicated,
            "relocated_blocks": self._upkeep.relocated,
            "reads_that_waited": self._reader.waits,
            "live_blocks": self._state.chunks.live_total,
            "damaged_chunks": len(self._hints.damaged),
            "segments": self._segments.count,
            "segments_free": self._segments.free,
            "hints": len(self._hints),
        }

    @property
    def failed(self) -> OSError | None:
        """Return why the brick is read-only, None if it is not."""
        return self._log.failed

    @property
    def position(self) -> int:
        """Return the position of the last change."""
        return self._log.position

    async def checkpoint(self) -> None:
        """Take a checkpoint now."""
        await self._upkeep.take_checkpoint()

    def validate(self) -> None:
        """Execute the invariants; reads everything."""
        self._contents.validate()
        self._segments.validate(self._state.chunks.live)

    # -- appending

    @property
    def _next_cid(self) -> int:
        return self._state.chunks.next_cid

    def _append_changes(
        self, kind: type[Changes], transaction: Transaction, payload: Buffer
    ) -> int:
        changes = transaction.changes
        locked, version = self._outcomes.locked, self._state.version
        for change in changes:
            if change.object_id in locked:
                raise VersionMismatch("a prepared transaction holds the object")
            if version(change.object_id) != change.expected:
                raise VersionMismatch(
                    f"the object is at {version(change.object_id)}, not at {change.expected}"
                )
        self._check_room(self._check_shape(changes, payload))
        ingested = self._ingest.resolve(changes, memoryview(payload), self._next_cid)
        record = kind(transaction.client, transaction.sequence, transaction.epoch, ingested.changes)
        return self._append_ingested(record, ingested, payload)

    def _append_ingested(self, record: Changes, ingested: Ingested, payload: Buffer) -> int:
        first_cid = ingested.first_cid if ingested.fresh else 0
        runs = self._log.append(encode(record), memoryview(payload), ingested.ranges, first_cid)
        self._contents.enact(record, runs, ingested.checksums, first_cid)
        self._ingest.learn(ingested)
        self._upkeep.poke_if_due()
        return self._log.position

    def _append_small(self, record: Record) -> int:
        self._log.check()
        blocks = self._log.blocks_of(0)
        if self._log.segment_room_blocks() < blocks:
            self._upkeep.poke(blocks)
            raise WouldBlock("the log waits for the cleaner or for a new segment")
        self._log.append(encode(record), memoryview(b""))
        self._contents.enact(record)
        self._upkeep.poke_if_due()
        return self._log.position

    def _check_shape(self, changes: tuple[Change, ...], payload: Buffer) -> Need:
        need = need_of(changes)
        if need.data_blocks * BLOCK_BYTES != len(payload):
            raise InvalidArgument("the payload is not what the writes take")
        if len(changes) > 1 and len({change.object_id for change in changes}) < len(changes):
            raise InvalidArgument("a transaction changes an object only once")
        for change in changes:
            for operation in change.operations:
                if type(operation) is Put and not 0 < len(operation.key) <= _MAX_KEY_BYTES:
                    raise InvalidArgument("a key has 1 to 320 bytes")
        return need

    def _check_room(self, need: Need) -> None:
        self._room.check_space(need.data_blocks)
        try:
            self._room.check_log(need)
        except WouldBlock:
            self._upkeep.poke(self._log.blocks_of(need.nbytes))
            raise

    def _resolve_shares(self, shares: Sequence[tuple[int, bytes]]) -> list[Placed]:
        placed = []
        for block, identity in shares:
            cid = self._hints.find(identity)
            if cid is None:
                raise NoSuchChunk(f"no chunk {identity.hex()} for block {block}")
            placed.append(Placed(block, array("Q", [cid]), b""))
        return placed


class _Opening:
    """What `Store.open` finds out on its worker thread."""

    def __init__(self, disk: Disk, options: Options) -> None:
        self._disk = disk
        self._options = options

    def recover(self, *, store_id: str | None, cluster_id: str) -> None:
        """Read superblock, checkpoint and log; enter a new epoch."""
        disk, options = self._disk, self._options
        disk.lock()
        superblock = open_superblock(
            disk, store_id=store_id, cluster_id=cluster_id, segment_bytes=options.segment_bytes
        )
        self.table = disk.open_table()
        try:
            self._replay(superblock)
        except BrickFailed as error:
            self.table.close()
            raise BrickDamaged(str(error)) from error
        except BaseException:
            self.table.close()
            raise

    def _replay(self, superblock: Superblock) -> None:
        disk, size_bytes = self._disk, superblock.segment_bytes
        limit_bytes = self._options.size_limit_bytes
        existing = len(disk.segments())
        if limit_bytes is None:
            limit_bytes = existing * size_bytes + disk.free_bytes()
        limit = max(existing, limit_bytes // size_bytes)
        if limit < _MIN_SEGMENTS:
            raise SetupError(
                f"the brick has room for {limit_bytes} bytes; it needs at least "
                f"{_MIN_SEGMENTS * size_bytes}"
            )
        self.segments = Segments(
            size_bytes // BLOCK_BYTES, limit, self._options.log_bytes // BLOCK_BYTES
        )
        self.values = Values(self.table)
        self.contents = Contents(self.values)
        self.checkpoint = Checkpoint(self.table, self.values, self.contents, self.segments)
        self.reader = LogReader(disk, superblock.store_bytes, self.segments.size_blocks)
        tail, epoch = self.checkpoint.load()
        recovery = Recovery(disk, self.reader, self.contents, self.segments)
        self.recovered: Recovered = recovery.run(tail, epoch)
        disk.sync(sorted(self.recovered.touched))
        chunks = self.contents.state.chunks
        self.first_cid = chunks.next_cid
        self.hints = Hints(chunks, self._options.hints)
        self.hints.fill(self._options.hints // PAGE_CIDS)
        self.superblock = enter_epoch(disk, superblock, self.recovered.epoch)


def _unresolved(prepared: Prepared) -> Transaction:
    """Return the transaction as its client sent it."""
    changes = tuple(
        Change(
            change.object_id,
            change.group,
            change.expected,
            change.version,
            tuple(
                Write(operation.first, len(operation.cids))
                if isinstance(operation, Placed)
                else operation
                for operation in change.operations
            ),
        )
        for change in prepared.changes
    )
    return Transaction(prepared.client, prepared.sequence, prepared.epoch, changes)
