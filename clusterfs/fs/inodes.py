"""The inodes that this node knows: what is cached of each while its lock is held, and the LRU.

What an Inode caches (record, entries, xattrs, versions) is true as long as its lock is held at PR;
`void` drops it when the lock goes. Dirty data and `record_dirty` exist only under EX, or, set aside
in `kept`, while this node is out of the cluster.

Invariants (`validate`):
  * committed_size <= record.size; equal when nothing is dirty;
  * a block is in `dirty`, in `flushing` (on its way to the replicas), in both, or in the store;
  * stored bytes beyond the committed size are zeros, or the inode is marked TRUNCATING.
"""

from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import msgspec

from clusterfs.fs.asking import Asker
from clusterfs.fs.attributes import Record
from clusterfs.fs.file_times import FileClock
from clusterfs.fs.keys import Entry
from clusterfs.fs.lock_cache import LockCache
from clusterfs.fs.locks import EX, NL, CachedLock
from clusterfs.fs.ports import Name, Volume
from clusterfs.fs.turns import Turns
from clusterfs.fs.value_block import Value, pack, unpack
from clusterfs.store.objects import ABSENT, ObjectId, Version, inode_object, stripe_object
from dlm.modes import Mode

if TYPE_CHECKING:
    from clusterfs.fs.handles import OpenFile

POSIX, FLOCK = b"posix", b"flock"  # what an inode's two tables of file locks are called

GiveUp = Callable[["Inode", Mode], Awaitable[None]]


class Stripe(msgspec.Struct):
    """One stripe of a file; `version` None: not known."""

    number: int
    object_id: ObjectId
    group: int
    version: Version | None = None


class Kept(msgspec.Struct):
    """What an inode was like when this node was lost: later dirty data is judged against it."""

    version: Version
    stripes: dict[int, Version]
    record: Record
    committed_size: int


