"""Tombstones that survive a power cut, as numbered facts of the store.

What a transaction deletes is noted in one slot before it is applied, until every replica has it on
disk; after a restart all slots are read. So a power cut leaves the tombstone without the deletion,
which says nothing while the object is there, but never one deletion of a transaction without the
others' tombstones. Without room, or slots, tombstones are not kept: then the worst is that deleted
objects come back, unreachable, after a power cut of all replicas.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress

import msgpack

from clusterfs.errors import BrickFailed, WouldBlock
from clusterfs.store.objects import Delete, ObjectId, Transaction, Version
from clusterfs.volume.ports import LocalStore

SLOTS = 1 << 14


class Tombstones:
    """The durable tombstones of one store."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._slots: dict[ObjectId, tuple[Version, int]] = {}  # the last deletion, and its slot
        self._left: dict[int, int] = {}  # by slot: how many of its objects still need it
        self._free: list[int] = []
        for slot in range(SLOTS):
            packed = store.fact(_name(slot))
            if isinstance(packed, bytes) and packed:
                self._occupy(slot, _unpack(packed))
        self._free = [slot for slot in reversed(range(SLOTS)) if slot not in self._left]
        self.loaded = {object_id: version for object_id, (version, _) in self._slots.items()}

    def add(self, deletions: Mapping[ObjectId, Version]) -> None:
        """Note what one transaction deletes."""
        fresh = {o: version for o, version in deletions.items() if not self._noted(o, version)}
        if fresh and self._free:
            packed = msgpack.packb([(o, v.epoch, v.counter) for o, v in fresh.items()])
            with suppress(WouldBlock, BrickFailed):
                self._store.set_fact(_name(self._free[-1]), packed)
                self._occupy(self._free.pop(), fresh)

    def remove(self, objects: Iterable[ObjectId]) -> None:
        """Forget deletions that are durable everywhere, or did not happen."""
        for object_id in objects:
            if object_id in self._slots:
                self._leave(self._slots.pop(object_id)[1])

    def _noted(self, object_id: ObjectId, version: Version) -> bool:
        known = self._slots.get(object_id)
        return known is not None and known[0] >= version

    def _occupy(self, slot: int, deletions: Mapping[ObjectId, Version]) -> None:
        """Let a slot stand for these; of an object that was deleted twice the last one counts."""
        self._left[slot] = len(deletions)
        for object_id, version in deletions.items():
            mine, other = (version, slot), self._slots.get(object_id)
            self._slots[object_id] = mine if other is None else max(mine, other)
            if other is not None:
                self._leave(min(mine, other)[1])

    def _leave(self, slot: int) -> None:
        """Count that one object needs the slot no more."""
        self._left[slot] -= 1
        if not self._left[slot]:
            del self._left[slot]
            with suppress(WouldBlock, BrickFailed):
                self._store.set_fact(_name(slot), b"")
                self._free.append(slot)


def deletions(transaction: Transaction) -> dict[ObjectId, Version]:
    """Return what a transaction deletes."""
    found = {}
    for change in transaction.changes:
        if change.operations and type(change.operations[-1]) is Delete:
            found[change.object_id] = change.version
    return found


def _unpack(packed: bytes) -> dict[ObjectId, Version]:
    return {
        ObjectId(object_id): Version(epoch, counter)
        for object_id, epoch, counter in msgpack.unpackb(packed)
    }


def _name(slot: int) -> str:
    return f"tombstone/{slot}"
