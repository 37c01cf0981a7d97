"""The one meaning of a change, for every model of a store."""

from clusterfs.sim.model_objects import Object, apply_change
from clusterfs.store.objects import (
    ABSENT,
    BLOCK_BYTES,
    Change,
    Delete,
    Discard,
    Operation,
    Put,
    Remove,
    Write,
    inode_object,
)

NAME = inode_object(7)


def change(*operations: Operation) -> Change:
    return Change(NAME, 1, ABSENT, ABSENT.after(1), operations)


def test_blocks_are_taken_from_the_payload_in_order_and_zeros_are_holes() -> None:
    objects: dict[bytes, Object] = {}
    payload = b"a" * BLOCK_BYTES + bytes(BLOCK_BYTES) + b"c" * BLOCK_BYTES
    position = apply_change(objects, change(Write(5, 2), Put(b"k", b"v")), payload, 0)
    assert apply_change(objects, change(Write(9, 1)), payload, position) == len(payload)
    assert {n: block[:1] for n, block in objects[NAME].blocks.items()} == {5: b"a", 9: b"c"}
    assert objects[NAME].keys == {b"k": b"v"}
    assert objects[NAME].version == ABSENT.after(1)


def test_holes_may_be_long_and_deletion_leaves_nothing() -> None:
    objects: dict[bytes, Object] = {}
    apply_change(objects, change(Write(0, 1), Put(b"k", b"v")), b"a" * BLOCK_BYTES, 0)
    apply_change(objects, change(Discard(0, 1 << 60), Remove(b"k"), Remove(b"none")), b"", 0)
    assert not objects[NAME].blocks
    assert not objects[NAME].keys
    apply_change(objects, change(Delete()), b"", 0)
    assert not objects
