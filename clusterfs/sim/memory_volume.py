"""A volume that is a dictionary: the model of what replicas hold, for filesystems under test.

One Shelf is shared by all nodes; each node's MemoryVolume is its way to it. The shelf applies a
transaction whole or not at all and refuses one that expects another version, as stores do. A node
that is `out` is refused, and the transaction that it was about to make may or may not have happened
before: `applies_when_out` says which.

With a `random`, whatever may wait sometimes does, and whatever may raise WouldBlock sometimes does.
"""

import random
from collections.abc import Callable, Collection, Sequence

import msgspec
import trio

from clusterfs.errors import OutOfSpace, VersionMismatch, WouldBlock
from clusterfs.sim.model_objects import HOLE, Object, apply_change
from clusterfs.store.objects import (
    ABSENT,
    BLOCK_BYTES,
    MARK,
    Change,
    ObjectId,
    Version,
    inode_object,
    joined,
    split_object_id,
)
from clusterfs.volume.departed import OutcomeUnknown, Sent
from dlm.errors import LockLost

GROUPS = 64


class Room(msgspec.Struct, frozen=True):
    """The answer to statfs."""

    total: int
    free: int


def incarnation_of_inode(inode: int) -> int | None:
    """Return the incarnation that made the number up; None: nobody did."""
    return inode >> 29 & (1 << 24) - 1 or None


class Shelf:
    """What all replicas hold."""

    def __init__(self, room_blocks: int = 1 << 30) -> None:
        self.objects: dict[ObjectId, Object] = {}
        self.room_blocks = room_blocks
        self.epoch = 1
        self.present: set[int | None] = set()  # incarnations of nodes that are in the cluster
        self.transactions = 0

    def used_blocks(self) -> int:
        """Return how many blocks are allocated."""
        return sum(len(stored.blocks) for stored in self.objects.values())

    def apply(self, changes: Sequence[Change], payload: bytes) -> None:
        """Apply all or none. Raises VersionMismatch."""
        for change in changes:
            stored = self.objects.get(change.object_id)
            version = stored.version if stored else ABSENT
            if version != change.expected:
                raise VersionMismatch(f"{change.object_id.hex()}: {version} not {change.expected}")
            assert change.version > change.expected
            assert stored is None or stored.group == change.group
        position = 0
        for change in changes:
            position = apply_change(self.objects, change, payload, position)
        assert position == len(payload)
        self.transactions += 1


