"""A brick in memory whose power can be cut anywhere.

The disk keeps a journal of everything that was asked of it, in order. `crash(at, fate)` builds the
brick as it may look when the power went after the first `at` events: what a sync covered is there;
of every other write, `fate` says which 512-byte sectors arrived, were lost, or are garbage.
Creating a segment, replacing the superblock and committing the table are atomic and durable.

Faults besides power cuts: `fail_writes`, `fail_syncs`, `fail_commits` raise EIO, `rot` flips a bit,
reading a block in `unreadable` raises EIO, `full` raises ENOSPC for new segments.

Invariant: the same journal, `at` and fate give the same brick.
"""

import errno
import random
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from clusterfs.errors import SetupError
from clusterfs.store.lane import Lane
from clusterfs.store.objects import BLOCK_BYTES
from clusterfs.store.table import TOTAL, Table, Total, damage_in

SECTOR_BYTES = 512


class Written(NamedTuple):
    """A write to a segment."""

    segment: int
    offset: int
    content: bytes


class Synced(NamedTuple):
    """Earlier writes to these segments are durable."""

    segments: frozenset[int]


class Created(NamedTuple):
    """A new segment of zeros."""

    segment: int
    size_bytes: int


class SuperblockWritten(NamedTuple):
    """The superblock was replaced."""

    content: bytes


class Committed(NamedTuple):
    """The table took a transaction."""

    changes: tuple[tuple[bytes, bytes | None], ...]


Event = Written | Synced | Created | SuperblockWritten | Committed

# What the medium holds of an unsynced write: a function of (write, old content) -> new content.
Fate = Callable[[Written, bytes], bytes]


def dropped(_: Written, old: bytes) -> bytes:
    """Nothing of it arrived."""
    return old


def arrived(write: Written, _: bytes) -> bytes:
    """All of it arrived."""
    return write.content


def cut_after(sectors: int) -> Fate:
    """Return a fate: the first sectors arrived, the others did not."""

    def fate(write: Written, old: bytes) -> bytes:
        end = sectors * SECTOR_BYTES
        return write.content[:end] + old[end:]

    return fate


