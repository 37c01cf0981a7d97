"""The checkpoint's table: sorted keys in one snapshot, replaced by atomic synced commits.

Readers see the snapshot as of open or of the last `refresh`, whatever commits meanwhile: the state
keeps what a running checkpoint writes in RAM until the commit is done, then refreshes.

Every value is sealed: its checksum covers key and value. That does not show a record that is gone:
LMDB has no checksums, and one flipped bit in its tree hides a key, or a thousand. So each commit
also keeps the number and the sum of all seals in one record, and `damage` walks the whole table.

LMDB maps its file: a damaged page number can kill the process that follows it. So `damage` of the
LMDB table walks in a process of its own, which may die.

Invariants of any Table:
  * `commit` applies all or nothing, durably, and may run on any one thread;
  * `get` and `items` see one snapshot, on the thread that owns the store; OSError (EIO) if its
    pages are not as written;
  * the record TOTAL says how many other records there are, and the sum of their seals.
"""

import errno
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import lmdb

from clusterfs.errors import BrickDamaged, SetupError
from clusterfs.store.format import open_value, seal_value

TOTAL = b"#"
FORMAT_VERSION = 4  # 2 knew no shared map pages, 3 no shared maps
_FULL_BYTES = 1 << 20
_TOTAL = struct.Struct("<IQQ")
_SEAL = struct.Struct("<Q")
_WRAP = (1 << 64) - 1

_MAP_BYTES = 1 << 40  # address space only: the file grows with its content