class Inode:
    """One inode as this node knows it."""

    __slots__ = (
        "__weakref__",
        "_clock",
        "_locks",
        "_volume",
        "accessed_ns",
        "attempted",
        "attributes_until_s",
        "committed_size",
        "committing",
        "dirty",
        "dirty_since_s",
        "entries",
        "entries_until_s",
        "flushing",
        "gone",
        "group",
        "joined",
        "kept",
        "lock",
        "lookups",
        "lost_epoch",
        "mark",
        "number",
        "object_id",
        "on_parked",
        "open_lock",
        "opened",
        "pages_possible",
        "parked",
        "record",
        "record_dirty",
        "stripes",
        "target",
        "version",
        "was_directory",
        "write_error",
        "writers",
        "xattrs",
    )

    def __init__(
        self, number: int, volume: Volume, locks: LockCache, give_up: GiveUp, clock: FileClock
    ) -> None:
        self._clock = clock
        self.number = number
        self.group = volume.group_of_inode(number)
        self.object_id = inode_object(number)
        root = number.to_bytes(8, "big")

        async def give_up_inode(target: Mode) -> None:
            await give_up(self, target)

        self.lock: CachedLock = locks.lock(Name(root, b""), give_up_inode, self)
        self.open_lock: CachedLock = locks.lock(Name(root, b"o"))
        self.committing = Turns()  # one transaction at a time, in the order of versions
        self._volume = volume
        self._locks = locks
        # what the lock lets us cache
        self.record: Record | None = None
        self.version = ABSENT
        self.committed_size = 0
        self.mark: bytes | None = None
        self.entries: dict[bytes, Entry | None] = {}
        self.xattrs: dict[bytes, bytes | None] = {}
        self.target: bytes | None = None
        self.stripes: dict[int, Stripe] = {}
        # what is newer here than in the store
        self.record_dirty = False
        self.accessed_ns = 0  # a read that changed the record; not stored yet (access_times.py)
        self.dirty: dict[int, bytes | bytearray | memoryview] = {}
        self.flushing: dict[int, bytes | bytearray | memoryview] = {}
        self.joined: set[int] = set()  # block i and i - 1 were written by one write; may be stale
        self.dirty_since_s = 0.0
        self.write_error: Exception | None = None
        self.kept: Kept | None = None
        self.lost_epoch: int | None = None  # this node was lost in that view, and knew no version
        self.attempted: set[tuple[ObjectId, Version]] = set()
        self.was_directory = False  # when this node knew its record last
        self.gone = False  # deleted by this node with its last name: numbers are never used again
        # what the kernel has
        self.lookups = 0
        self.opened: set[OpenFile] = set()
        self.writers = 0
        self.pages_possible = False
        self.attributes_until_s = float("-inf")
        self.entries_until_s = float("-inf")
        self.parked: Counter[tuple[int, int]] = Counter()  # READs of cached pages not answered yet
        self.on_parked: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"Inode({self.number:#x}, {self.lock.level.name})"

    @property
    def needs_flush(self) -> bool:
        """Whether the store lacks something that is here."""
        return self.record_dirty or bool(self.dirty) or bool(self.flushing)

    @property
    def removable(self) -> bool:
        """Whether nothing would be missed if this was forgotten."""
        return not (
            self.lookups
            or self.opened
            or self.needs_flush
            or self.kept
            or self.parked
            or not self.lock.idle
            or not self.open_lock.idle
            or self.committing.locked()
        )

    async def known(self) -> None:
        """Wait until others may find a new inode in a way that no lock guards."""
        await self._locks.lockspace.known(self.lock.name.root)

    def stripe(self, number: int) -> Stripe:
        """Return one stripe; its version may not be known yet."""
        stripe = self.stripes.get(number)
        if stripe is None:
            seed = self.record.seed if self.record else 0
            group = (
                self._volume.group_of_stripe(self.number, seed, number) if number else self.group
            )
            stripe = Stripe(number, stripe_object(self.number, number), group)
            self.stripes[number] = stripe
        return stripe

    def value_block(self) -> bytes | None:
        """Return what the next holder of the lock may take over; None: nothing that is sure."""
        if self.record is None or self.needs_flush or self.committed_size != self.record.size:
            return None
        return pack(Value(self.record, self.version, self.mark))

    def take_over(self, block: bytes) -> None:
        """Believe what the last holder of the lock in EX left."""
        if self.record is None:
            value = unpack(block)
            self.record, self.version, self.mark = value.record, value.version, value.mark
            self.committed_size = value.record.size
            self.learned()

    def learned(self) -> None:
        """Note a new record: what is changed from now on is later.

        A read that is not stored is applied to it, unless it is of a later change.
        """
        record, accessed_ns = self.record, self.accessed_ns
        assert record is not None
        self._clock.saw(record.ctime_ns)
        if accessed_ns and max(record.ctime_ns, record.atime_ns) < accessed_ns:
            record.atime_ns = accessed_ns
        else:
            self.accessed_ns = 0

    def void(self) -> None:
        """Forget what the lock allowed to cache; what is dirty stays."""
        if self.record is not None:
            self.was_directory = self.record.is_directory
        self.record = None
        self.mark = None
        self.entries.clear()
        self.xattrs.clear()
        self.target = None
        self.stripes.clear()

    def set_aside(self, epoch: int) -> None:
        """Keep what dirty data, or a writer, is based on: this node is lost in view `epoch`."""
        if self.record is not None and (self.needs_flush or self.writers) and not self.kept:
            versions = {s.number: s.version for s in self.stripes.values() if s.version}
            self.kept = Kept(self.version, versions, self.record, self.committed_size)
        elif self.writers and not self.kept and self.lost_epoch is None:
            self.lost_epoch = epoch
        self.void()

    def parking(self, offset: int, length: int) -> "_Parking":
        """Return a context in which a READ of cached pages waits: its pages are locked."""
        return _Parking(self, (offset, length))

    def validate(self) -> None:
        """Check the invariants."""
        self.lock.validate()
        self.open_lock.validate()
        if self.record is not None:
            assert self.committed_size <= self.record.size
            assert self.needs_flush or self.committed_size == self.record.size
            assert self.lock.level > NL
        if self.needs_flush and self.kept is None and not self.lock.revoking:
            assert self.lock.level == EX
        assert self.lookups >= 0
        assert self.writers == sum(opened.writable for opened in self.opened)


