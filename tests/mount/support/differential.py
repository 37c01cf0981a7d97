"""Random programs of system calls, run in a local directory and on mounts of several nodes at once.

A program is a list of steps that depend on nothing but a seed: any part of one is a program too, so
one that shows a difference can be cut down (`shrunk`). Every step is made on both sides by this
process, as one of three users; on the mounts' side each step goes through one node and is looked at
through another. What must be the same: the result or the errno, what stat then shows of everything
that the step is about, which of its times the step changed, and in the end the trees.

Invariant: a step never leaves its side's top directory, and never blocks.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import random
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

Step = tuple[Any, ...]  # (user, node, looking node, call, *arguments)

USERS: dict[str, tuple[int, int, list[int]]] = {
    "root": (0, 0, []),
    "alice": (12001, 12001, []),
    "bob": (12002, 12002, [12100]),
}
IDS = [-1, 0, 12001, 12002, 12100]
NAMES = ["a", "b", "c", "d", "e"]
SLOTS = 6
OFFSETS = [0, 0, 1, 100, 4095, 4096, 5000, 8192, 65536, (1 << 20) - 1, 1 << 20, (64 << 20) - 3]
SIZES = [0, 1, 10, 512, 4095, 4096, 4097, 12289, 70000, (1 << 20) + 5]
MODES = [0, 0o400, 0o600, 0o644, 0o666, 0o755, 0o777, 0o1777, 0o2755, 0o4755, 0o6777, 0o2644]
ATTRIBUTES = ["user.a", "user.b", "trusted.t", "security.s", "none", "user.", "system.nothing"]
TIMES = [0, 1, -1, 1_000_000_000_123_456_789, 999, 2_000_000_000_000_000_001]
NEW = 1_600_000_000 * 10**9  # times above are the clock's
DAY = 86400 * 10**9
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
AT_EMPTY_PATH, AT_SYMLINK_FOLLOW, AT_NOFOLLOW = 0x1000, 0x400, 0x100

_NEST = "1/2/3/4/5"
_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "call")
    return result


class Side:
    """One of the two sides: the same directory by as many paths as there are nodes."""

    def __init__(self, tops: Sequence[Path], *, compares_accesses: bool = False) -> None:
        """Make one; access times are the same on all nodes only after a while."""
        self.compares_accesses = compares_accesses
        self._tops = [os.fsencode(top / _NEST) for top in tops]
        self._files: dict[int, int] = {}
        self._through: dict[int, int] = {}  # which node a slot was opened by
        self.node = 0

    def begin(self) -> None:
        """Make the directory of the program, so deep that no chain of links and .. leaves it."""
        os.makedirs(self._tops[0])

    def at(self, path: str, node: int | None = None) -> bytes:
        number = self.node if node is None else node
        return os.path.join(self._tops[number % len(self._tops)], os.fsencode(path))

    def file(self, slot: int) -> int:
        if slot not in self._files:
            raise OSError(errno.EBADF, "no such slot")
        return self._files[slot]

    def close_all(self) -> None:
        for slot in list(self._files):
            self.close(slot)

    def look(self, node: int, step: Step) -> dict[str, os.stat_result | str]:
        """Stat all that a step is about: its paths, their parents, its open files."""
        seen: dict[str, os.stat_result | str] = {}
        for argument in step[4:]:
            if isinstance(argument, str) and argument[:1] in NAMES and len(argument) < 10:
                for path in (argument, os.path.dirname(argument) or "."):
                    seen[path] = _status(lambda path=path: os.lstat(self.at(path, node)))
        for slot in _slots_of(step):
            if slot in self._files:
                seen[f"slot {slot}"] = _status(lambda slot=slot: os.fstat(self._files[slot]))
        return seen

    def gone(self) -> list[int]:
        """Return slots of what has no name and is no file: elsewhere nothing is left of it."""
        status = {slot: os.fstat(fd) for slot, fd in self._files.items()}
        return [n for n, s in status.items() if not s.st_nlink and not stat.S_ISREG(s.st_mode)]

    # ---- open files

    def open(self, slot: int, path: str, flags: int, mode: int) -> None:
        if slot in self._files:
            self.close(slot)
        self._files[slot] = os.open(self.at(path), flags | os.O_NONBLOCK | os.O_NOCTTY, mode)
        self._through[slot] = self.node

    def close(self, slot: int) -> None:
        os.close(self._files.pop(slot)) if slot in self._files else None

    def dup(self, slot: int, other: int) -> None:
        fd = os.dup(self.file(slot))
        self.close(other)
        self._files[other] = fd
        self._through[other] = self._through[slot]

    def setfl(self, slot: int, flags: int) -> int:
        fcntl.fcntl(self.file(slot), fcntl.F_SETFL, flags | os.O_NONBLOCK)
        return fcntl.fcntl(self.file(slot), fcntl.F_GETFL) & (os.O_APPEND | os.O_ACCMODE)

    def read(self, slot: int, size: int) -> bytes:
        return os.read(self.file(slot), size)

    def write(self, slot: int, data: bytes) -> int:
        return os.write(self.file(slot), data)

    def pread(self, slot: int, offset: int, size: int) -> bytes:
        return os.pread(self.file(slot), size, offset)

    def pwrite(self, slot: int, offset: int, data: bytes) -> int:
        return os.pwrite(self.file(slot), data, offset)

    def pwritev(self, slot: int, offset: int, data: bytes, flags: int) -> int:
        half = len(data) // 3
        return os.pwritev(self.file(slot), [data[:half], b"", data[half:]], offset, flags)

    def lseek(self, slot: int, offset: int, whence: int) -> int:
        fd = self.file(slot)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EISDIR, "what a directory's offset means is its own affair")
        return os.lseek(fd, offset, whence)

    def ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self.file(slot), size)

    def fallocate(self, slot: int, mode: int, offset: int, size: int) -> None:
        fd = self.file(slot)
        _checked(_libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(size)))

    def fsync(self, slot: int) -> None:
        os.fsync(self.file(slot))

    def fchmod(self, slot: int, mode: int) -> None:
        os.fchmod(self.file(slot), mode)

    def fchown(self, slot: int, uid: int, gid: int) -> None:
        os.fchown(self.file(slot), uid, gid)

    def futimens(self, slot: int, times: tuple[int, int]) -> None:
        self._utimensat(self.file(slot), None, times, 0)

    def copy(self, slot: int, offset: int, other: int, to: int, size: int) -> int:
        return os.copy_file_range(self.file(slot), self.file(other), size, offset, to)

    def sendfile(self, slot: int, other: int, offset: int, size: int) -> int:
        return os.sendfile(self.file(other), self.file(slot), offset, size)

    def flock(self, slot: int, kind: int) -> None:
        fcntl.flock(self.file(slot), kind | (0 if kind == fcntl.LOCK_UN else fcntl.LOCK_NB))

    def names(self, slot: int) -> list[str]:
        return sorted(os.listdir(self.file(slot)))

    def mapped(self, slot: int, offset: int, data: bytes, protection: int) -> bytes:
        """Map a page or more of what is there, store, and return what was there before."""
        fd = self.file(slot)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.ENODEV, "not mapped")
        if status.st_size < offset + len(data) or not data:
            raise OSError(errno.ENXIO, "not mapped")
        start = offset & ~4095
        with mmap.mmap(fd, offset + len(data) - start, prot=protection, offset=start) as pages:
            before = pages[offset - start : offset - start + len(data)]
            if protection & mmap.PROT_WRITE:
                pages[offset - start : offset - start + len(data)] = data
                pages.flush()
            return before

    # ---- names

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self.at(path), mode)

    def mknod(self, path: str, kind: int, mode: int) -> None:
        os.mknod(self.at(path), kind | mode, os.makedev(1, 3))

    def rmdir(self, path: str) -> None:
        os.rmdir(self.at(path))

    def unlink(self, path: str) -> None:
        os.unlink(self.at(path))

    def link(self, path: str, new: str, flags: int) -> None:
        _checked(_libc.linkat(-100, self.at(path), -100, self.at(new), flags))

    def link_file(self, slot: int, new: str) -> None:
        path = f"/proc/self/fd/{self.file(slot)}".encode()
        there = self.at(new, self._through[slot])  # else it is EXDEV
        _checked(_libc.linkat(-100, path, -100, there, AT_SYMLINK_FOLLOW))

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target.removeprefix("to "), self.at(path))

    def readlink(self, path: str) -> bytes:
        return os.readlink(self.at(path))

    def rename(self, path: str, new: str, flags: int) -> None:
        _checked(_libc.renameat2(-100, self.at(path), -100, self.at(new), flags))

    def names_in(self, path: str) -> list[tuple[bytes, str]]:
        with os.scandir(self.at(path)) as entries:
            kinds = {e.name: _kind(e) for e in entries}
        return sorted(kinds.items())

    # ---- attributes

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self.at(path), mode)

    def chown(self, path: str, uid: int, gid: int, follow: bool) -> None:  # noqa: FBT001
        os.chown(self.at(path), uid, gid, follow_symlinks=follow)

    def truncate(self, path: str, size: int) -> None:
        os.truncate(self.at(path), size)

    def utimensat(self, path: str, times: tuple[int, int], flags: int) -> None:
        self._utimensat(-100, self.at(path), times, flags)

    def _utimensat(self, fd: int, path: bytes | None, times: tuple[int, int], flags: int) -> None:
        pair = (_Timespec * 2)(*(_timespec(time) for time in times))
        _checked(_libc.utimensat(fd, path, pair, flags))

    def access(self, path: str, mask: int) -> bool:
        return os.access(self.at(path), mask, effective_ids=True)

    def setxattr(self, path: str, name: str, value: bytes, flags: int, follow: bool) -> None:  # noqa: FBT001
        os.setxattr(self.at(path), name, value, flags, follow_symlinks=follow)

    def getxattr(self, path: str, name: str, follow: bool) -> bytes:  # noqa: FBT001
        return os.getxattr(self.at(path), name, follow_symlinks=follow)

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(self.at(path), name)

    def listxattr(self, path: str) -> list[str]:
        return sorted(os.listxattr(self.at(path)))

    def exec(self, path: str) -> None:
        """Ask for the right to execute, as the kernel decides it."""
        if not os.access(self.at(path), os.X_OK, effective_ids=True):
            raise OSError(errno.EACCES, "not executable")

    def setacl(self, path: str, entries: tuple[tuple[int, int, int], ...], kind: str) -> None:
        value = (2).to_bytes(4, "little") + b"".join(
            tag.to_bytes(2, "little") + bits.to_bytes(2, "little") + who.to_bytes(4, "little")
            for tag, bits, who in entries
        )
        os.setxattr(self.at(path), f"system.posix_acl_{kind}", value)

    def tree(self) -> dict[str, Any]:
        """Return everything there is."""
        found: dict[str, Any] = {}
        top = self.at("")
        for folder, folders, files in os.walk(top):
            for name in [*folders, *files, b"."]:
                path = os.path.join(folder, name)
                status = os.lstat(path)
                shown = [*_plain(status), tuple(_attributes(path))]
                if stat.S_ISREG(status.st_mode):
                    with open(path, "rb") as file:
                        shown.append(hash(file.read()))
                elif stat.S_ISLNK(status.st_mode):
                    shown.append(os.readlink(path))
                found[os.path.relpath(path, top).decode()] = shown
        return found


def _attributes(path: bytes) -> Iterator[tuple[str, bytes]]:
    for name in sorted(os.listxattr(path, follow_symlinks=False)):
        yield name, os.getxattr(path, name, follow_symlinks=False)


def _kind(entry: "os.DirEntry[bytes]") -> str:
    if entry.is_symlink():
        return "link"
    return "folder" if entry.is_dir(follow_symlinks=False) else "other"


def _timespec(time: int) -> tuple[int, int]:
    if time in (UTIME_NOW, UTIME_OMIT):
        return 0, time
    return divmod(time, 10**9)


def _status(get: Callable[[], os.stat_result]) -> os.stat_result | str:
    try:
        return get()
    except OSError as failure:
        return errno.errorcode[failure.errno or 0]


def _plain(status: os.stat_result) -> tuple[int, ...]:
    is_folder = stat.S_ISDIR(status.st_mode)
    return (
        status.st_mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        0 if is_folder else status.st_size,
        status.st_rdev,
    )


def _slots_of(step: Step) -> list[int]:
    if step[3] in ("copy", "sendfile", "dup"):
        return [step[4], step[6] if step[3] == "copy" else step[5]]
    return [step[4]] if isinstance(step[4], int) else []


# ---- comparing


class Difference(AssertionError):
    """The sides differ."""


@contextlib.contextmanager
def acting(user: str) -> Iterator[None]:
    """Be another user for a while, as far as the kernel's checks go."""
    uid, gid, groups = USERS[user]
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups([])


