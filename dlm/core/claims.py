"""Names made here that their directory nodes have not acknowledged yet. PURE.

Who makes a name that is new by construction needs nobody's leave to master it: no other node can
have asked for it. So it is mastered here at once, and its directory node is told afterwards, in
batches. Until that node has acknowledged it nobody else may learn the name; Ownership therefore
lets no lock go under which the name can have been made public, see `reached`.

Claims are numbered. A claim that is told to nobody yet is simply taken back when its tree has no
lock left. If the directory moves, what its former node may not have acknowledged is claimed anew.

Invariants (`validate`): a pending claim is gathered or told; what is gathered will be told at a
deadline.
"""

from collections import deque

from dlm.core.situation import NEVER, Situation
from dlm.messages import Claim, Claimed, Reign

BATCH = 64  # claims for one directory node that are told without waiting for more
GATHER_S = 0.005


class _Telling:
    """A claim on its way to one directory node."""

    __slots__ = ("node", "root", "start", "told")

    def __init__(self, root: bytes, node: int, start: int) -> None:
        self.root = root
        self.node = node
        self.start = start  # the node's incarnation
        self.told = False


class Claims:
    """What is mastered here without the directory's knowledge."""

    __slots__ = ("_flush_s", "_gathered", "_here", "_numbers", "_terms", "_to", "_told", "last")

    def __init__(self, here: Situation) -> None:
        self._here = here
        self.last = 0  # the number of the latest claim
        self._numbers: dict[bytes, int] = {}  # of what is not acknowledged, the oldest first
        self._terms: dict[bytes, int] = {}
        self._to: dict[bytes, _Telling] = {}  # to whom each is told, or will be
        self._gathered: dict[int, list[bytes]] = {}  # to be told, by directory node
        self._told: dict[int, deque[_Telling]] = {}
        self._flush_s = NEVER

    def add(self, root: bytes, term: int, directory: int) -> None:
        """Claim a new root; its directory node is another node."""
        here = self._here
        assert directory != here.me
        assert root not in self._numbers, root
        self.last += 1
        self._numbers[root], self._terms[root] = self.last, term
        self._gather(root, directory)

    def _gather(self, root: bytes, directory: int) -> None:
        here = self._here
        self._to[root] = _Telling(root, directory, here.members[directory])
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
                self._forget(root)
                return True
        return False

    def acknowledged(self, sender: int, message: Claimed) -> None:
        """Note that the oldest claims told to that directory node are known there now."""
        told = self._told[sender]
        for _ in range(message.count):
            telling = told.popleft()
            if self._to.get(telling.root) is telling:  # else it was claimed elsewhere since
                self._forget(telling.root)

    def _forget(self, root: bytes) -> None:
        del self._numbers[root], self._terms[root], self._to[root]

    def is_pending(self, root: bytes) -> bool:
        """Tell whether the directory does not know this name for sure."""
        return root in self._numbers

    @property
    def pending(self) -> bool:
        """Whether the directory does not know all names made here."""
        return bool(self._numbers)

    def awaits(self, root: bytes) -> bool:
        """Tell whether the directory does not know this root, made here."""
        return root in self._numbers

    def pending_roots(self) -> list[bytes]:
        """Return the roots of which that is so, the oldest claim first."""
        return list(self._numbers)

    def reached(self, number: int) -> bool:
        """Tell whether every claim up to this number is acknowledged."""
        return not self._numbers or next(iter(self._numbers.values())) > number

    def enter(self, *, skipped: bool) -> list[bytes]:
        """Claim anew what is not for sure known to the present directory; return what is ours."""
        here, ours = self._here, []
        self._told = {
            node: told
            for node, told in self._told.items()
            if told and here.alive(node, told[-1].start)
        }
        for gathered in self._gathered.values():
            gathered.clear()
        for root, telling in tuple(self._to.items()):
            node = here.directory_of(root)
            if node == here.me:
                ours.append(root)
                self._forget(root)
            elif skipped or (node, here.members[node]) != (telling.node, telling.start):
                self._gather(root, node)
            elif not telling.told:
                self._gathered.setdefault(node, []).append(root)
        self.flush()
        return ours

    def validate(self) -> None:
        """Assert the invariants."""
        gathered = [root for roots in self._gathered.values() for root in roots]
        told = [
            telling.root
            for tellings in self._told.values()
            for telling in tellings
            if self._to.get(telling.root) is telling
        ]
        assert sorted(gathered + told) == sorted(self._numbers)
        assert list(self._numbers.values()) == sorted(self._numbers.values())
        assert not gathered or self._here.deadline_s <= self._flush_s < NEVER

    def _tell(self, directory: int) -> None:
        roots = self._gathered.pop(directory)
        told = self._told.setdefault(directory, deque())
        for root in roots:
            self._to[root].told = True
            told.append(self._to[root])
        for first in range(0, len(roots), BATCH):
            page = tuple(Reign(root, self._terms[root]) for root in roots[first : first + BATCH])
            self._here.send(directory, Claim(self._here.epoch, page))
