"""What a replica remembers of transactions that may not be everywhere yet. PURE.

Per client the objects that each transaction touched, until the client's stable watermark passes it:
every transaction up to the watermark is durable at every replica. When a client is gone, replicas
compare these memories and bring each other up to the union. A deletion leaves a tombstone that
lives as long as its transaction is remembered, so that a deleted object does not come back from a
replica that missed the deletion. The owner may keep tombstones durably; those it loads after a
restart belong to no transaction, and stay until `drop_loaded`.

Invariant: a transaction that some replica may lack is remembered by every replica that applied it.
"""

from collections.abc import Collection, Iterable, Mapping

from clusterfs.store.objects import ObjectId, Transaction, Version
from clusterfs.volume.messages import Touched, Trace, touched_by


class Memory:
    """One replica's remembered transactions."""

    def __init__(self) -> None:
        self._traces: dict[int, dict[int, tuple[Touched, ...]]] = {}
        self._tombstones: dict[ObjectId, Version] = {}
        self._loaded: dict[ObjectId, Version] = {}
        self._stable: dict[int, int] = {}

    def remember(self, transaction: Transaction) -> None:
        """Note an applied transaction."""
        objects = tuple([touched_by(change) for change in transaction.changes])
        self._note(transaction.client, transaction.sequence, objects)

    def add(self, trace: Trace) -> None:
        """Note what a transaction did, unless it is stable already."""
        self._note(trace.client, trace.sequence, tuple(dict.fromkeys(trace.objects)))

    def _note(self, client: int, sequence: int, objects: tuple[Touched, ...]) -> None:
        """Note different objects."""
        if sequence <= self._stable.get(client, 0):
            return
        known = self._traces.get(client)
        if known is None:
            known = self._traces[client] = {}
        before = known.get(sequence)
        # A transaction over several groups may be known in parts: keep all of them.
        known[sequence] = objects if before is None else tuple(dict.fromkeys((*before, *objects)))
        for touched in objects:
            if touched.deleted:
                self._entomb(touched.object_id, touched.version)

    def load(self, tombstones: Mapping[ObjectId, Version]) -> None:
        """Take tombstones of an earlier life."""
        for object_id, version in tombstones.items():
            self._entomb(object_id, version)
        self._loaded.update(tombstones)

    def drop_loaded(self) -> list[ObjectId]:
        """Forget the tombstones of an earlier life; returns those."""
        gone = [o for o, version in self._loaded.items() if self._tombstones.get(o) == version]
        for object_id in gone:
            del self._tombstones[object_id]
        self._loaded.clear()
        return gone

    def set_stable(self, client: int, sequence: int) -> list[ObjectId]:
        """Forget what is durable everywhere; returns the objects whose tombstones went."""
        if sequence <= self._stable.get(client, 0):
            return []
        self._stable[client] = sequence
        known = self._traces.get(client, {})
        return self._bury(t for old in [s for s in known if s <= sequence] for t in known.pop(old))

    def stable(self, client: int) -> int:
        """Return a client's watermark."""
        return self._stable.get(client, 0)

    def forget(self, client: int) -> list[ObjectId]:
        """Forget a client that is gone and rolled forward; returns whose tombstones went."""
        self._stable.pop(client, None)
        return self._bury(t for objects in self._traces.pop(client, {}).values() for t in objects)

    def clients(self) -> set[int]:
        """Return the clients of whom anything is remembered."""
        return set(self._traces) | set(self._stable)

    def traces(self, clients: Collection[int]) -> list[Trace]:
        """Return what is remembered of these clients."""
        return [
            Trace(client, sequence, objects)
            for client in clients
            for sequence, objects in self._traces.get(client, {}).items()
        ]

    def tombstone(self, object_id: ObjectId) -> Version | None:
        """Return the version at which the object was deleted lately."""
        return self._tombstones.get(object_id)

    def count(self) -> int:
        """Return how many transactions are remembered."""
        return sum(map(len, self._traces.values()))

    def _entomb(self, object_id: ObjectId, version: Version) -> None:
        """Note a deletion; of an object that was made anew meanwhile, the last one counts."""
        self._tombstones[object_id] = max(version, self._tombstones.get(object_id, version))

    def _bury(self, objects: Iterable[Touched]) -> list[ObjectId]:
        gone = []
        for touched in objects:
            if self._tombstones.get(touched.object_id) == touched.version:
                del self._tombstones[touched.object_id]
                gone.append(touched.object_id)
        return gone
