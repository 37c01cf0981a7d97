"""What this mount does with its cluster locks, described for tools in plain dicts. PURE.

A lock's path is found in the directories whose names are cached; it is a hint, and missing where a
directory on the way is not cached.
"""

from collections.abc import Iterable, Iterator, Sequence

from clusterfs.fs.asking import Asker
from clusterfs.fs.inodes import Inode
from clusterfs.fs.keys import ROOT
from clusterfs.fs.locks import NL, CachedLock

Description = dict[str, object]
Names = dict[int, tuple[int, bytes]]  # inode: a directory it is in, and its name there

PAGE = 100  # locks described without a pause
_DEPTH = 256  # of a path; names that were cached at different times could make a circle


def describe(
    locks: Sequence[CachedLock], inodes: Iterable[Inode], now_s: float, *, only_busy: bool
) -> Iterator[list[Description]]:
    """Yield pages with an entry for each lock that is held or wanted, described when taken.

    Keys: root, leaf, path, mode, users (-1: one alone), pins, revoking, using and waiting (lists of
    number, pid, operation; waiting with mode and wait_s). `only_busy`: not those merely kept.
    """
    names = names_of(inodes)
    for first in range(0, len(locks), PAGE):
        yield [
            _describe(lock, path_of(int.from_bytes(lock.name.root, "big"), names), now_s)
            for lock in locks[first : first + PAGE]
            if not lock.idle or lock.contended or (lock.level > NL and not only_busy)
        ]


def names_of(inodes: Iterable[Inode]) -> Names:
    """Return one name of every inode that a cached directory leads to."""
    return {
        entry.inode: (inode.number, name)
        for inode in inodes
        for name, entry in inode.entries.items()
        if entry is not None
    }


def path_of(number: int, names: Names) -> str:
    """Return a path from the volume's root, or "" if it is not known."""
    parts: list[str] = []
    while number != ROOT:
        place = names.get(number)
        if place is None or len(parts) == _DEPTH:
            return ""
        number, name = place
        parts.append(name.decode("utf-8", "backslashreplace"))
    return "/" + "/".join(reversed(parts))


def _describe(lock: CachedLock, path: str, now_s: float) -> Description:
    return {
        "root": lock.name.root,
        "leaf": lock.name.leaf,
        "path": path,
        "mode": lock.level.name,
        "users": lock.users,
        "pins": lock.pins,
        "revoking": lock.revoking,
        "using": [_asker(asker) for asker in lock.using],
        "waiting": [
            {
                **_asker(waiter.asker),
                "mode": waiter.level.name,
                "wait_s": max(0.0, round(now_s - waiter.since_s, 6)),
            }
            for waiter in lock.waiters()
        ],
    }


def _asker(asker: Asker | None) -> Description:
    if asker is None:
        return {"number": 0, "pid": 0, "operation": ""}
    return {"number": asker.number, "pid": asker.pid, "operation": asker.operation}
