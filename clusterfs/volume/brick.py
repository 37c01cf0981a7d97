"""This node's store as the volume wants it: whole-object copies over small replacements.

`clusterfs.store.Store` replaces objects in pieces that each fit into one transaction; here a copy
another replica's object becomes such pieces: first all blocks that differ, with the object marked
INCOMPLETE, then the keys together with the real version. An interrupted copy stays INCOMPLETE, which
every comparison sees as different, so the next resync begins it anew.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import trio
from blake3 import blake3

from clusterfs.store.objects import (
    ABSENT,
    BLOCK_BYTES,
    Discard,
    ObjectId,
    Operation,
    Put,
    Remove,
    Version,
    Write,
)
from clusterfs.store.store import Store
from clusterfs.volume.copies import runs
from clusterfs.volume.ports import INCOMPLETE, FetchBlocks

_BLOCKS_PER_PIECE = 256
_ALL = 1 << 40
_IDENTITY_BYTES = 16


class Brick:
    """Implements clusterfs.volume.ports.LocalStore on a Store."""

    def __init__(self, store: Store, key: bytes) -> None:
        self._store = store
        self._key = key
        self.admit = store.admit
        self.apply = store.apply
        self.prepare = store.prepare
        self.commit = store.commit
        self.abort = store.abort
        self.prepared = store.prepared
        self.outcome = store.outcome
        self.forget_outcomes = store.forget_outcomes
        self.applied = store.applied
        self.set_stable = store.set_stable
        self.forget_client = store.forget_client
        self.sync = store.sync
        self.version = store.version
        self.get = store.get
        self.scan = store.scan
        self.read = store.read
        self.read_nowait = store.read_nowait
        self.objects = store.objects
        self.marked = store.marked
        self.blocks = store.blocks
        self.digest = store.digest
        self.space = store.space

    def group(self, object_id: ObjectId) -> int:
        """Return the group of an object that exists."""
        group = self._store.group(object_id)
        assert group is not None, object_id
        return group

    async def replace(
        self,
        object_id: ObjectId,
        group: int,
        version: Version,
        keys: dict[bytes, bytes],
        blocks: list[tuple[int, bytes]],
        fetch: FetchBlocks,
    ) -> None:
        """Make the object a copy; until it is complete its version is INCOMPLETE.

        Raises what `fetch` raises, OutOfSpace, BrickFailed.
        """
        here = self._store.version(object_id) != ABSENT
        local = dict(self._store.blocks(object_id)) if here else {}
        wanted = [number for number, identity in blocks if local.get(number) != identity]
        for start in range(0, len(wanted), _BLOCKS_PER_PIECE):
            numbers = wanted[start : start + _BLOCKS_PER_PIECE]
            data = await fetch(numbers)
            writes = [Write(*run) for run in runs(numbers)]
            await self._piece(object_id, group, INCOMPLETE, writes, data)
        theirs = {number for number, _ in blocks}
        surplus = sorted(number for number in local if number not in theirs)
        operations: list[Operation] = [Discard(*run) for run in runs(surplus)]
        operations += self._key_operations(object_id, keys, here=here)
        *pieces, last = list(_in_pieces(operations)) or [[]]
        for piece in pieces:
            await self._piece(object_id, group, INCOMPLETE, piece, b"")
        await self._piece(object_id, group, version, last, b"")

    async def repair(self, object_id: ObjectId, first: int, data: bytes) -> None:
        """Rewrite blocks that rotted here from a good copy; those changed since stay."""
        version = self._store.version(object_id)
        if version == ABSENT:
            return
        group = self.group(object_id)
        now = dict(self._store.blocks(object_id, first, len(data) // BLOCK_BYTES))
        for start in range(0, len(data), BLOCK_BYTES):
            block, number = data[start : start + BLOCK_BYTES], first + start // BLOCK_BYTES
            if now.get(number) == blake3(block, key=self._key).digest(_IDENTITY_BYTES):
                await self._store.admit(BLOCK_BYTES)
                if self._store.version(object_id) != version:
                    return
                self._store.replace(object_id, group, version, [Write(number, 1)], block)

    def fact(self, name: str) -> int | bytes | None:
        """Return a small durable value."""
        return self._store.fact(name)

    def set_fact(self, name: str, value: int | bytes | None) -> Any:
        """Set, or with None remove, a small durable value; durable with the next sync."""
        return self._store.set_fact(name, b"" if value is None else value)

    def _key_operations(
        self, object_id: ObjectId, keys: dict[bytes, bytes], *, here: bool
    ) -> list[Operation]:
        known = dict(self._store.scan(object_id, b"", b"", _ALL)) if here else {}
        operations: list[Operation] = [Remove(key) for key in known if key not in keys]
        return operations + [Put(k, v) for k, v in keys.items() if known.get(k) != v]

    async def _piece(
        self,
        object_id: ObjectId,
        group: int,
        version: Version,
        operations: Sequence[Operation],
        data: bytes,
    ) -> None:
        size = len(data) + sum(_size(operation) for operation in operations)
        await self._store.admit(size)
        self._store.replace(object_id, group, version, operations, data)
        await trio.lowlevel.checkpoint()


def _in_pieces(operations: Sequence[Operation]) -> Iterator[list[Operation]]:
    """Part operations so that each part fits well into a log."""
    piece: list[Operation] = []
    size = 0
    for operation in operations:
        if piece and size + _size(operation) > _BLOCKS_PER_PIECE * BLOCK_BYTES // 2:
            yield piece
            piece, size = [], 0
        piece.append(operation)
        size += _size(operation)
    if piece:
        yield piece


def _size(operation: Operation) -> int:
    if isinstance(operation, Put):
        return len(operation.key) + len(operation.value) + 64
    return 64