class MemoryVolume:
    """One node's way to the shelf."""

    def __init__(self, shelf: Shelf, incarnation: int, chance: random.Random | None = None) -> None:
        self._shelf = shelf
        self._chance = chance
        self._counter = 0
        self._reserved = 0
        self.incarnation = incarnation
        shelf.present.add(incarnation)
        self.out = False
        self.applies_when_out = False
        self.remembers = True
        self._sent = 0
        self._outcomes: dict[int, bool] = {}
        self.syncs = 0
        self.durable_commits = 0
        self.before_commit: Callable[[], object] | None = None

    def session(self, incarnation: int) -> None:
        """Begin anew after a readmission: nothing is reserved."""
        self._shelf.present.discard(self.incarnation)
        self._shelf.present.add(incarnation)
        self.incarnation = incarnation
        self.out = False
        self._reserved = 0

    @property
    def epoch(self) -> int:
        """The current view's number."""
        return self._shelf.epoch

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return GROUPS

    def new_inode(self, group: int | None = None) -> int:
        """Return a number never used before."""
        self._counter += 1
        if group is None:
            group = (self._counter * 7 + self.incarnation) % GROUPS
        return group << 53 | self.incarnation << 29 | self._counter

    def group_of_inode(self, inode: int) -> int:
        """Return the group of an inode object and of stripe 0."""
        return inode >> 53

    def group_of_stripe(self, inode: int, seed: int, n: int) -> int:
        """Return the group of a stripe."""
        return (seed + n * 13) % GROUPS if n else self.group_of_inode(inode)

    def maker_is_present(self, inode: int) -> bool:
        """Tell whether the number's maker was not lost."""
        return incarnation_of_inode(inode) in self._shelf.present

    def same_replicas(self, one: int, other: int) -> bool:
        """Say that most groups share their replicas."""
        return one == other or bool((one + other) % 4)

    def fetch_nowait(
        self, object_id: ObjectId, group: int, keys: Sequence[bytes]
    ) -> tuple[Version, list[bytes | None]]:
        """Return version and values."""
        self._may_block()
        return self._fetch(object_id, group, keys)

    async def fetch(
        self, object_id: ObjectId, group: int, keys: Sequence[bytes]
    ) -> tuple[Version, list[bytes | None]]:
        """Return version and values."""
        await self._may_wait()
        return self._fetch(object_id, group, keys)

    async def scan(
        self, object_id: ObjectId, _group: int, prefix: bytes, after: bytes, limit: int
    ) -> list[tuple[bytes, bytes]]:
        """Return keys > after that start with prefix."""
        await self._may_wait()
        stored = self._shelf.objects.get(object_id)
        found = sorted(stored.keys.items()) if stored else []
        return [(k, v) for k, v in found if k.startswith(prefix) and k > after][:limit]

    def read_nowait(self, object_id: ObjectId, group: int, first: int, count: int) -> bytes:
        """Return blocks."""
        self._may_block()
        return self._read(object_id, group, first, count)

    async def read(self, object_id: ObjectId, group: int, first: int, count: int) -> bytes:
        """Return blocks."""
        await self._may_wait()
        return self._read(object_id, group, first, count)

    async def commit(
        self,
        changes: Sequence[Change],
        payload: bytes = b"",
        *,
        durable: bool = False,
        shield: bool = False,
    ) -> None:
        """Apply all or none."""
        with trio.CancelScope(shield=shield):
            await self._commit(changes, payload, durable=durable)

    async def _commit(self, changes: Sequence[Change], payload: bytes, *, durable: bool) -> None:
        if self.before_commit is not None:
            self.before_commit()
        await self._may_wait(refused=False)
        if self.out:
            if self.applies_when_out:
                self._shelf.apply(changes, payload)
            self._sent += 1
            self._outcomes[self._sent] = self.applies_when_out
            raise OutcomeUnknown(Sent(self.incarnation, self._sent, changes[0].group))
        self._shelf.apply(changes, payload)
        self.durable_commits += durable
        await self._may_wait(refused=False)

    async def took_place(self, sent: Sent) -> bool | None:
        """Tell what became of a commit that was told nothing."""
        await self._may_wait()
        return self._outcomes[sent.sequence] if self.remembers else None

    async def sync(self, inodes: Collection[int] | None = None) -> None:
        """Count."""
        del inodes
        self.syncs += 1
        await self._may_wait()

    async def extents(
        self, object_id: ObjectId, group: int, first: int, count: int
    ) -> list[tuple[int, int]]:
        """Return the stretches of blocks that are no holes."""
        await self._may_wait()
        stored = self._shelf.objects.get(object_id)
        if stored is None:
            return []
        assert stored.group == group
        return joined(sorted(n for n in stored.blocks if first <= n < first + count))

    async def stripes(self, inode: int) -> list[tuple[int, int, Version]]:
        """Return the stripes that exist."""
        await self._may_wait()
        return sorted(
            (part - 1, stored.group, stored.version)
            for object_id, stored in self._shelf.objects.items()
            for number, part in [split_object_id(object_id)]
            if number == inode and part
        )

    async def marked(self, groups: Sequence[int]) -> list[ObjectId]:
        """Return objects that have a MARK."""
        await self._may_wait()
        return [
            object_id
            for object_id, stored in self._shelf.objects.items()
            if MARK in stored.keys and stored.group in groups
        ]

    def reserve_nowait(self, nbytes: int) -> bool:
        """Take credits."""
        if self._short_of(nbytes):
            return False
        self._reserved += nbytes
        return True

    async def reserve(self, nbytes: int) -> None:
        """Take credits, or raise OutOfSpace."""
        await self._may_wait()
        if not self.reserve_nowait(nbytes):
            raise OutOfSpace

    def unreserve(self, nbytes: int) -> None:
        """Give credits back."""
        self._reserved -= nbytes
        assert self._reserved >= 0

    async def statfs(self) -> Room:
        """Return room."""
        await self._may_wait()
        free = self._shelf.room_blocks - self._shelf.used_blocks()
        return Room(self._shelf.room_blocks * BLOCK_BYTES, free * BLOCK_BYTES)

    @property
    def reserved(self) -> int:
        """Credits taken and not given back."""
        return self._reserved

    def _short_of(self, nbytes: int) -> bool:
        if self._shelf.room_blocks >= 1 << 30:
            return False
        free = self._shelf.room_blocks - self._shelf.used_blocks()
        return self._reserved + nbytes > free * BLOCK_BYTES

    def _fetch(
        self, object_id: ObjectId, group: int, keys: Sequence[bytes]
    ) -> tuple[Version, list[bytes | None]]:
        stored = self._shelf.objects.get(object_id)
        if stored is None:
            return ABSENT, [None] * len(keys)
        assert stored.group == group
        return stored.version, [stored.keys.get(key) for key in keys]

    def _read(self, object_id: ObjectId, group: int, first: int, count: int) -> bytes:
        stored = self._shelf.objects.get(object_id)
        if stored is None:
            return bytes(count * BLOCK_BYTES)
        assert stored.group == group
        return b"".join(stored.blocks.get(i, HOLE) for i in range(first, first + count))

    def _may_block(self) -> None:
        if self.out or (self._chance is not None and self._chance.random() < 0.3):  # noqa: PLR2004
            raise WouldBlock

    async def _may_wait(self, *, refused: bool = True) -> None:
        rounds = 1 if self._chance is None else self._chance.randrange(4)
        for _ in range(rounds):
            await trio.lowlevel.checkpoint()
        if refused and self.out:
            raise LockLost


def root_exists(shelf: Shelf) -> bool:
    """Tell whether somebody made the root directory."""
    return inode_object(1) in shelf.objects
