"""Calls for tables of cases: each step names a user, a call, its arguments and what it must give.

A step is a tuple (user, call, *arguments, expected). Paths are relative to the case's directory.
`expected` is the name of an errno, or the value that the call must return.
"""

import ctypes
import errno
import multiprocessing
import os
import stat
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Step = tuple[Any, ...]

# name: (uid, gid, supplementary groups)
USERS = {
    "root": (0, 0, ()),
    "alice": (12001, 12001, ()),
    "bob": (12002, 12002, (12100,)),
}
IDS = {"root": 0, "alice": 12001, "bob": 12002, "staff": 12100, "-": -1}
FLAGS = {
    "r": os.O_RDONLY,
    "w": os.O_WRONLY,
    "rw": os.O_RDWR,
    "creat": os.O_CREAT | os.O_RDWR,
    "excl": os.O_CREAT | os.O_EXCL | os.O_RDWR,
    "trunc": os.O_RDWR | os.O_TRUNC,
    "directory": os.O_RDONLY | os.O_DIRECTORY,
    "nofollow": os.O_RDONLY | os.O_NOFOLLOW,
}
LIMIT_S = 300
NOREPLACE, EXCHANGE = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)


def _open(path: str, how: str, mode: int = 0o666) -> None:
    os.close(os.open(path, FLAGS[how], mode))


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _read(path: str) -> bytes:
    return Path(path).read_bytes()


def _chown(path: str, owner: str, group: str) -> None:
    os.chown(path, IDS[owner], IDS[group])


def _lchown(path: str, owner: str, group: str) -> None:
    os.lchown(path, IDS[owner], IDS[group])


def _stat(path: str) -> None:
    os.stat(path)


def _mode(path: str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def _owner(path: str) -> tuple[str, str]:
    found = os.lstat(path)
    names = {number: name for name, number in IDS.items()}
    return names[found.st_uid], names[found.st_gid]


def _renameat2(source: str, target: str, flags: int) -> None:
    if _libc.renameat2(-100, source.encode(), -100, target.encode(), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


def _utime(path: str, seconds: int) -> None:
    os.utime(path, (seconds, seconds))


def _touch(path: str) -> None:
    os.utime(path)


def _mknod(path: str, kind: str) -> None:
    kinds = {"fifo": stat.S_IFIFO, "file": stat.S_IFREG, "char": stat.S_IFCHR}
    os.mknod(path, kinds[kind] | 0o644, os.makedev(1, 3) if kind == "char" else 0)


def _kind(path: str) -> str:
    letters = stat.filemode(os.lstat(path).st_mode)
    return letters[0]


CALLS: dict[str, Callable[..., Any]] = {
    "open": _open,
    "write": _write,
    "read": _read,
    "mkdir": lambda path, mode=0o755: os.mkdir(path, mode),
    "rmdir": os.rmdir,
    "unlink": os.unlink,
    "rename": os.rename,
    "renameat2": _renameat2,
    "link": lambda source, target: os.link(source, target, follow_symlinks=False),
    "symlink": os.symlink,
    "readlink": os.readlink,
    "chmod": os.chmod,
    "chown": _chown,
    "lchown": _lchown,
    "truncate": os.truncate,
    "mknod": _mknod,
    "list": lambda path: sorted(os.listdir(path)),
    "stat": _stat,
    "mode": _mode,
    "owner": _owner,
    "kind": _kind,
    "nlink": lambda path: os.lstat(path).st_nlink,
    "size": lambda path: os.lstat(path).st_size,
    "mtime": lambda path: int(os.lstat(path).st_mtime),
    "utime": _utime,
    "touch": _touch,
    "setxattr": os.setxattr,
    "getxattr": os.getxattr,
}


class Actors:
    """One process for each user, which does what it is told."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("fork")
        self._ends: dict[str, Connection] = {}
        self._processes = []
        for name, ids in USERS.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, ids), daemon=True)
            process.start()
            theirs.close()
            self._ends[name] = ours
            self._processes.append(process)

    def do(self, user: str, call: str, folder: Path, arguments: tuple[Any, ...]) -> Any:
        """Return what a call gives, or the name of its errno."""
        end = self._ends[user]
        end.send((call, str(folder), arguments))
        assert end.poll(LIMIT_S), f"{user}'s {call} does not return"
        return end.recv()

    def close(self) -> None:
        """End the processes."""
        for end in self._ends.values():
            end.send(None)
        for process in self._processes:
            process.join(LIMIT_S)


def _serve(end: Connection, ids: tuple[int, int, tuple[int, ...]]) -> None:
    uid, gid, groups = ids
    os.umask(0)
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    while True:
        request = end.recv()
        if request is None:
            os._exit(0)
        call, folder, arguments = request
        try:
            os.chdir(folder)
            end.send(CALLS[call](*arguments))
        except OSError as failure:
            end.send(errno.errorcode[failure.errno or 0])
        finally:
            os.chdir("/")


def check(actors: Actors, folders: list[Path], steps: list[Step]) -> None:
    """Do the steps, each one in the next of the folders, which are all the same directory."""
    for number, (user, call, *arguments, expected) in enumerate(steps):
        got = actors.do(user, call, folders[number % len(folders)], tuple(arguments))
        assert got == expected, (number, user, call, arguments)
