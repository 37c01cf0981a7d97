"""All cached locks of this node, and the lockspace that they are in.

The lockspace is that of one incarnation: when this node is lost every lock is void, and after its
readmission the same cached locks are asked for in the next one.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import zip_longest
from typing import Any
from weakref import WeakSet

import trio

from clusterfs.fs import asking
from clusterfs.fs.lock_users import Contents, GiveUp
from clusterfs.fs.locks import EX, NL, PR, CachedLock
from clusterfs.fs.ports import Flags, Lock, Lockspace, Name
from dlm.errors import DeadlockVictim, WouldBlock


class LockCache:
    """All cached locks of this node, and the lockspace they are in."""

    def __init__(self, lockspace: Lockspace) -> None:
        self.lockspace = lockspace
        self.lost = False
        self.held = 0  # locks that this node keeps
        self.grants = 0
        self.values = 0  # grants that brought what the last holder left
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

    def lock(
        self, name: Name, give_up: GiveUp | None = None, contents: Contents | None = None
    ) -> CachedLock:
        """Return a new cached lock, not held yet. One for each name, please."""
        lock = CachedLock(self, name, give_up, contents)
        self._locks.add(lock)
        return lock

    def locks(self) -> list[CachedLock]:
        """Return every lock that somebody refers to, held or not."""
        return list(self._locks)

    async def share_free(self, locks: Iterable[CachedLock]) -> None:
        """Hold PR on those of the locks that nobody holds in EX, here or elsewhere.

        They have value blocks; all are asked for at once. Raises LockLost.
        """
        lockspace = self.lockspace
        wanted = [lock for lock in dict.fromkeys(locks) if lock.level == NL and lock.idle]
        if self.lost or not wanted:
            return
        for lock in wanted:
            lock.begin_work()
        granted: Sequence[Lock | None] = ()
        try:
            granted = await lockspace.lock_many(
                [lock.name for lock in wanted],
                PR,
                flags=Flags.NOQUEUE | Flags.VALBLK,
                owner=asking.label(asking.current()),
                blocking=[lock.blocked for lock in wanted],
            )
        finally:
            for lock, taken in zip_longest(wanted, granted):
                lock.end_work(lockspace, taken, PR)

    async def exclude_free(self, lock: CachedLock) -> bool:
        """Use a held lock exclusively if nobody else does or has it, here or elsewhere.

        It has no value block. Nobody is waited for, nor asked to give it up; its master may be
        asked. Raises LockLost.
        """
        if lock.exclusive_nowait():
            return True
        if self.lost or lock.level != PR or lock.contended or not lock.idle:
            return False
        lockspace, granted = self.lockspace, None
        held = lock.begin_work(exclusive=True)
        assert held is not None
        try:
            await lockspace.convert(held, EX, flags=Flags.NOQUEUE, shield=True)
            granted = held
        except (WouldBlock, DeadlockVictim):
            pass
        finally:
            lock.end_work(lockspace, granted, EX)
            if lock.level < EX:
                lock.release()
        if granted is not None:
            lock.require(EX)
        return granted is not None

    def lose(self) -> None:
        """Void every lock: this node was removed."""
        self.lost = True
        for lock in list(self._locks):
            lock.lose()

    def readmit(self, lockspace: Lockspace) -> None:
        """Take locks in the lockspace of a new incarnation from now on."""
        self.lockspace = lockspace
        self.lost = False
