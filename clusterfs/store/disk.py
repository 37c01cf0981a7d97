"""The port to one brick's medium, and its real shape: a directory.

A brick has a superblock (a few hundred bytes, replaced atomically), numbered segments of one size,
and a table (the checkpoint). Everything here blocks; the callers know on which thread they are.

A directory brick:

    brick.json           superblock
    lock                 flock: one daemon a brick
    ballast              space for the checkpoint when others filled the filesystem
    segments/00000017    segment 17, preallocated, written O_DIRECT, read through the page cache
    checkpoint/          LMDB

Invariants of any Disk:
  * `write` is not durable and may be torn; `sync` makes earlier writes to the segments durable;
  * `write_superblock` and `create_segment` are durable and atomic when they return;
  * a read after a write returned sees it (O_DIRECT writes drop the page cache of their range).
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Protocol

from clusterfs.errors import SetupError
from clusterfs.store.lane import Lane, open_lane
from clusterfs.store.table import LmdbTable, Table

Buffer = bytes | bytearray | memoryview

_ASIDE = "set-aside-"
_RESERVE_BYTES = 1 << 30
_ALIGNED = 4096  # O_DIRECT takes only whole blocks
_BALLAST_BYTES = 32 << 20


class Disk(Protocol):
    """One brick's medium."""

    def lock(self) -> None:
        """Make sure nobody else has the brick open. Raises SetupError."""

    def read_superblock(self) -> bytes | None:
        """Return the superblock, or None if the brick is new."""

    def write_superblock(self, content: bytes) -> None:
        """Replace the superblock, durably and atomically."""

    def open_table(self) -> Table:
        """Open the checkpoint's table."""

    def segments(self) -> list[int]:
        """Return the numbers of the segments that exist."""

    def hold_open(self, segments: Iterable[int]) -> None:
        """Open them for good: later there may be no descriptors left. Raises OSError."""

    def create_segment(self, segment: int, size_bytes: int) -> None:
        """Preallocate a segment, durably. Raises OSError (ENOSPC, EMFILE, ENFILE)."""

    def write(self, segment: int, offset: int, content: memoryview) -> None:
        """Write whole blocks. `content` is page-aligned memory."""

    def sync(self, segments: Iterable[int]) -> None:
        """Make every earlier write to these segments durable."""

    def lane(self) -> Lane | None:
        """Return a new lane past Python's threads, for its owner to close; None: there is none."""

    def read(self, segment: int, offset: int, length: int) -> bytes:
        """Read; may block."""

    def read_direct(self, segment: int, offset: int, length: int) -> bytes:
        """Read from the medium itself, past every cache; may block."""

    def read_nowait(self, segment: int, offset: int, length: int) -> bytes | None:
        """Read what needs no I/O; None if it would block."""

    def free_bytes(self) -> int:
        """Return how much new segments may take."""

    def hold_ballast(self) -> None:
        """Set some space aside for the table, if there is any; nobody else gets it."""

    def release_ballast(self) -> None:
        """Let go of what is set aside, for the table to grow into."""

    def close(self) -> None:
        """Let go of everything, the lock last."""