def run(program: Sequence[Step], local: Side, mounts: Side) -> None:
    """Run a program on both sides. Raises Difference."""
    old = os.umask(0o022)
    for side in (local, mounts):
        side.begin()
    try:
        for number, step in enumerate(program):
            outcomes = [_outcome(side, step) for side in (local, mounts)]
            if outcomes[0] != outcomes[1]:
                raise Difference(_told(number, step, *outcomes))
            for slot in local.gone():
                local.close(slot)
                mounts.close(slot)
    finally:
        os.umask(old)
        local.close_all()
        mounts.close_all()
    _compare_trees(local.tree(), mounts.tree())


def _outcome(side: Side, step: Step) -> dict[str, Any]:
    user, node, looking, call, *arguments = step
    side.node = node
    before = side.look(looking, step)
    try:
        with acting(user):
            result = getattr(side, call)(*arguments)
    except OSError as failure:
        result = errno.errorcode[failure.errno or 0]
    after = side.look(looking, step)
    if call in ("open", "dup"):  # the slot is another file now, whose number may be an old one
        before = {where: status for where, status in before.items() if where[:4] != "slot"}
    shown = partial(_shown, accessed=side.compares_accesses)
    seen = {where: shown(before.get(where), now) for where, now in after.items()}
    return {"result": result, **seen}


