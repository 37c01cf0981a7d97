"""What a change does to objects that are dicts: one meaning for every model of a store. PURE.

Invariant: a block of zeros is a hole, and takes no entry.
"""

from typing import Final

from clusterfs.store.objects import (
    ABSENT,
    BLOCK_BYTES,
    Change,
    Delete,
    Discard,
    Lose,
    ObjectId,
    Put,
    Remove,
    Share,
    Write,
)

HOLE: Final = bytes(BLOCK_BYTES)
LOST: Final = b"\xff" * BLOCK_BYTES


class Object:
    """One object's contents."""

    __slots__ = ("blocks", "group", "keys", "version")

    def __init__(self, group: int) -> None:
        self.group = group
        self.version = ABSENT
        self.keys: dict[bytes, bytes] = {}
        self.blocks: dict[int, bytes] = {}

    def write(self, number: int, block: bytes) -> None:
        """Set one block."""
        assert len(block) == BLOCK_BYTES
        if block == HOLE:
            self.blocks.pop(number, None)
        else:
            self.blocks[number] = block

    def discard(self, first: int, count: int) -> None:
        """Make holes; most of a long range may not be there."""
        for number in [n for n in self.blocks if first <= n < first + count]:
            del self.blocks[number]


def apply_change(
    objects: dict[ObjectId, Object], change: Change, payload: bytes, position: int
) -> int:
    """Do what the change says; its blocks are in `payload` from `position` on. Returns where on."""
    found = objects.setdefault(change.object_id, Object(change.group))
    found.version = change.version
    for operation in change.operations:
        if isinstance(operation, Put):
            found.keys[operation.key] = operation.value
        elif isinstance(operation, Remove):
            found.keys.pop(operation.key, None)
        elif isinstance(operation, Write):
            for number in range(operation.first, operation.first + operation.count):
                found.write(number, bytes(payload[position : position + BLOCK_BYTES]))
                position += BLOCK_BYTES
        elif isinstance(operation, Discard):
            found.discard(operation.first, operation.count)
        elif isinstance(operation, Lose):
            found.blocks |= dict.fromkeys(lost_blocks(operation), LOST)
        elif isinstance(operation, Share):
            _share(objects, found, operation)
        else:
            assert isinstance(operation, Delete)
            del objects[change.object_id]
    return position


def _share(objects: dict[ObjectId, Object], target: Object, share: Share) -> None:
    """Copy blocks. A source that is changed after its sharer must not change its blocks."""
    blocks = objects[share.source].blocks
    for number in range(share.count):
        target.write(share.first + number, blocks.get(share.source_first + number, HOLE))


def lost_blocks(operation: Lose) -> range:
    """Return the numbers of the blocks that it says are lost."""
    return range(operation.first, operation.first + operation.count)
