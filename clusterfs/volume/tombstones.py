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
        self._slots: dict[ObjectId, int] = {}
        self._left: dict[int, int] = {}  # by slot: how many of its objects still need it
        self.loaded: dict[ObjectId, Version] = {}
        for slot in range(SLOTS):
            packed = store.fact(_name(slot))
            if isinstance(packed, bytes) and packed:
                self._occupy(slot, _unpack(packed))
        self._free = [slot for slot in reversed(range(SLOTS)) if slot not in self._left]

    def add(self, deletions: Mapping[ObjectId, Version]) -> None:
        """Note what one transaction deletes."""
        fresh = {o: version for o, version in deletions.items() if o not in self._slots}
        if fresh and self._free:
            packed = msgpack.packb([(o, v.epoch, v.counter) for o, v in fresh.items()])
            with suppress(WouldBlock, BrickFailed):
                self._store.set_fact(_name(self._free[-1]), packed)
                slot = self._free.pop()
                self._left[slot] = len(fresh)
                self._slots.update(dict.fromkeys(fresh, slot))

    def remove(self, objects: Iterable[ObjectId]) -> None:
        """Forget deletions that are durable everywhere, or did not happen."""
        for object_id in objects:
            slot = self._slots.pop(object_id, None)
            if slot is None:
                continue
            self._left[slot] -= 1
            if not self._left[slot]:
                del self._left[slot]
                with suppress(WouldBlock, BrickFailed):
                    self._store.set_fact(_name(slot), b"")
                    self._free.append(slot)

    def _occupy(self, slot: int, deletions: dict[ObjectId, Version]) -> None:
        self._left[slot] = len(deletions)
        self._slots.update(dict.fromkeys(deletions, slot))
        self.loaded.update(deletions)


def deletions(transaction: Transaction) -> dict[ObjectId, Version]:
    """Return what a transaction deletes."""
    return {
        change.object_id: change.version
        for change in transaction.changes
        if change.operations and isinstance(change.operations[-1], Delete)
    }


def _unpack(packed: bytes) -> dict[ObjectId, Version]:
    return {
        ObjectId(object_id): Version(epoch, counter)
        for object_id, epoch, counter in msgpack.unpackb(packed)
    }


def _name(slot: int) -> str:
    return f"tombstone/{slot}"