def _shown(
    before: os.stat_result | str | None, now: os.stat_result | str, *, accessed: bool
) -> Any:
    if isinstance(now, str):
        return now
    times = [now.st_mtime_ns if now.st_mtime_ns < NEW else "now"]
    if accessed:
        times.append(now.st_atime_ns if now.st_atime_ns < NEW else "now")
    if isinstance(before, os.stat_result) and before.st_ino == now.st_ino:
        if before.st_mtime_ns != now.st_mtime_ns:
            times.append("mtime changed")
        if before.st_ctime_ns != now.st_ctime_ns:
            times.append("ctime changed")
    return (*_plain(now), *times)


def told(program: Sequence[Step]) -> str:
    """Return a program as text."""
    return "\n".join(_short(step) for step in program)


def _told(number: int, step: Step, local: dict[str, Any], mounts: dict[str, Any]) -> str:
    lines = [f"step {number}: {_short(step)}"]
    lines += [
        f"  {key}: local {_short(local.get(key))}, here {_short(mounts.get(key))}"
        for key in local.keys() | mounts.keys()
        if local.get(key) != mounts.get(key)
    ]
    return "\n".join(lines)


def _short(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "(" + ", ".join(_short(one) for one in value) + ")"
    if isinstance(value, bytes) and len(value) > 30:
        return f"{value[:10]!r}...[{len(value)}] {hash(value) % 9999}"
    return repr(value)


def _compare_trees(local: dict[str, Any], mounts: dict[str, Any]) -> None:
    for path in local.keys() | mounts.keys():
        if local.get(path) != mounts.get(path):
            raise Difference(f"{path}: local {local.get(path)}, here {mounts.get(path)}")


def shrunk(program: list[Step], differs: Callable[[Sequence[Step]], bool]) -> list[Step]:
    """Leave out of a program all that is not needed for a difference."""
    size = len(program) // 2
    while size:
        start = 0
        while start < len(program):
            candidate = program[:start] + program[start + size :]
            if differs(candidate):
                program = candidate
            else:
                start += size
        size //= 2
    return program


# ---- making programs


class Chance:
    """What a random step is made of."""

    def __init__(self, seed: str, nodes: int) -> None:
        self.pick = random.Random(seed)
        self._nodes = nodes

    def program(self, steps: int) -> list[Step]:
        """Return a program; the first steps make something to work with."""
        made = [
            ("root", 0, 0, "chmod", ".", 0o777),
            ("root", 0, 0, "mkdir", "a", 0o777),
            ("alice", 1, 0, "mkdir", "b", 0o755),
            ("alice", 1, 0, "open", 0, "b/a", os.O_CREAT | os.O_RDWR, 0o644),
        ]
        return [*made, *(self.step() for _ in range(steps))]

    def step(self) -> Step:
        name = self.pick.choices(list(_STEPS), [weight for weight, _ in _STEPS.values()])[0]
        user = self.pick.choice(["root", "root", "alice", "alice", "bob"])
        node, looking = self.pick.randrange(self._nodes), self.pick.randrange(self._nodes)
        return (user, node, looking, name, *_STEPS[name][1](self))

    def path(self) -> str:
        one, two, three = (self.pick.choice(NAMES[:3]) for _ in range(3))
        forms = [one, f"{one}/{two}", f"{one}/{two}", f"{one}/{two}/{three}"]
        rare = [f"{one}/", f"{one}/.", f"{one}/..", f"{one}/{two}/", f"{one}/../{two}", "."]
        return self.pick.choice(forms if self.pick.random() < 0.93 else rare)

    def data(self) -> bytes:
        size = self.size()
        return self.pick.randbytes(min(size, 64)) * (size // 64) + b"x" * (size % 64)

    def slot(self) -> int:
        return self.pick.randrange(SLOTS)

    def size(self) -> int:
        return self.pick.choice(SIZES)

    def offset(self) -> int:
        return self.pick.choice(OFFSETS)

    def mode(self) -> int:
        return self.pick.choice(MODES)

    def one(self, *of: Any) -> Any:
        return self.pick.choice(of)

    def flags(self) -> int:
        flags: int = self.one(os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR)
        for flag, odds in (
            (os.O_CREAT, 0.6),
            (os.O_EXCL, 0.15),
            (os.O_TRUNC, 0.15),
            (os.O_APPEND, 0.2),
            (os.O_DIRECTORY, 0.06),
            (os.O_NOFOLLOW, 0.1),
            (os.O_PATH, 0.02),
            (os.O_DSYNC, 0.03),
            (os.O_NOATIME, 0.03),
        ):
            if self.pick.random() < odds:
                flags |= flag
        if not flags & os.O_CREAT:
            flags &= ~os.O_EXCL
        if flags & os.O_DIRECTORY:
            flags &= ~os.O_CREAT
        return flags

    def times(self) -> tuple[int, int]:
        return self.one(*TIMES, UTIME_NOW, UTIME_OMIT), self.one(*TIMES, UTIME_NOW, UTIME_OMIT)

    def follow(self) -> bool:
        return self.pick.random() < 0.7

    def acl(self) -> tuple[tuple[int, int, int], ...]:
        bits = [self.pick.randrange(8) for _ in range(6)]
        nobody = 0xFFFFFFFF
        entries = [(0x01, bits[0], nobody), (0x04, bits[2], nobody), (0x20, bits[5], nobody)]
        if self.pick.random() < 0.8:
            entries = [
                *(entries[0], (0x02, bits[1], self.one(12001, 12002)), entries[1]),
                *((0x08, bits[3], 12100), (0x10, bits[4], nobody), entries[2]),
            ]
        return tuple(entries)


_FALLOCATE = (0, 0, 1, 3, 2, 0x10, 0x11)
_NODES = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, 0)

Arguments = Callable[[Chance], tuple[Any, ...]]
_STEPS: dict[str, tuple[int, Arguments]] = {
    "open": (14, lambda c: (c.slot(), c.path(), c.flags(), c.mode())),
    "close": (3, lambda c: (c.slot(),)),
    "dup": (1, lambda c: (c.slot(), c.slot())),
    "setfl": (1, lambda c: (c.slot(), c.one(0, os.O_APPEND))),
    "read": (3, lambda c: (c.slot(), c.size())),
    "write": (5, lambda c: (c.slot(), c.data())),
    "pread": (4, lambda c: (c.slot(), c.offset(), c.size())),
    "pwrite": (5, lambda c: (c.slot(), c.offset(), c.data())),
    "pwritev": (2, lambda c: (c.slot(), c.one(-1, *OFFSETS), c.data(), c.one(0, 0, 2, 0x10))),
    "lseek": (3, lambda c: (c.slot(), c.one(-1, *OFFSETS), c.one(0, 1, 2, 5))),
    "ftruncate": (3, lambda c: (c.slot(), c.one(-1, *OFFSETS, *SIZES))),
    "fallocate": (3, lambda c: (c.slot(), c.one(*_FALLOCATE), c.offset(), c.size())),
    "fsync": (1, lambda c: (c.slot(),)),
    "fchmod": (1, lambda c: (c.slot(), c.mode())),
    "fchown": (1, lambda c: (c.slot(), c.one(*IDS), c.one(*IDS))),
    "futimens": (1, lambda c: (c.slot(), c.times())),
    "copy": (2, lambda c: (c.slot(), c.offset(), c.slot(), c.offset(), c.size())),
    "sendfile": (1, lambda c: (c.slot(), c.slot(), c.offset(), c.size())),
    "flock": (1, lambda c: (c.slot(), c.one(fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN))),
    "names": (1, lambda c: (c.slot(),)),
    "mapped": (3, lambda c: (c.slot(), c.offset(), c.data(), c.one(1, 3, 3))),
    "mkdir": (4, lambda c: (c.path(), c.mode())),
    "mknod": (2, lambda c: (c.path(), c.one(*_NODES), c.mode())),
    "rmdir": (2, lambda c: (c.path(),)),
    "unlink": (3, lambda c: (c.path(),)),
    "link": (4, lambda c: (c.path(), c.path(), c.one(0, AT_SYMLINK_FOLLOW))),
    "link_file": (1, lambda c: (c.slot(), c.path())),
    "symlink": (3, lambda c: (f"to {c.one('a', 'b', '../a', '..', 'c/b', '.', 'x')}", c.path())),
    "readlink": (1, lambda c: (c.path(),)),
    "rename": (6, lambda c: (c.path(), c.path(), c.one(0, 0, 0, 1, 2, 3))),
    "names_in": (2, lambda c: (c.path(),)),
    "chmod": (5, lambda c: (c.path(), c.mode())),
    "chown": (4, lambda c: (c.path(), c.one(*IDS), c.one(*IDS), c.follow())),
    "truncate": (3, lambda c: (c.path(), c.one(-1, *OFFSETS))),
    "utimensat": (3, lambda c: (c.path(), c.times(), c.one(0, AT_NOFOLLOW))),
    "access": (2, lambda c: (c.path(), c.pick.randrange(8))),
    "exec": (1, lambda c: (c.path(),)),
    "setxattr": (
        3,
        lambda c: (c.path(), c.one(*ATTRIBUTES), c.data()[:2000], c.one(0, 0, 1, 2), c.follow()),
    ),
    "getxattr": (1, lambda c: (c.path(), c.one(*ATTRIBUTES), c.follow())),
    "removexattr": (1, lambda c: (c.path(), c.one(*ATTRIBUTES))),
    "listxattr": (1, lambda c: (c.path(),)),
    "setacl": (3, lambda c: (c.path(), c.acl(), c.one("access", "access", "default"))),
}