def seeded(seed: int) -> Fate:
    """Return a fate: each write arrives, is lost, is torn by sectors, or leaves garbage."""
    generator = random.Random(seed)

    def fate(write: Written, old: bytes) -> bytes:
        match generator.randrange(5):
            case 0:
                return old
            case 1 | 2:
                return write.content
            case 3:
                return cut_after(generator.randrange(len(old) // SECTOR_BYTES + 1))(write, old)
            case _:
                return _mixed(write.content, old, generator)

    return fate


def _mixed(new: bytes, old: bytes, generator: random.Random) -> bytes:
    sectors = []
    for at in range(0, len(new), SECTOR_BYTES):
        part = slice(at, at + SECTOR_BYTES)
        source = generator.choice((new[part], old[part], None))
        sectors.append(generator.randbytes(len(new[part])) if source is None else source)
    return b"".join(sectors)


class Medium:
    """What survives a power cut."""

    def __init__(self) -> None:
        self.segments: dict[int, bytearray] = {}
        self.superblock: bytes | None = None
        self.table: dict[bytes, bytes] = {}

    def copy(self) -> "Medium":
        """Return an equal medium that shares nothing."""
        other = Medium()
        other.segments = {number: bytearray(data) for number, data in self.segments.items()}
        other.superblock = self.superblock
        other.table = dict(self.table)
        return other

    def write(self, segment: int, offset: int, content: bytes) -> None:
        """Overwrite some bytes."""
        self.segments[segment][offset : offset + len(content)] = content

    def take(self, event: Event) -> None:
        """Do what the event says, durably."""
        match event:
            case Written(segment, offset, content):
                self.write(segment, offset, content)
            case Created(segment, size_bytes):
                self.segments[segment] = bytearray(size_bytes)
            case SuperblockWritten(content):
                self.superblock = content
            case Committed(changes):
                for key, value in changes:
                    if value is None:
                        self.table.pop(key, None)
                    else:
                        self.table[key] = value
            case Synced():
                pass


class SimulatedDisk:
    """A Disk (see clusterfs/store/disk.py) in memory."""

    def __init__(self, medium: Medium | None = None, *, size_bytes: int = 1 << 40) -> None:
        self._before = medium or Medium()  # as it was when the journal began
        self.medium = self._before.copy()  # as it reads now
        self.journal: list[Event] = []
        self._size_bytes = size_bytes
        self._mutex = threading.Lock()
        self._locked = False
        self.fail_writes = False
        self.fail_syncs = False
        self.fail_commits = False
        self.unreadable: set[tuple[int, int]] = set()  # (segment, block)
        self.unreadable_errno = errno.EIO
        self.full = False
        self.table_full = False  # commits raise ENOSPC, but for one from the ballast
        self.ballast = False
        self._spare = False
        self.others_bytes = 0  # what others take of the filesystem
        self.cached = True  # read_nowait finds everything

    # -- faults

    def crash(self, at: int, fate: Fate) -> "SimulatedDisk":
        """Return the brick after a power cut: only the first `at` events were asked of it."""
        medium = self._before.copy()
        pending: list[Written] = []
        for event in self.journal[:at]:
            if isinstance(event, Written):
                pending.append(event)
            elif isinstance(event, Synced):
                for write in [w for w in pending if w.segment in event.segments]:
                    medium.take(write)
                pending = [w for w in pending if w.segment not in event.segments]
            else:
                medium.take(event)
        for write in pending:
            end = write.offset + len(write.content)
            old = bytes(medium.segments[write.segment][write.offset : end])
            medium.write(write.segment, write.offset, fate(write, old))
        return SimulatedDisk(medium, size_bytes=self._size_bytes)

    def killed(self) -> "SimulatedDisk":
        """Return the brick after its process was killed: unsynced writes stay unsynced."""
        other = SimulatedDisk(size_bytes=self._size_bytes)
        other._before, other.medium = self._before, self.medium.copy()
        other.journal = list(self.journal)
        return other

    def rot(self, segment: int, offset: int, bit: int = 0) -> None:
        """Flip one bit."""
        self.medium.segments[segment][offset] ^= 1 << bit

    def _record(self, event: Event) -> None:
        with self._mutex:
            self.medium.take(event)
            self.journal.append(event)

    def _commit(self, event: Event) -> None:
        if self.fail_commits:
            raise OSError(errno.EIO, "simulated failure of the table")
        if self.table_full and not self._spare:
            raise OSError(errno.ENOSPC, "simulated full disk")
        self._spare = False
        self._record(event)

    # -- Disk

    def lock(self) -> None:
        """Refuse a second opening."""
        if self._locked:
            raise SetupError("the simulated brick is in use")
        self._locked = True

    def read_superblock(self) -> bytes | None:
        """Return the superblock."""
        return self.medium.superblock

    def write_superblock(self, content: bytes) -> None:
        """Replace the superblock."""
        self._record(SuperblockWritten(content))

    def open_table(self) -> Table:
        """Return the table."""
        return SimulatedTable(self.medium.table, self._commit)

    def segments(self) -> list[int]:
        """Return the segments' numbers."""
        return sorted(self.medium.segments)

    def hold_open(self, segments: Iterable[int]) -> None:
        """Do nothing: there are no descriptors."""

    def create_segment(self, segment: int, size_bytes: int) -> None:
        """Create it, unless the disk is full."""
        if self.full or self.free_bytes() < size_bytes:
            raise OSError(errno.ENOSPC, "simulated full disk")
        self._record(Created(segment, size_bytes))

    def write(self, segment: int, offset: int, content: memoryview) -> None:
        """Write; not durable."""
        if self.fail_writes:
            raise OSError(errno.EIO, "simulated write failure")
        self._record(Written(segment, offset, bytes(content)))

    def sync(self, segments: Iterable[int]) -> None:
        """Make earlier writes to these segments durable."""
        if self.fail_syncs:
            raise OSError(errno.EIO, "simulated sync failure")
        self._record(Synced(frozenset(segments)))

    def lane(self) -> Lane | None:
        """Return none: every write is the executors'."""
        return None

    def read(self, segment: int, offset: int, length: int) -> bytes:
        """Read what was written last, unless a block of it is unreadable."""
        blocks = range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES))
        if self.unreadable and not self.unreadable.isdisjoint((segment, at) for at in blocks):
            raise OSError(self.unreadable_errno, "simulated bad sector")
        with self._mutex:
            return bytes(self.medium.segments[segment][offset : offset + length])

    def read_direct(self, segment: int, offset: int, length: int) -> bytes:
        """Read the same: there is no cache."""
        return self.read(segment, offset, length)

    def read_nowait(self, segment: int, offset: int, length: int) -> bytes | None:
        """Read, if `cached`."""
        try:
            return self.read(segment, offset, length) if self.cached else None
        except OSError:
            return None

    def free_bytes(self) -> int:
        """Return what new segments may take."""
        used = sum(len(data) for data in self.medium.segments.values())
        return max(0, self._size_bytes - used - self.others_bytes)

    def hold_ballast(self) -> None:
        """Have room for one more commit when the table is full."""
        self.ballast = self.ballast or not self.table_full

    def release_ballast(self) -> None:
        """Use that room."""
        self._spare = self._spare or self.ballast
        self.ballast = False

    def close(self) -> None:
        """Let it be opened again."""
        self._locked = False


class SimulatedTable:
    """A Table (see clusterfs/store/table.py) in memory."""

    def __init__(self, content: dict[bytes, bytes], record: Callable[[Event], None]) -> None:
        self._content = content
        self._record = record
        self.refresh()

    def damage(self) -> str | None:
        """Walk the content."""
        return damage_in(sorted(self._content.items()), self._content.get)

    def refresh(self) -> None:
        """Move the snapshot."""
        self._snapshot = dict(self._content)
        self._keys = sorted(self._snapshot)

    def get(self, key: bytes) -> bytes | None:
        """Return the key's value in the snapshot."""
        return self._snapshot.get(key)

    def items(self, first: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield pairs of the snapshot."""
        keys, snapshot = self._keys, self._snapshot
        for index in range(bisect_left(keys, first), len(keys)):
            if keys[index] >= end:
                return
            yield keys[index], snapshot[keys[index]]

    def keys(self, first: bytes, end: bytes) -> Iterator[bytes]:
        """Yield keys of the snapshot."""
        for key, _ in self.items(first, end):
            yield key

    def commit(self, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Take all changes as one event."""
        total, taken = Total(self._content.get(TOTAL)), dict(changes)
        for key, value in taken.items():
            total.change(self._content.get(key), value)
        self._record(Committed((*taken.items(), (TOTAL, total.record()))))

    def close(self) -> None:
        """Nothing to let go of."""
