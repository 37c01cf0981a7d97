"""A store in memory with the interface of the real one: a journal, replayed after a crash.

What was not synced may be lost in a crash: its journal is cut at a seeded place, after the last
sync. Syncing takes simulated time. Nothing else of a real store is modelled.

Invariant: the state is what replaying the journal gives.
"""

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import blake3
import trio

from clusterfs.errors import (
    BrickFailed,
    ChunkCorrupted,
    NoSuchChunk,
    OutOfSpace,
    VersionMismatch,
)
from clusterfs.sim.model_objects import HOLE, Object, apply_change, lost_blocks
from clusterfs.store.objects import (
    ABSENT,
    BLOCK_BYTES,
    MARK,
    Change,
    Lose,
    ObjectId,
    Operation,
    Transaction,
    Version,
    Write,
    joined,
)
from clusterfs.volume.ports import Buffer


class Space(NamedTuple):
    """Room in bytes."""

    total: int
    free: int


class ModelStore:
    """One node's objects."""

    def __init__(self, rng: random.Random, *, total: int = 1 << 40, sync_s: float = 0.002) -> None:
        self._rng = rng
        self._total = total
        self._sync_s = sync_s
        self._journal: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._durable = 0
        self._life = 0  # counts the crashes
        self.broken = False
        self.rotten: set[tuple[ObjectId, int]] = set()  # blocks that rotted
        self._reset()

    def crash(self) -> None:
        """Lose what was not synced, from a random place on."""
        cut = self._rng.randint(self._durable, len(self._journal))
        del self._journal[cut:]
        self._life += 1
        self._reset()
        for call, arguments in self._journal:
            call(*arguments)
        self._durable = len(self._journal)

    # -- transactions ---------------------------------------------------------------------------

    async def admit_transaction(self, transaction: Transaction) -> None:
        """There is always room."""
        assert isinstance(transaction, Transaction)
        await trio.lowlevel.checkpoint()

    def apply(self, transaction: Transaction, payload: Buffer, *, hasten: bool = False) -> int:
        """Apply whole or not at all."""
        del hasten  # nothing takes time here
        if self.applied(transaction.client, transaction.sequence):
            return len(self._journal)
        self._check(transaction, payload)
        return self._log(self._apply, transaction, bytes(payload))

    def prepare(self, transaction: Transaction, payload: Buffer) -> int:
        """Remember a transaction undecided."""
        self._check(transaction, payload)
        return self._log(self._prepare, transaction, bytes(payload))

    def commit(self, client: int, sequence: int) -> int:
        """Apply a prepared transaction."""
        assert (client, sequence) in self._prepared
        return self._log(self._commit, client, sequence)

    def abort(self, client: int, sequence: int) -> int:
        """Forget a prepared transaction."""
        assert (client, sequence) in self._prepared
        return self._log(self._abort, client, sequence)

    def prepared(self) -> list[Transaction]:
        """Return the undecided transactions."""
        return [transaction for transaction, _ in self._prepared.values()]

    def outcome(self, client: int, sequence: int) -> str | None:
        """Return how a prepared transaction ended."""
        return self._outcomes.get((client, sequence))

    def forget_outcomes(self, client: int, below: int) -> int:
        """Forget outcomes of sequences < below."""
        for key in [key for key in self._outcomes if key[0] == client and key[1] < below]:
            del self._outcomes[key]
        return len(self._journal)

    def applied(self, client: int, sequence: int) -> bool:
        """Tell whether that transaction was applied."""
        return sequence <= self._stable.get(client, 0) or sequence in self._applied.get(client, ())

    def set_stable(self, client: int, sequence: int) -> int:
        """Forget the single sequences up to that one."""
        self._stable[client] = max(sequence, self._stable.get(client, 0))
        known = self._applied.get(client, set())
        self._applied[client] = {s for s in known if s > sequence}
        return len(self._journal)

    def forget_client(self, client: int) -> int:
        """Forget a client's sequences."""
        self._stable.pop(client, None)
        self._applied.pop(client, None)
        return self.forget_outcomes(client, 1 << 62)

    async def sync(self, position: int | None = None) -> None:
        """Make what was applied before the call durable."""
        end = len(self._journal) if position is None else position
        await trio.sleep(self._sync_s * (0.5 + self._rng.random()))
        if self.broken:
            raise BrickFailed("broken")
        self._durable = max(self._durable, min(end, len(self._journal)))

    def when_durable(self, done: Callable[[BrickFailed | None], None]) -> None:
        """Call `done` when what was applied before the call is durable; a crash forgets it."""
        trio.lowlevel.spawn_system_task(self._sync_then, len(self._journal), self._life, done)

    async def _sync_then(
        self, end: int, life: int, done: Callable[[BrickFailed | None], None]
    ) -> None:
        await trio.sleep(self._sync_s * (0.5 + self._rng.random()))
        if life != self._life:
            return
        if not self.broken:
            self._durable = max(self._durable, end)
        done(BrickFailed("broken") if self.broken else None)

    # -- reading --------------------------------------------------------------------------------

    def version(self, object_id: ObjectId) -> Version:
        """Return an object's version."""
        found = self._objects.get(object_id)
        return ABSENT if found is None else found.version

    def group(self, object_id: ObjectId) -> int | None:
        """Return an object's group."""
        found = self._objects.get(object_id)
        return None if found is None else found.group

    def get(self, object_id: ObjectId, key: bytes) -> bytes | None:
        """Return one value."""
        return self._objects[object_id].keys.get(key)

    def scan(
        self, object_id: ObjectId, prefix: bytes, after: bytes, limit: int
    ) -> list[tuple[bytes, bytes]]:
        """Return sorted keys > after that start with prefix, with values."""
        keys = self._objects[object_id].keys
        found = sorted(key for key in keys if key > after and key.startswith(prefix))
        return [(key, keys[key]) for key in found[:limit]]

    async def read(self, object_id: ObjectId, first: int, count: int) -> bytes:
        """Return blocks after a while."""
        await trio.sleep(self._sync_s / 10)
        return self._blocks_of(object_id, first, count)

    def read_nowait(self, object_id: ObjectId, first: int, count: int) -> bytes:
        """Return blocks at once."""
        return self._blocks_of(object_id, first, count)

    def objects(
        self, group: int | None, after: ObjectId | bytes, limit: int
    ) -> list[tuple[ObjectId, Version]]:
        """Return objects with id > after, sorted."""
        ids = sorted(o for o, x in self._objects.items() if group is None or x.group == group)
        start = bisect_right(ids, after)
        return [(o, self._objects[o].version) for o in ids[start : start + limit]]

    def marked(self) -> list[ObjectId]:
        """Return the objects with a MARK."""
        return sorted(o for o, found in self._objects.items() if MARK in found.keys)

    def blocks(
        self, object_id: ObjectId, first: int = 0, count: int = 1 << 20
    ) -> list[tuple[int, bytes]]:
        """Return number and hash of each block that is no hole."""
        blocks = self._objects[object_id].blocks
        return [(n, _hash(blocks[n])) for n in sorted(blocks) if first <= n < first + count]

    def extents(self, object_id: ObjectId, first: int, count: int) -> list[tuple[int, int]]:
        """Return (first, count) of the stretches of blocks that are no holes, in order."""
        return joined(n for n, _ in self.blocks(object_id, first, count))

    def damaged(self) -> int:
        """Return how many blocks rotted."""
        return len(self.rotten)

    async def damaged_blocks(self, limit: int) -> list[tuple[ObjectId, int]]:
        """Return the blocks that rotted."""
        return sorted(self.rotten)[:limit]

    def heal(self, object_id: ObjectId, block: int, data: bytes) -> bool:
        """Give a block its data back."""
        found = self._objects.get(object_id)
        if found is None or found.blocks.get(block) != data:
            return False
        self.rotten.discard((object_id, block))
        return True

    async def checkpoint(self) -> None:
        """Nothing rots here but blocks."""

    async def digest(self, object_id: ObjectId) -> bytes:
        """Return a digest of an object's contents."""
        found = self._objects[object_id]
        return _hash(repr((sorted(found.keys.items()), self.blocks(object_id))).encode())

    def replace(
        self,
        object_id: ObjectId,
        group: int,
        version: Version,
        operations: Sequence[Operation],
        payload: Buffer = b"",
        shares: Sequence[tuple[int, bytes]] = (),
    ) -> int:
        """Change an object whatever its version."""
        data = {_hash(d): d for x in self._objects.values() for d in x.blocks.values()}
        if any(identity not in data for _, identity in shares):
            raise NoSuchChunk("no such chunk")
        change = Change(object_id, group, ABSENT, version, tuple(operations))
        for operation in operations:
            if isinstance(operation, Write):
                self.rotten -= {(object_id, operation.first + i) for i in range(operation.count)}
        shared = [(number, data[identity]) for number, identity in shares]
        return self._log(self._replace, change, bytes(payload), shared)

    def has_chunk(self, identity: bytes) -> bool:
        """Tell whether some object here has that block."""
        return any(
            _hash(data) == identity for x in self._objects.values() for data in x.blocks.values()
        )

    def fact(self, name: str) -> int | bytes | None:
        """Return a small value."""
        return self._facts.get(name)

    def set_fact(self, name: str, value: int | bytes) -> int:
        """Set a small value."""
        return self._log(self._set_fact, name, value)

    def space(self) -> Space:
        """Return how much room there is."""
        used = sum(len(found.blocks) for found in self._objects.values()) * BLOCK_BYTES
        return Space(self._total, self._total - used)

    def contents(self) -> dict[ObjectId, tuple[Any, ...]]:
        """Return everything, to compare replicas."""
        return {
            o: (x.group, x.version, dict(x.keys), dict(x.blocks)) for o, x in self._objects.items()
        }

    # -- the state ------------------------------------------------------------------------------

    def _reset(self) -> None:
        self._objects: dict[ObjectId, Object] = {}
        self._prepared: dict[tuple[int, int], tuple[Transaction, bytes]] = {}
        self._outcomes: dict[tuple[int, int], str] = {}
        self._applied: dict[int, set[int]] = {}
        self._stable: dict[int, int] = {}
        self._facts: dict[str, int | bytes] = {}

    def _log(self, call: Callable[..., None], *arguments: Any) -> int:
        if self.broken:
            raise BrickFailed("broken")
        self._journal.append((call, arguments))
        call(*arguments)
        return len(self._journal)

    def _check(self, transaction: Transaction, payload: Buffer) -> None:
        if self.broken:
            raise BrickFailed("broken")
        if payload and len(payload) > self.space().free:
            raise OutOfSpace("full")
        for change in transaction.changes:
            if self.version(change.object_id) != change.expected:
                raise VersionMismatch(
                    f"{change.object_id.hex()}: at {self.version(change.object_id)}, "
                    f"expected {change.expected}"
                )
            assert change.version > change.expected, "versions grow"

    def _apply(self, transaction: Transaction, payload: bytes) -> None:
        position = 0
        for change in transaction.changes:
            position = apply_change(self._objects, change, payload, position)
            self._lose(change)
        assert position == len(payload), "the operations consume the payload"
        self._applied.setdefault(transaction.client, set()).add(transaction.sequence)

    def _prepare(self, transaction: Transaction, payload: bytes) -> None:
        self._prepared[transaction.client, transaction.sequence] = (transaction, payload)

    def _commit(self, client: int, sequence: int) -> None:
        self._apply(*self._prepared.pop((client, sequence)))
        self._outcomes[client, sequence] = "committed"

    def _abort(self, client: int, sequence: int) -> None:
        del self._prepared[client, sequence]
        self._outcomes[client, sequence] = "aborted"

    def _replace(self, change: Change, payload: bytes, shared: list[tuple[int, bytes]]) -> None:
        apply_change(self._objects, change, payload, 0)
        self._lose(change)
        for number, data in shared:
            self._objects[change.object_id].blocks[number] = data

    def _set_fact(self, name: str, value: int | bytes) -> None:
        if value == b"":
            self._facts.pop(name, None)
        else:
            self._facts[name] = value

    def _lose(self, change: Change) -> None:
        for operation in change.operations:
            if isinstance(operation, Lose):
                self.rotten |= {(change.object_id, n) for n in lost_blocks(operation)}

    def _blocks_of(self, object_id: ObjectId, first: int, count: int) -> bytes:
        numbers = range(first, first + count)
        if any((object_id, number) in self.rotten for number in numbers):
            raise ChunkCorrupted(object_id.hex())
        found = self._objects.get(object_id)
        blocks = {} if found is None else found.blocks
        return b"".join(blocks.get(number, HOLE) for number in numbers)


def _hash(data: bytes) -> bytes:
    return blake3.blake3(data).digest(length=16)
