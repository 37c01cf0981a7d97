"""Who on this node waits for what, as far as it takes part in the search for deadlocks. PURE.

A wait is named by its thing (a kind and a number that its home gave it) and, as one thing can be
waited for several times in turn, by a stamp. Stamps and owners' numbers come from one clock that
never stands behind any number seen in a peer's probe, so a higher number is a younger owner.

Invariants: a wait is under `by_key` exactly while it is under its owner's `waits`.
"""

from typing import Final

from dlm.events import Key, Lock, Owner, Wait
from dlm.modes import Flags

LOCK: Final = 0  # the kind of thing that a dlm.events.Lock is

FIRST_SEARCH_S: Final = 0.1  # after the wait began; most waits are shorter
SEARCH_EVERY_S: Final = 0.3

_NODLCKWT = int(Flags.NODLCKWT)


class Waits:
    """All waits of this node's owners."""

    def __init__(self) -> None:
        self.by_key: dict[Key, Wait] = {}
        self.clock = 0
        self.due_s = float("inf")  # no search is due before

    def next_stamp(self) -> int:
        """Return a number higher than all before."""
        self.clock += 1
        return self.clock

    def heard(self, number: int) -> None:
        """Let nothing that begins from now on look older than what a peer told of."""
        self.clock = max(self.clock, number)

    def begin(self, key: Key, owner: Owner, now_s: float) -> Wait:
        """Note that `owner` waits for a thing."""
        assert key not in self.by_key, key
        if not owner.number:
            owner.number = self.next_stamp()
        wait = Wait(key, owner, self.next_stamp(), now_s + FIRST_SEARCH_S)
        self.due_s = min(self.due_s, wait.search_s)
        self.by_key[key] = owner.waits[key] = wait
        return wait

    def begin_lock(self, lock: Lock, now_s: float) -> None:
        """Note that a lock was asked for, if that takes part."""
        if lock.transaction is not None and not lock.flags & _NODLCKWT:
            self.begin((LOCK, lock.id), lock.transaction, now_s)

    def end(self, kind: int, number: int) -> None:
        """Forget the wait for a thing, if there is one."""
        wait = self.by_key.pop((kind, number), None)
        if wait is not None:
            del wait.owner.waits[wait.key]

    def validate(self) -> None:
        """Assert the invariants."""
        for key, wait in self.by_key.items():
            assert wait.key == key
            assert wait.owner.waits[key] is wait
            assert 0 < wait.owner.number < wait.stamp <= self.clock