class Table(Protocol):
    """A sorted table with snapshots."""

    def get(self, key: bytes) -> bytes | None:
        """Return the key's value in the snapshot."""

    def items(self, first: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the snapshot's pairs with first <= key < end, in order."""

    def keys(self, first: bytes, end: bytes) -> Iterator[bytes]:
        """Yield the snapshot's keys with first <= key < end, in order, without their values."""

    def commit(self, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Put (or, with None, remove) all of them, durably, or raise OSError and change nothing."""

    def refresh(self) -> None:
        """Move the snapshot to the last commit."""

    def damage(self) -> str | None:
        """Read everything; return what is wrong with the table, None if nothing. Blocks.

        Raises SetupError if that cannot be told now.
        """

    def close(self) -> None:
        """Let go of it."""


# What LMDB may say of a sound file: the system had no memory, space, right, or lock for it. An
# errno without a class is a plain lmdb.Error. All else means that pages are not as written.
_OF_THE_MOMENT = (
    lmdb.DiskError,
    lmdb.LockError,
    lmdb.MapResizedError,
    lmdb.MemoryError,
    lmdb.ReadersFullError,
    lmdb.ReadonlyError,
    lmdb.TlsFullError,
)
_FAULTS = {signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL}


class Total:
    """The number of records, and the sum of their seals."""

    def __init__(self, record: bytes | None) -> None:
        value = None if record is None else open_value(TOTAL, record)
        self.format, self.count, self.sum = _TOTAL.unpack(value) if value else (0, 0, 0)

    def change(self, old: bytes | None, new: bytes | None) -> None:
        """A sealed value was replaced; None: there was, or is, none."""
        for value, sign in ((old, -1), (new, 1)):
            if value is not None:
                self.count += sign
                self.sum = (self.sum + sign * _SEAL.unpack_from(value)[0]) & _WRAP

    def record(self) -> bytes:
        """Return the sealed record."""
        return seal_value(TOTAL, _TOTAL.pack(FORMAT_VERSION, self.count & _WRAP, self.sum))


def damage_in(
    records: Iterable[tuple[bytes, bytes]], get: Callable[[bytes], bytes | None]
) -> str | None:
    """Return what is wrong with these records, None if nothing.

    get: looks a key up from the top, so that a wrong turn in the tree is noticed too. Raises
    SetupError if they are of a newer format.
    """
    newest = Total(get(TOTAL)).format
    if newest > FORMAT_VERSION:
        raise SetupError(
            f"the checkpoint has format {newest}, this clusterfs knows {FORMAT_VERSION}: upgrade it"
        )
    found = Total(None)
    said: bytes | None = None
    for key, sealed in records:
        if open_value(key, sealed) is None:
            return f"record {key[:40]!r} is damaged"
        if get(key) != sealed:
            return f"record {key[:40]!r} is not found by its key"
        if key == TOTAL:
            said = sealed
        else:
            found.change(None, sealed)
    if said is None:
        return "the total is missing" if found.count else None
    total = Total(said)
    if (total.count, total.sum) != (found.count, found.sum):
        return f"it has {found.count} records where {total.count} were written, or other ones"
    return None


class LmdbTable:
    """A Table in LMDB."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """read_only: nothing is written, if there is something to read; the brick is locked."""
        self._path = path
        read_only = read_only and (path / "data.mdb").exists()
        self._lock = "none" if read_only else "lock"
        if not read_only:
            path.mkdir(exist_ok=True)
        try:
            self._environment = lmdb.open(
                str(path),
                map_size=_MAP_BYTES,
                readahead=False,
                readonly=read_only,
                lock=not read_only,
            )
        except lmdb.Error as error:
            if _is_damage(error):
                raise BrickDamaged(f"checkpoint {path} is damaged ({error})") from error
            raise SetupError(f"checkpoint {path} cannot be opened: {error}") from error
        self._reader = self._environment.begin(buffers=False)

    def get(self, key: bytes) -> bytes | None:
        """Return the key's value in the snapshot."""
        try:
            value: bytes | None = self._reader.get(key)
        except lmdb.Error as error:
            raise _unreadable(error) from error
        return value

    def items(self, first: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield pairs from a cursor of their own."""
        try:
            cursor = self._reader.cursor()
            if not cursor.set_range(first):
                return
            for key, value in cursor:
                if key >= end:
                    return
                yield key, value
        except lmdb.Error as error:
            raise _unreadable(error) from error

    def keys(self, first: bytes, end: bytes) -> Iterator[bytes]:
        """Yield keys; the pages of large values are not touched."""
        try:
            cursor = self._reader.cursor()
            if not cursor.set_range(first):
                return
            for key in cursor.iternext(keys=True, values=False):
                if key >= end:
                    return
                yield key
        except lmdb.Error as error:
            raise _unreadable(error) from error

    def commit(self, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Write one LMDB transaction; LMDB syncs data, then the meta page."""
        try:
            with self._environment.begin(write=True) as transaction:
                total = Total(transaction.get(TOTAL))
                for key, value in changes:
                    if value is None:
                        total.change(transaction.pop(key), None)
                    else:
                        total.change(transaction.replace(key, value), value)
                transaction.put(TOTAL, total.record())
        except lmdb.Error as error:
            # On a full filesystem LMDB meets short writes, and calls them EIO.
            code = errno.ENOSPC if self._is_full() else errno.EIO
            raise OSError(code, f"checkpoint: {error}") from error

    def _is_full(self) -> bool:
        status = os.statvfs(self._path)
        return status.f_bavail * status.f_frsize < _FULL_BYTES

    def damage(self) -> str | None:
        """Walk the file in another process."""
        checker = subprocess.run(  # noqa: S603 - our own code, with our own file
            [sys.executable, "-I", "-c", _CHECK, str(self._path), self._lock, *sys.path],
            capture_output=True,
            text=True,
            check=False,
        )
        if -checker.returncode in _FAULTS:
            return f"following its pages ended with signal {-checker.returncode}"
        if checker.returncode:
            why = checker.stderr.strip().rpartition("\n")[2] or f"ended with {checker.returncode}"
            raise SetupError(f"checkpoint {self._path} could not be checked: {why}")
        return checker.stdout.strip() or None

    def refresh(self) -> None:
        """Renew the read transaction."""
        self._reader.abort()
        try:
            self._reader = self._environment.begin(buffers=False)
        except lmdb.Error as error:
            raise _unreadable(error) from error

    def close(self) -> None:
        """Close the environment."""
        self._reader.abort()
        self._environment.close()


_CHECK = """
import sys
sys.path[:] = sys.argv[3:]
from clusterfs.store.table import check_file
check_file(sys.argv[1], lock=sys.argv[2] == "lock")
"""


def check_file(path: str, *, lock: bool = True) -> None:
    """Print what is wrong with an LMDB table; the other process of `LmdbTable.damage`.

    lock: somebody may commit meanwhile.
    """
    try:
        with (
            lmdb.open(
                path, map_size=_MAP_BYTES, readonly=True, readahead=True, lock=lock
            ) as environment,
            environment.begin() as transaction,
        ):
            found = damage_in(transaction.cursor(), transaction.get)
    except (lmdb.Error, MemoryError, OverflowError, SystemError) as error:  # of absurd lengths
        if isinstance(error, lmdb.Error) and not _is_damage(error):
            raise
        found = f"it cannot be walked ({error!r})"
    sys.stdout.write(found or "")


def _unreadable(error: lmdb.Error) -> OSError:
    return OSError(errno.EIO, f"the checkpoint cannot be read: {error}")


def _is_damage(error: lmdb.Error) -> bool:
    return type(error) is not lmdb.Error and not isinstance(error, _OF_THE_MOMENT)
