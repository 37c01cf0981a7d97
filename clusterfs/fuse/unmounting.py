"""Finding, aborting and unmounting FUSE mounts by system calls. Imports no trio, no pyfuse3.

A mount is named by its mount point and its connection, the minor number of its device: the
supervisor must never unmount what somebody else mounted at the same place meanwhile.
"""

import ctypes
import errno
import os
import select
import signal
import sys
from pathlib import Path
from typing import NamedTuple

_MNT_FORCE = 1
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_FUSECTL = "/sys/fs/fuse/connections"
_ANSWER_S = 5.0
_ASK = """import os, sys
try:
    os.statvfs(sys.argv[1])  # unlike a stat it is never answered from a cache
except OSError as failure:
    sys.exit(failure.errno)
"""
_libc = ctypes.CDLL(None, use_errno=True)


def ending_signals() -> list[signal.Signals]:
    """Return what unmounts; SIGHUP only where there is a terminal to lose, and no nohup."""
    heeded = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    return [number for number in heeded if signal.getsignal(number) is not signal.SIG_IGN]


class MountEntry(NamedTuple):
    """One line of /proc/self/mountinfo."""

    minor: int
    mountpoint: str
    kind: str
    source: str


def mounts_at(mountpoint: str) -> list[MountEntry]:
    """Return what is mounted at exactly this place, the topmost last. Asks no filesystem."""
    table = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    entries = [_parsed(line) for line in table.splitlines()]
    return [entry for entry in entries if entry.mountpoint == mountpoint]


def connection_at(mountpoint: str) -> int | None:
    """Return the minor device number of the topmost mount at this place."""
    found = mounts_at(mountpoint)
    return found[-1].minor if found else None


def abort_connection(connection: int, mountpoint: str) -> None:
    """Fail every request of the mount, now and for good."""
    if _abort_through_fusectl(connection):
        return
    # fusectl is not mounted, or the connection is gone.
    if connection_at(mountpoint) == connection:
        _umount(mountpoint, _MNT_FORCE | _UMOUNT_NOFOLLOW)  # aborts even if it is busy
    elif not mounts_at(_FUSECTL):
        _libc.mount(b"fusectl", os.fsencode(_FUSECTL), b"fusectl", 0, None)
        _abort_through_fusectl(connection)


def is_over(fd: int) -> bool:
    """Tell whether the connection of this /dev/fuse descriptor was aborted or unmounted."""
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))


def unmount_lazily(connection: int, mountpoint: str) -> None:
    """Take the mount out of the tree, if it still is there."""
    while connection_at(mountpoint) == connection:
        if _umount(mountpoint, _MNT_DETACH | _UMOUNT_NOFOLLOW):
            return


def clear_dead(mountpoint: str, kind: str) -> None:
    """Take away mounts of that kind whose daemon is gone for good; a stalled one is not dead."""
    while (found := mounts_at(mountpoint)) and found[-1].kind == kind and _is_dead(mountpoint):
        unmount_lazily(found[-1].minor, mountpoint)


def _is_dead(mountpoint: str) -> bool:
    """Tell whether nobody will ever answer at the mount point.

    Another process asks: whoever asks a daemon that stands still cannot even be killed before it
    goes on, and would keep open what it inherited.
    """
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    command = [sys.executable, "-I", "-S", "-c", _ASK, mountpoint]
    asking = os.posix_spawn(sys.executable, command, os.environ, file_actions=null)
    pidfd = os.pidfd_open(asking)
    try:
        if not select.select([pidfd], [], [], _ANSWER_S)[0]:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            return False
    finally:
        os.close(pidfd)
    _, status = os.waitpid(asking, 0)
    return os.waitstatus_to_exitcode(status) in (errno.ENOTCONN, errno.ECONNABORTED)


def unmount(mountpoint: str) -> bool:
    """Unmount in the ordinary way, which flushes; False if it is busy. May wait for the daemon."""
    return _umount(mountpoint, _UMOUNT_NOFOLLOW) != errno.EBUSY


def syncfs(mountpoint: str) -> None:
    """Have every dirty mapped page of the mount written. Waits for the daemon."""
    directory = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _libc.syncfs(directory)
    finally:
        os.close(directory)


def _abort_through_fusectl(connection: int) -> bool:
    try:
        Path(f"{_FUSECTL}/{connection}/abort").write_text("1")
    except OSError:
        return False
    return True


def _umount(mountpoint: str, flags: int) -> int:
    """Call umount2(2); returns 0 or the errno."""
    if _libc.umount2(os.fsencode(mountpoint), flags) == 0:
        return 0
    return ctypes.get_errno()


def _parsed(line: str) -> MountEntry:
    fields = line.split()
    separator = fields.index("-", 6)
    minor = int(fields[2].partition(":")[2])
    return MountEntry(minor, _unescaped(fields[4]), fields[separator + 1], fields[separator + 2])


def _unescaped(path: str) -> str:
    """Undo the kernel's octal escapes of space, tab, newline and backslash."""
    for escape, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        path = path.replace(escape, character)
    return path
