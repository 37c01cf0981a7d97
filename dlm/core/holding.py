"""How long a lock that others want is kept after its grant: the adaptive minimum hold time. PURE.

Two busy nodes that hand a lock to and fro at every use do nothing else. So whoever asks for a lock
again at once, within a round trip of having made way, keeps it a while when it comes back, before
its user hears that others want it: one round trip longer each time, at most eight, and at most
20 ms. Who does not come back at once keeps it half as long, so a lock that merely goes round is
soon passed on without delay.

The round trip is measured: from a question to the master's first answer, smoothed like TCP's.

Invariants (`validate`): a postponed BAST is of a lock that is held, and a Tick is due for it.
"""

from collections.abc import Callable
from typing import Final

from dlm.core.situation import Situation
from dlm.events import Lock, Name
from dlm.modes import Mode

MOST_S: Final = 0.02
MOST_ROUNDS: Final = 8
_NAMES = 4096  # remembered, the most recently wanted ones
_SMOOTH = 8


class _Contest:
    __slots__ = ("eager", "gave_way_s")

    def __init__(self) -> None:
        self.eager = 0  # how often in a row we were back at once
        self.gave_way_s = float("-inf")


class Holding:
    """Which BASTs wait, and until when."""

    def __init__(self, here: Situation, notify: Callable[[Lock, Mode], None]) -> None:
        self._here = here
        self._notify = notify
        self._contests: dict[Name, _Contest] = {}
        self._postponed: dict[int, tuple[float, Lock, Mode]] = {}
        self.round_trip_s = 0.0  # smoothed; 0: not measured yet
        self.postponed = 0  # BASTs so far that waited

    def asked(self, lock: Lock) -> None:
        """Note that the master is being asked for a grant."""
        lock.asked_s = now_s = self._here.now_s
        contest = self._contests.get(lock.name)
        if contest is None or contest.gave_way_s == float("-inf"):
            return
        if now_s - contest.gave_way_s <= self.round_trip_s:
            contest.eager = min(contest.eager + 1, MOST_ROUNDS)
        else:
            contest.eager //= 2
        contest.gave_way_s = float("-inf")

    def answered(self, lock: Lock, master: int) -> None:
        """Note the master's first answer."""
        if lock.asked_s and master != self._here.me:
            sample_s = self._here.now_s - lock.asked_s
            if not self.round_trip_s:
                self.round_trip_s = sample_s
            self.round_trip_s += (sample_s - self.round_trip_s) / _SMOOTH
        lock.asked_s = 0.0

    def granted(self, lock: Lock, master: int) -> None:
        """Note since when a lock is held in its mode; it may be the first answer."""
        if lock.asked_s:
            self.answered(lock, master)
        lock.granted_s = self._here.now_s
        self._postponed.pop(lock.id, None)  # the master will say it again if it is still so

    def told(self, lock: Lock, mode: Mode) -> None:
        """Tell the user that others want `mode`: now, or when the lock was held for long enough."""
        due_s = lock.granted_s + self._hold_s(lock.name)
        if due_s <= self._here.now_s:
            self._notify(lock, mode)
            return
        waiting = self._postponed.get(lock.id)
        if waiting is None:
            self.postponed += 1
        else:
            mode = max(mode, waiting[2])
        self._postponed[lock.id] = due_s, lock, mode
        self._here.wake(due_s)

    def made_way(self, lock: Lock) -> None:
        """Note that the lock was weakened or released."""
        if self._postponed.pop(lock.id, None) is not None or lock.blocked_for is not None:
            contest = self._contests.pop(lock.name, None) or _Contest()
            self._contests[lock.name] = contest
            contest.gave_way_s = self._here.now_s
            if len(self._contests) > _NAMES:
                del self._contests[next(iter(self._contests))]

    def tick(self) -> None:
        """Tell what has waited for long enough."""
        for number, (due_s, lock, mode) in tuple(self._postponed.items()):
            if due_s <= self._here.now_s:
                del self._postponed[number]
                self._notify(lock, mode)
            else:
                self._here.wake(due_s)

    def clear(self) -> None:
        """Forget what waits: all is void."""
        self._postponed.clear()

    def validate(self) -> None:
        """Assert the invariants."""
        for number, (due_s, lock, _) in self._postponed.items():
            assert lock.id == number
            assert lock.mode is not None
            assert self._here.deadline_s <= due_s

    def _hold_s(self, name: Name) -> float:
        contest = self._contests.get(name)
        return 0.0 if contest is None else min(MOST_S, contest.eager * self.round_trip_s)
