"""Tombstones that survive a power cut, as numbered facts of the store.

A deletion that not every replica has on disk is noted in a slot until it has; after a restart all
slots are read. Without room, or slots, a tombstone is not kept: then the worst is that a deleted
object comes back, unreachable, after a power cut of all replicas.
"""

from collections.abc import Iterable
from contextlib import suppress

import msgpack

from clusterfs.errors import BrickFailed, WouldBlock
from clusterfs.store.objects import ObjectId, Version
from clusterfs.volume.ports import LocalStore

SLOTS = 1 << 14


class Tombstones:
    """The durable tombstones of one store."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._slots: dict[ObjectId, int] = {}
        self._free = list(range(SLOTS))
        self.loaded: dict[ObjectId, Version] = {}
        for slot in range(SLOTS):
            packed = store.fact(_name(slot))
            if isinstance(packed, bytes) and packed:
                object_id, epoch, counter = msgpack.unpackb(packed)
                self.loaded[object_id] = Version(epoch, counter)
                self._slots[object_id] = slot
        taken = set(self._slots.values())
        self._free = [slot for slot in reversed(range(SLOTS)) if slot not in taken]

    def add(self, object_id: ObjectId, version: Version) -> None:
        """Note a deletion."""
        if not self._free or object_id in self._slots:
            return
        packed = msgpack.packb((object_id, version.epoch, version.counter))
        with suppress(WouldBlock, BrickFailed):
            self._store.set_fact(_name(self._free[-1]), packed)
            self._slots[object_id] = self._free.pop()

    def remove(self, objects: Iterable[ObjectId]) -> None:
        """Forget deletions that are durable everywhere."""
        for object_id in objects:
            slot = self._slots.get(object_id)
            if slot is not None:
                with suppress(WouldBlock, BrickFailed):
                    self._store.set_fact(_name(slot), b"")
                    del self._slots[object_id]
                    self._free.append(slot)


def _name(slot: int) -> str:
    return f"tombstone/{slot}"
