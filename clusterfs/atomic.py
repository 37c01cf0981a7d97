"""Atomic writes for programs: extents of several files on one mount change together, or not at all.

    from clusterfs.atomic import atomic

    with atomic("accounts", "ledger") as tx:
        tx.pwrite("accounts", balance, 4096)
        tx.pwrite("ledger", entry, end)

Leaving the block commits, durably, on all replicas; leaving it by an exception, or dying in it,
changes nothing. Nobody sees the writes before. At most 32 MiB for each transaction.

It speaks to the daemon by ioctls of descriptors of its own, so it needs no more rights than writing
to the files does. A single file can be written so by any program with the ioctls of F2FS (0xf501
start, 0xf502 commit, 0xf505 abort), as SQLite does when it is built with
SQLITE_ENABLE_BATCH_ATOMIC_WRITE.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

BEGIN = 0x8008CF01  # _IOR(0xCF, 1, u64): begin with this file; the number of the transaction
JOIN = 0x4008CF02  # _IOW(0xCF, 2, u64): take this file into that transaction
START = 0xF501  # F2FS_IOC_START_ATOMIC_WRITE: begin with this file alone
COMMIT = 0xF502  # F2FS_IOC_COMMIT_ATOMIC_WRITE: of the transaction that this file is in
ABORT = 0xF505  # F2FS_IOC_ABORT_ATOMIC_WRITE
GET_FEATURES = 0x8004F50C  # F2FS_IOC_GET_FEATURES
FEATURE_ATOMIC_WRITE = 0x0004

_NUMBER = struct.Struct("=Q")

File = int | str | bytes | os.PathLike[str] | os.PathLike[bytes]


class Transaction:
    """The files of one `atomic` block."""

    def __init__(self, descriptors: dict[tuple[int, int], int]) -> None:
        self._descriptors = descriptors

    def pwrite(self, file: File, data: bytes, offset: int) -> int:
        """Write to one of the block's files: its path, or any descriptor of it. Returns len(data).

        Raises:
            OSError: EFBIG beyond 32 MiB for one transaction; EIO if the node was lost.
            ValueError: the file is not one of the block's.
        """
        descriptor, done = self._own(file), 0
        while done < len(data):
            done += os.pwrite(descriptor, data[done:], offset + done)
        return done

    def pread(self, file: File, size: int, offset: int) -> bytes:
        """Read from one of the block's files, with what this block has written to it."""
        return os.pread(self._own(file), size, offset)

    def _own(self, file: File) -> int:
        status = os.stat(file)  # noqa: PTH116  (it may be a descriptor)
        try:
            return self._descriptors[status.st_dev, status.st_ino]
        except KeyError:
            raise ValueError(f"{file!r} is not among the files of this transaction") from None


@contextmanager
def atomic(*paths: File) -> Iterator[Transaction]:
    """Write to these existing files atomically; see the module.

    Raises OSError: a file cannot be opened for writing, is not on clusterfs (ENOTTY), the files are
    on different mounts (EXDEV), or the commit failed (then nothing happened, unless it is EIO).
    """
    if not paths:
        raise ValueError("an atomic transaction needs a file")
    descriptors: dict[tuple[int, int], int] = {}
    try:
        _open_all(paths, descriptors)
        members = list(descriptors.values())
        _begin(members)
        try:
            yield Transaction(descriptors)
        except BaseException:
            with suppress(OSError):
                fcntl.ioctl(members[0], ABORT)
            raise
        fcntl.ioctl(members[0], COMMIT)
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def _open_all(paths: tuple[File, ...], descriptors: dict[tuple[int, int], int]) -> None:
    for path in paths:
        name = f"/proc/self/fd/{path}" if isinstance(path, int) else path
        descriptor = os.open(name, os.O_RDWR | os.O_CLOEXEC)
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) in descriptors:
            os.close(descriptor)
            continue
        descriptors[status.st_dev, status.st_ino] = descriptor
        if len({device for device, _ in descriptors}) > 1:
            raise OSError(errno.EXDEV, "the files of a transaction must be on one mount")


def _begin(members: list[int]) -> None:
    number = bytearray(_NUMBER.size)
    fcntl.ioctl(members[0], BEGIN, number)
    for descriptor in members[1:]:
        fcntl.ioctl(descriptor, JOIN, bytes(number))
