"""What a shared volume of virtual machine images must be able to do, tried on the mount itself.

Each check uses the calls that QEMU and libvirt use, on one scratch image seen through two mounts
(or twice through one):

  * QEMU marks what it does with an image by shared one-byte locks of open file descriptions: byte
    100+i "I use permission i", byte 200+i "I do not share permission i"; whoever opens it next asks
    for the exclusive lock of the opposite byte and is told who is there (QEMU block/file-posix.c);
  * libvirt locks bytes 0 and 1 with process-owned locks (src/util/virfile.c);
  * cache=none is O_DIRECT, where QEMU tries alignments until one does not give EINVAL;
  * discard=unmap is fallocate(PUNCH_HOLE|KEEP_SIZE), the allocation map is lseek(SEEK_HOLE).
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

IMAGE_BYTES = 1 << 20
BLOCK_BYTES = 4096
PERMISSION_WRITE, UNSHARED_WRITE = 101, 201
LIBVIRT_BYTES = (0, 1)
_OFD_GETLK, _OFD_SETLK = 36, 37  # F_OFD_*: the fcntl module of Python 3.11 has no names for them
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_RELEASED_S = 60.0
_libc = ctypes.CDLL(None, use_errno=True)

State = Literal["ok", "bad", "note"]


class Finding(NamedTuple):
    """One line of the report; `detail` says what was seen and, if bad, what to do."""

    check: str
    state: State
    detail: str


class NotSo(Exception):
    """A check failed; the text says what was seen and what to do. Becomes a Finding."""


def findings(first: Path, second: Path) -> Iterator[Finding]:
    """Try everything on a scratch image that `first` and `second` name; both are on the volume."""
    with scratch(first, second) as paths:
        checks: dict[str, Callable[[Path, Path], str]] = {
            "one volume": one_volume,
            "O_DIRECT": direct,
            "discard": discard,
            "QEMU's image locks": image_locks,
            "libvirt's locks": libvirt_locks,
        }
        for name, check in checks.items():
            try:
                yield Finding(name, "ok", check(*paths))
            except NotSo as failure:
                yield Finding(name, "bad", str(failure))
            except OSError as failure:
                yield Finding(name, "bad", f"{failure.filename or paths[0]}: {failure.strerror}")


@contextlib.contextmanager
def scratch(first: Path, second: Path) -> Iterator[tuple[Path, Path]]:
    """Make an image of 1 MiB that is gone afterwards; yield its path on both mounts."""
    name = f".doctor-{os.getpid()}"
    path = first / name
    path.write_bytes(os.urandom(IMAGE_BYTES))
    try:
        yield path, second / name
    finally:
        path.unlink()


def one_volume(first: Path, second: Path) -> str:
    """Both mounts show the same file, and what was just written."""
    try:
        same = second.read_bytes() == first.read_bytes()
    except FileNotFoundError:
        raise NotSo(f"{second.parent} does not have what was made in {first.parent}") from None
    if not same:
        raise NotSo(f"{second} is not what was written to {first}")
    return "what one mount writes, the other reads"


def direct(first: Path, second: Path) -> str:
    """O_DIRECT writes and reads, of a block and of a sector, are what the other mount sees."""
    for size, offset in ((BLOCK_BYTES, BLOCK_BYTES), (512, 512)):
        with mmap.mmap(-1, BLOCK_BYTES) as buffer, opened(first, os.O_DIRECT) as descriptor:
            buffer[:size] = os.urandom(size)
            with memoryview(buffer) as view:
                os.pwritev(descriptor, [view[:size]], offset)
            written = buffer[:size]
        with mmap.mmap(-1, BLOCK_BYTES) as buffer, opened(second, os.O_DIRECT) as descriptor:
            with memoryview(buffer) as view:
                os.preadv(descriptor, [view[:size]], offset)
            if buffer[:size] != written:
                raise NotSo(f"{size} bytes that were written with O_DIRECT are read as others")
    return "blocks of 4096 and of 512 bytes; cache=none works"


def discard(first: Path, second: Path) -> str:
    """A punched hole is a hole on both mounts: no data, which is how space is given back."""
    offset, length = IMAGE_BYTES // 2, IMAGE_BYTES // 4
    with opened(first) as descriptor:
        mode = _PUNCH_HOLE | _KEEP_SIZE
        place, room = ctypes.c_int64(offset), ctypes.c_int64(length)
        if _libc.fallocate(descriptor, mode, place, room):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(first))
    with opened(second) as descriptor:
        if os.pread(descriptor, length, offset) != bytes(length):
            raise NotSo("what was discarded is not zero")
        if os.lseek(descriptor, 0, os.SEEK_HOLE) != offset:
            raise NotSo("SEEK_HOLE does not find what was discarded: images would lose their holes")
    return "discard=unmap makes holes"


def image_locks(first: Path, second: Path) -> str:
    """Whoever opens an image next sees the one who has it open for writing, until it lets go."""
    with opened(first) as holder:
        for byte in (PERMISSION_WRITE, UNSHARED_WRITE):
            ofd(holder, _OFD_SETLK, fcntl.F_RDLCK, byte)
        with opened(second) as other:
            for byte in (PERMISSION_WRITE, UNSHARED_WRITE):
                if ofd(other, _OFD_GETLK, fcntl.F_WRLCK, byte) == fcntl.F_UNLCK:
                    raise NotSo("two QEMUs could open one image for writing, one on each mount")
            ofd(other, _OFD_SETLK, fcntl.F_RDLCK, UNSHARED_WRITE)  # they share these locks
            ofd(holder, _OFD_SETLK, fcntl.F_UNLCK, PERMISSION_WRITE)
            if ofd(other, _OFD_GETLK, fcntl.F_WRLCK, PERMISSION_WRITE) != fcntl.F_UNLCK:
                raise NotSo("a lock that was given up is still seen: a migration would fail")
    with opened(second) as later:
        end_s = time.monotonic() + _RELEASED_S  # noqa: TID251  (nobody waits for FUSE_RELEASE)
        while ofd(later, _OFD_GETLK, fcntl.F_WRLCK, UNSHARED_WRITE) != fcntl.F_UNLCK:
            if time.monotonic() < end_s:  # noqa: TID251
                time.sleep(0.01)
                continue
            raise NotSo("locks stay after their file was closed: the next start would be refused")
    return "a second QEMU is kept out, and let in when the first has gone"


def libvirt_locks(first: Path, second: Path) -> str:
    """A lock of another process and mount is in the way, and goes away when that process ends."""
    for byte in LIBVIRT_BYTES:
        with opened(first) as descriptor:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            if not _refused_elsewhere(second, byte):
                raise NotSo(f"byte {byte} can be locked twice, once on each mount")
        if _refused_elsewhere(second, byte):
            raise NotSo(f"the lock of byte {byte} stays after its file was closed")
    return "virtlockd and libvirt's relabelling may rely on them"


def _refused_elsewhere(path: Path, byte: int) -> bool:
    """Whether another process gets no exclusive lock."""
    child = os.fork()
    if not child:
        code = 2
        with contextlib.suppress(BaseException), opened(path) as descriptor:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
                code = 0
            except OSError as failure:
                code = 1 if failure.errno in {errno.EAGAIN, errno.EACCES} else 2
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in {0, 1}:
        raise NotSo(f"{path} cannot be locked at all")
    return code == 1


@contextlib.contextmanager
def opened(path: Path, flags: int = 0) -> Iterator[int]:
    """Open for reading and writing, and close again."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def ofd(descriptor: int, command: int, kind: int, byte: int) -> int:
    """Do one fcntl of an open file description's lock on one byte; return the answered kind."""
    request = _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)
    return int(_FLOCK.unpack(fcntl.fcntl(descriptor, command, request))[0])
