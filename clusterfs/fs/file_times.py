"""The clock that file times are taken from: who has seen a change makes a later one. PURE.

The clocks of hosts differ. If each node stamped files with its own, a file that is changed on one
node and then on another could get an older time than it had, and what make builds on one node from
what was written on another could look older than that. So a node remembers the latest time of
change (ctime, which no program can set) of every inode that it learns of, and stamps later than
that, as a hybrid logical clock does (Kulkarni et al., Logical Physical Clocks, 2014). What it has
stamped itself counts, too: the clock of its host may be set back.

A time that is more than `MOST_AHEAD_NS` ahead is not followed: one host whose clock is hours wrong
would make the times of all others wrong, for ever. With it times may go back; what is wrong then
is that host's clock.

Invariants: a stamp is less than `MOST_AHEAD_NS` ahead of this host's clock; it is later than every
stamp before it, and than every time seen, that is not more than that ahead.
"""

from collections.abc import Callable
from typing import Final

MOST_AHEAD_NS: Final = 2_000_000_000


class FileClock:
    """One node's source of file times. Calling it returns a new one, ns since 1970."""

    def __init__(self, wall_ns: Callable[[], int]) -> None:
        self._wall_ns = wall_ns
        self._latest_ns = 0

    def __call__(self) -> int:
        """Return the time to stamp a change with that happens now."""
        now_ns = self._wall_ns()
        if now_ns <= self._latest_ns < now_ns + MOST_AHEAD_NS - 1:
            now_ns = self._latest_ns + 1
        self._latest_ns = now_ns
        return now_ns

    def saw(self, changed_ns: int) -> None:
        """Note when another node changed something that this node learns of now."""
        if changed_ns > self._latest_ns and changed_ns < self._wall_ns() + MOST_AHEAD_NS:
            self._latest_ns = changed_ns
