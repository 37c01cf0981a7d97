"""All cached locks of this node, and the lockspace that they are in.

The lockspace is that of one incarnation: when this node is lost every lock is void, and after its
readmission the same cached locks are asked for in the next one.
"""

from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakSet

import trio

from clusterfs.fs.locks import CachedLock, GiveUp
from clusterfs.fs.ports import Lockspace, Name


class LockCache:
    """All cached locks of this node, and the lockspace they are in."""

    def __init__(self, lockspace: Lockspace) -> None:
        self.lockspace = lockspace
        self.lost = False
        self.held = 0  # locks that this node keeps
        self.grants = 0
        self.revokes = 0
        self._nursery: trio.Nursery | None = None
        self._locks: WeakSet[CachedLock] = WeakSet()

    def use(self, nursery: trio.Nursery) -> None:
        """Run the work on locks in this nursery."""
        self._nursery = nursery

    def start(self, work: Callable[[], Awaitable[Any]]) -> None:
        """Run work on a lock beside its callers."""
        assert self._nursery is not None, "the filesystem does not run"
        self._nursery.start_soon(work)

    def lock(self, name: Name, give_up: GiveUp | None = None) -> CachedLock:
        """Return a new cached lock, not held yet. One for each name, please."""
        lock = CachedLock(self, name, give_up)
        self._locks.add(lock)
        return lock

    def locks(self) -> list[CachedLock]:
        """Return every lock that somebody refers to, held or not."""
        return list(self._locks)

    def lose(self) -> None:
        """Void every lock: this node was removed."""
        self.lost = True
        for lock in list(self._locks):
            lock.lose()

    def readmit(self, lockspace: Lockspace) -> None:
        """Take locks in the lockspace of a new incarnation from now on."""
        self.lockspace = lockspace
        self.lost = False
