"""What a store should hold: objects as plain data, changed as the transactions say. PURE.

Blocks are shared as they were before the transaction; a block of zeros is a hole. The bytes that a
transaction writes are kept with it while it is prepared.
"""

from typing import NamedTuple

from blake3 import blake3

from clusterfs.store.objects import (
    ABSENT,
    BLOCK_BYTES,
    Change,
    Delete,
    Discard,
    ObjectId,
    Operation,
    Put,
    Remove,
    Share,
    Transaction,
    Version,
    Write,
)


class ModelObject(NamedTuple):
    """An object as plain data."""

    version: Version
    group: int
    keys: dict[bytes, bytes]
    blocks: dict[int, bytes]


class Model:
    """What a store should hold."""

    def __init__(self) -> None:
        self.objects: dict[ObjectId, ModelObject] = {}
        self.applied: set[tuple[int, int]] = set()
        self.prepared: dict[tuple[int, int], tuple[Transaction, bytes]] = {}
        self.outcomes: dict[tuple[int, int], str] = {}
        self.facts: dict[str, int | bytes] = {}

    def copy(self) -> "Model":
        """Return an equal model; `perform` never changes an object in place."""
        other = Model()
        other.objects, other.applied = dict(self.objects), set(self.applied)
        other.prepared, other.outcomes = dict(self.prepared), dict(self.outcomes)
        other.facts = dict(self.facts)
        return other

    def perform(self, changes: tuple[Change, ...], payload: bytes) -> None:
        """Make the changes; blocks are shared as they were before all of them."""
        at, before = 0, dict(self.objects)
        for change in changes:
            old = self.objects.get(change.object_id, ModelObject(ABSENT, 0, {}, {}))
            now = ModelObject(change.version, change.group, dict(old.keys), dict(old.blocks))
            gone = False
            for operation in change.operations:
                if isinstance(operation, Write):
                    end = at + operation.count * BLOCK_BYTES
                    _write(now.blocks, operation.first, payload[at:end])
                    at = end
                elif isinstance(operation, Share):
                    source = before.get(operation.source)
                    _share(now.blocks, source.blocks if source else {}, operation)
                else:
                    gone = isinstance(operation, Delete)
                    _perform(now, operation)
            if gone:
                self.objects.pop(change.object_id, None)
            else:
                self.objects[change.object_id] = now

    def dump(self) -> dict[str, object]:
        """Return what `dump` returns for an equal store."""
        return {
            "objects": {
                object_id: (
                    found.version,
                    found.group,
                    sorted(found.keys.items()),
                    [
                        (block, blake3(data).digest(8))
                        for block, data in sorted(found.blocks.items())
                    ],
                )
                for object_id, found in self.objects.items()
            },
            "applied": set(self.applied),
            "prepared": set(self.prepared),
            "outcomes": dict(self.outcomes),
            "facts": dict(self.facts),
        }


def _write(blocks: dict[int, bytes], first: int, data: bytes) -> None:
    for index in range(len(data) // BLOCK_BYTES):
        block = data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
        if any(block):
            blocks[first + index] = block
        else:
            blocks.pop(first + index, None)


def _share(blocks: dict[int, bytes], source: dict[int, bytes], share: Share) -> None:
    for index in range(share.count):
        if (block := source.get(share.source_first + index)) is not None:
            blocks[share.first + index] = block
        else:
            blocks.pop(share.first + index, None)


def _perform(now: ModelObject, operation: Operation) -> None:
    match operation:
        case Put(key=key, value=value):
            now.keys[key] = value
        case Remove(key=key):
            now.keys.pop(key, None)
        case Discard(first=first, count=count):
            for block in range(first, first + count):
                now.blocks.pop(block, None)
        case _:
            pass
