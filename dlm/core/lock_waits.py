"""Locks as things that are waited for: what the search for deadlocks asks about them. PURE."""

from collections.abc import Iterable, Iterator

from dlm.core.master_copy import Copy
from dlm.core.mastery import Mastery
from dlm.core.ownership import Ownership
from dlm.core.situation import Situation
from dlm.core.waits import LOCK
from dlm.events import Lock, Owner, Withdraw
from dlm.messages import Blocker
from dlm.modes import Flags, Mode

_NODLCKBLK = int(Flags.NODLCKBLK)


class LockWaits:
    """Answers for the locks of this node's users, and for the queues of the trees mastered here."""

    def __init__(self, here: Situation, mastery: Mastery, ownership: Ownership) -> None:
        self._here = here
        self._mastery = mastery
        self._ownership = ownership

    def host(self, number: int) -> int | None:
        """Return the master that has queued this lock; None: none has said so."""
        lock = self._ownership.pending.get(number)
        if lock is None or not lock.sequence:
            return None
        return self._ownership.roots[lock.name.root].master

    def blockers(self, node: int, number: int) -> Iterator[tuple[int, Blocker]]:
        """Yield what is in the way of a lock queued here, with the home of each."""
        copy = self._mastery.copies.get((node, number))
        if copy is None or copy.requested is None:
            return
        for holder, first in copy.resource.blockers(copy):
            if holder.node < 0:
                continue  # its holder is gone, and it will be buried
            assert holder.granted is not None
            before = () if first is None else (first.sequence, _who(first), first.node, first.lock)
            yield holder.node, Blocker(LOCK, holder.lock, int(holder.granted), *before)

    def waits(self, number: int, place: int) -> bool:
        """Tell whether this lock still waits for good at that place of its queue."""
        lock = self._ownership.pending.get(number)
        return lock is not None and lock.sequence == place and not lock.cancelling

    def holders(self, number: int, state: int) -> Iterable[tuple[Owner, int]]:
        """Yield who uses this lock, and since which stamp; nobody if the master is behind."""
        lock = self._ownership.locks.get(number)
        if lock is None or lock.granted is None or lock.flags & _NODLCKBLK:
            return
        if lock.granted != state or lock.parting is not None:
            return  # a release of it is on its way to the master, or the master's grant to us
        if lock.transaction is not None:
            yield lock.transaction, lock.turn
        for owner, since in (lock.users or {}).items():
            yield owner, max(since, lock.turn)

    def wants(self, number: int) -> str:
        """Say what is being waited for."""
        lock = self._ownership.pending[number]
        return _words(lock, lock.requested)

    def holds(self, number: int) -> str:
        """Say what is held."""
        lock = self._ownership.locks[number]
        return _words(lock, lock.granted)

    def give_up(self, number: int, story: str) -> None:
        """End a wait as the victim of the deadlock that `story` tells."""
        lock = self._ownership.pending[number]
        lock.deadlock = story
        self._ownership.withdraw(Withdraw(lock))

    def overtake(self, _node: int, _number: int) -> bool:
        """Refuse: locks are granted in the order of their queues."""
        return False


def _words(lock: Lock, mode: Mode | None) -> str:
    return f"{'nothing' if mode is None else mode.name} on {lock.name.spelt()}"


def _who(copy: Copy) -> str:
    assert copy.requested is not None
    return f"{copy.requested.name} of {copy.owner or f'lock {copy.lock}'} on node {copy.node}"