class DirectoryDisk:
    """A brick in a directory of an ordinary filesystem (ext4, XFS)."""

    def __init__(
        self, path: Path, *, reserve_bytes: int = _RESERVE_BYTES, read_only: bool = False
    ) -> None:
        """read_only: nothing is written, not even to open it; the filesystem may be read-only."""
        self.path = path
        self._reserve_bytes = reserve_bytes
        self._read_only = read_only
        self._segments = path / "segments"
        self._direct: dict[int, int] = {}
        self._buffered: dict[int, int] = {}
        self._lock_fd = -1

    def lock(self) -> None:
        """Create the directories and take the brick's flock."""
        try:
            if self._read_only:
                self._lock_fd = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC)
            else:
                self._segments.mkdir(parents=True, exist_ok=True)
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                self._lock_fd = os.open(self.path / "lock", flags, 0o600)
        except FileNotFoundError:
            if not self._read_only or not self._segments.exists():
                raise SetupError(f"brick {self.path}: there is none") from None
            return  # a copy without it; nobody else can have it open
        except OSError as error:
            raise SetupError(
                f"brick {self.path}: {error.strerror}; give a directory this user can write to"
            ) from error
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock_fd)
            self._lock_fd = -1
            raise SetupError(
                f"brick {self.path} is in use by another process; stop it, or give another brick"
            ) from error

    def read_superblock(self) -> bytes | None:
        """Return brick.json, or None if there is none."""
        try:
            return (self.path / "brick.json").read_bytes()
        except FileNotFoundError:
            return None

    def write_superblock(self, content: bytes) -> None:
        """Write beside it, sync, rename over it, sync the directory."""
        try:
            self._replace_superblock(content)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self.release_ballast()
            self._replace_superblock(content)

    def _replace_superblock(self, content: bytes) -> None:
        beside = self.path / "brick.json.new"
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        beside.replace(self.path / "brick.json")
        _sync_directory(self.path)

    def set_aside(self) -> Path:
        """Move all content, brick.json first, into a new folder of the brick; return it."""
        numbers = (self.path / f"{_ASIDE}{n}" for n in count(1))
        folder = next(path for path in numbers if not path.exists())
        folder.mkdir(mode=0o700)
        for name in ("brick.json", "checkpoint", "segments"):
            with suppress(FileNotFoundError):
                (self.path / name).rename(folder / name)
        _sync_directory(folder)
        _sync_directory(self.path)
        return folder

    def asides(self) -> list[Path]:
        """Return the folders of content that was set aside."""
        return sorted(self.path.glob(f"{_ASIDE}*"))

    def open_table(self) -> Table:
        """Open LMDB under checkpoint/."""
        return LmdbTable(self.path / "checkpoint", read_only=self._read_only)

    def segments(self) -> list[int]:
        """List segments/; a segment that was not completed is removed."""
        numbers = []
        for entry in self._segments.iterdir():
            if entry.suffix == ".new":
                if not self._read_only:
                    entry.unlink()
            else:
                numbers.append(int(entry.name))
        return sorted(numbers)

    def hold_open(self, segments: Iterable[int]) -> None:
        """Open them: later there may be no descriptors left."""
        for segment in segments:
            self._direct_fd(segment)
            self._buffered_fd(segment)

    def create_segment(self, segment: int, size_bytes: int) -> None:
        """Preallocate beside it, sync, rename, sync the directory, open it."""
        path = self._segments / f"{segment:08d}"
        beside = path.with_suffix(".new")
        try:
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, size_bytes)
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
        beside.rename(path)
        _sync_directory(self._segments)
        self.hold_open([segment])

    def write(self, segment: int, offset: int, content: memoryview) -> None:
        """Write O_DIRECT."""
        fd = self._direct_fd(segment)
        written = os.pwrite(fd, content, offset)
        if written != len(content):
            raise OSError(errno.EIO, f"short write to segment {segment}")

    def sync(self, segments: Iterable[int]) -> None:
        """Call fdatasync on each."""
        for segment in segments:
            os.fdatasync(self._direct_fd(segment))

    def lane(self) -> Lane | None:
        """Return one, but not past the `write` and `sync` of a class that is built on this one."""
        return open_lane(self._direct) if type(self) is DirectoryDisk else None

    def read(self, segment: int, offset: int, length: int) -> bytes:
        """Read through the page cache."""
        return os.pread(self._buffered_fd(segment), length, offset)

    def read_direct(self, segment: int, offset: int, length: int) -> bytes:
        """Read O_DIRECT into aligned memory."""
        import mmap  # noqa: PLC0415  the slow path of a damaged block

        first, end = offset & -_ALIGNED, -(-(offset + length) // _ALIGNED) * _ALIGNED
        with mmap.mmap(-1, end - first) as memory:
            got = os.preadv(self._direct_fd(segment), [memory], first)
            return memory[offset - first : min(got, offset + length - first)]

    def read_nowait(self, segment: int, offset: int, length: int) -> bytes | None:
        """Read only what the page cache has."""
        into, done = bytearray(length), 0
        try:
            fd = self._buffered_fd(segment)
            while done < length:  # the kernel may stop in the middle although it has the rest
                rest = memoryview(into)[done:] if done else into
                got = os.preadv(fd, [rest], offset + done, os.RWF_NOWAIT)
                if not got:
                    return None
                done += got
        except OSError:  # it would wait, or tmpfs cannot tell, or the medium is bad: `read` tells
            return None
        return bytes(into)

    def free_bytes(self) -> int:
        """Return what the filesystem has free, less the reserve for the checkpoint."""
        status = os.statvfs(self.path)
        return max(0, status.f_bavail * status.f_frsize - self._reserve_bytes)

    def hold_ballast(self) -> None:
        """Preallocate the file `ballast`."""
        with contextlib.suppress(OSError):
            fd = os.open(self.path / "ballast", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, _BALLAST_BYTES)
            except OSError:
                os.ftruncate(fd, 0)
            finally:
                os.close(fd)

    def release_ballast(self) -> None:
        """Remove the file `ballast`."""
        (self.path / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        """Close all descriptors; closing the lock's lets it go."""
        for fd in (*self._direct.values(), *self._buffered.values()):
            os.close(fd)
        self._direct.clear()
        self._buffered.clear()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _direct_fd(self, segment: int) -> int:
        fd = self._direct.get(segment)
        if fd is None:
            path = self._segments / f"{segment:08d}"
            try:
                fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
            except OSError as error:  # tmpfs and some FUSE filesystems have no O_DIRECT
                if error.errno != errno.EINVAL:
                    raise
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            fd = _keep(self._direct, segment, fd)
        return fd

    def _buffered_fd(self, segment: int) -> int:
        fd = self._buffered.get(segment)
        if fd is None:
            fd = os.open(self._segments / f"{segment:08d}", os.O_RDONLY | os.O_CLOEXEC)
            # No readahead: it would fill the cache with blocks the log is about to overwrite.
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            fd = _keep(self._buffered, segment, fd)
        return fd


def _keep(table: dict[int, int], segment: int, fd: int) -> int:
    """Remember the descriptor; if another thread was faster, use that one."""
    kept = table.setdefault(segment, fd)
    if kept != fd:
        os.close(fd)
    return kept


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