async def exclude_all(stack: AsyncExitStack, inodes: Iterable[Inode]) -> None:
    """Take the locks of several inodes exclusively, in number order, until the stack unwinds."""
    await stack.enter_async_context(excluding_all(inodes))


def excluding_all(inodes: Iterable[Inode]) -> "Excluding":
    """Return a context with the locks of several inodes, used exclusively, in number order."""
    locks = {inode.number: inode.lock for inode in inodes}
    return Excluding([locks[number] for number in sorted(locks)])


class Excluding:
    """A context in which locks are used exclusively."""

    __slots__ = ("_locks", "_taken")

    def __init__(self, locks: Sequence[CachedLock]) -> None:
        self._locks = locks
        self._taken: list[tuple[CachedLock, Asker | None]] = []

    async def __aenter__(self) -> None:
        try:
            for lock in self._locks:
                await lock.wait_exclusive()
                self._taken.append((lock, lock.enter_use()))
        except BaseException:
            self._release()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        while self._taken:
            lock, asker = self._taken.pop()
            lock.leave_use(asker)
            lock.release()


class _Parking:
    __slots__ = ("_inode", "_span")

    def __init__(self, inode: Inode, span: tuple[int, int]) -> None:
        self._inode = inode
        self._span = span

    def __enter__(self) -> None:
        self._inode.parked[self._span] += 1
        if self._inode.on_parked is not None:
            self._inode.on_parked()

    def __exit__(self, *_: object) -> None:
        parked = self._inode.parked
        parked[self._span] -= 1
        if not parked[self._span]:
            del parked[self._span]


class Inodes:
    """The table of inodes; beyond `limit` the idle ones go, with their locks, the oldest first.

    An operation may still refer to one that went: `get` then finds the very same object again.
    """

    def __init__(
        self, volume: Volume, locks: LockCache, give_up: GiveUp, clock: FileClock, limit: int
    ) -> None:
        self._clock = clock
        self._volume = volume
        self._locks = locks
        self._give_up = give_up
        self._limit = limit
        self._table: OrderedDict[int, Inode] = OrderedDict()
        self._alive: WeakValueDictionary[int, Inode] = WeakValueDictionary()
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Inode]:
        return iter(list(self._alive.values()))

    def get(self, number: int) -> Inode:
        """Return the inode of that number, known before or not."""
        inode = self._table.get(number)
        if inode is not None:
            self._table.move_to_end(number)
            return inode
        if len(self._table) >= self._limit:
            self._evict()
        inode = self._alive.get(number)
        if inode is None:
            inode = Inode(number, self._volume, self._locks, self._give_up, self._clock)
            self._alive[number] = inode
        self._table[number] = inode
        return inode

    def known(self, number: int) -> Inode | None:
        """Return the inode if it is in the table."""
        return self._table.get(number)

    def forget(self, inode: Inode) -> None:
        """Drop an inode that is gone, unless somebody still refers to it."""
        if inode.removable and self._table.get(inode.number) is inode:
            del self._table[inode.number]
            self._drop(inode)

    def _drop(self, inode: Inode) -> None:
        inode.void()
        inode.lock.drop_idle()
        inode.open_lock.drop_idle()
        for kind in (POSIX, FLOCK):
            self._locks.lockspace.ranges.give_back(Name(inode.lock.name.root, kind))

    def _evict(self) -> None:
        """Make room: look at a few of the oldest, so that one call stays short."""
        for number in [n for n, _ in zip(self._table, range(16), strict=False)]:
            inode = self._table[number]
            if inode.removable:
                del self._table[number]
                self._drop(inode)
                self.evicted += 1
            else:
                self._table.move_to_end(number)
