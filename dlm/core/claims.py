"""Names made here that their directory nodes have not acknowledged yet. PURE.

Who makes a name that is new by construction needs nobody's leave to master it: no other node can
have asked for it. So it is mastered here at once, and its directory node is told afterwards, in
batches. Until that node has acknowledged it nobody else may learn the name; Ownership therefore
lets no lock go under which the name can have been made public, see `reached`.

Claims are numbered. A claim that is told to nobody yet is simply taken back when its tree has no
lock left. A change of the members makes all claims void: recovery tells the directory every root
that has locks, and until it is over nothing counts as acknowledged.

Invariants (`validate`): a pending claim is gathered or told, unless locks are frozen; what is
gathered will be told at a deadline.
"""

from collections import deque

from dlm.core.situation import NEVER, Situation
from dlm.messages import Claim, Claimed

BATCH = 64  # claims for one directory node that are told without waiting for more
GATHER_S = 0.005


class Claims:
    """What is mastered here without the directory's knowledge."""

    __slots__ = ("_flush_s", "_gathered", "_here", "_numbers", "_told", "last")

    def __init__(self, here: Situation) -> None:
        self._here = here
        self.last = 0  # the number of the latest claim
        self._numbers: dict[bytes, int] = {}  # of what is not acknowledged, the oldest first
        self._gathered: dict[int, list[bytes]] = {}  # to be told, by directory node
        self._told: dict[int, deque[bytes]] = {}
        self._flush_s = NEVER

    def add(self, root: bytes, directory: int) -> None:
        """Claim a new root; its directory node is another node."""
        here = self._here
        assert directory != here.me
        assert root not in self._numbers, root
        self.last += 1
        self._numbers[root] = self.last
        gathered = self._gathered.setdefault(directory, [])
        gathered.append(root)
        if len(gathered) >= BATCH:
            self._tell(directory)
        elif self._flush_s == NEVER:
            self._flush_s = here.now_s + GATHER_S
            here.wake(self._flush_s)

    def flush(self) -> None:
        """Tell all that is gathered: somebody waits, or may soon."""
        for directory in tuple(self._gathered):
            self._tell(directory)
        self._flush_s = NEVER

    def tick(self) -> None:
        """Tell what has been gathered for long enough."""
        if self._here.now_s >= self._flush_s:
            self.flush()
        elif self._flush_s != NEVER:
            self._here.wake(self._flush_s)

    def take_back(self, root: bytes) -> bool:
        """Give up a claim that nobody was told of; False: it was told, or never made."""
        if root not in self._numbers:
            return False
        for gathered in self._gathered.values():
            if root in gathered:
                gathered.remove(root)
                del self._numbers[root]
                return True
        return False

    def acknowledged(self, sender: int, message: Claimed) -> None:
        """Note that the oldest claims told to that directory node are known there now."""
        told = self._told[sender]
        for _ in range(message.count):
            del self._numbers[told.popleft()]

    @property
    def pending(self) -> bool:
        """Whether the directory does not know all names made here."""
        return bool(self._numbers)

    def pending_roots(self) -> list[bytes]:
        """Return the roots of which that is so, the oldest claim first."""
        return list(self._numbers)

    def reached(self, number: int) -> bool:
        """Tell whether every claim up to this number is acknowledged."""
        return not self._numbers or next(iter(self._numbers.values())) > number

    def enter(self) -> None:
        """Void what was told: the members have changed, and recovery tells everything."""
        self._gathered.clear()
        self._told.clear()
        self._flush_s = NEVER

    def thaw(self) -> None:
        """Recovery has told the directory everything."""
        self._numbers.clear()

    def validate(self) -> None:
        """Assert the invariants; not while locks are frozen."""
        gathered = [root for roots in self._gathered.values() for root in roots]
        told = [root for roots in self._told.values() for root in roots]
        assert sorted(gathered + told) == sorted(self._numbers)
        assert list(self._numbers.values()) == sorted(self._numbers.values())
        assert not gathered or self._here.deadline_s <= self._flush_s < NEVER

    def _tell(self, directory: int) -> None:
        roots = self._gathered.pop(directory)
        self._told.setdefault(directory, deque()).extend(roots)
        for first in range(0, len(roots), BATCH):
            page = tuple(roots[first : first + BATCH])
            self._here.send(directory, Claim(self._here.epoch, page))
