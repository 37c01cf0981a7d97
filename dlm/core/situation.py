"""What every part of the core knows: who and when we are, and what is to be done. PURE.

Messages to ourselves go to `local` and are handled in the same transition; all others become
effects.
"""

from collections import deque
from collections.abc import Callable, Iterable

from xxhash import xxh3_64_intdigest

from dlm.core.resource import Resource
from dlm.core.waits import Waits
from dlm.effects import Effect, Send
from dlm.fields import TERM_BITS, Epoch
from dlm.messages import Message

NEVER = float("inf")


def _nobody(_root: bytes) -> int | None:
    return None


def _open(_root: bytes, _epoch: Epoch) -> bool:
    return True


class Situation:
    """Shared by the parts of one lockspace."""

    __slots__ = (
        "deadline_s",
        "effects",
        "epoch",
        "frozen",
        "gate",
        "incarnation",
        "leaving",
        "local",
        "loss",
        "maker_of",
        "me",
        "members",
        "misdirected",
        "now_s",
        "rules",
        "term",
        "waits",
    )

    def __init__(self, me: int, incarnation: int) -> None:
        self.me = me
        self.rules: type[Resource] = Resource  # of those mastered here
        self.incarnation = incarnation
        self.epoch = 0  # as last entered
        self.members: dict[int, int] = {}  # node to incarnation, without those that are leaving
        self.leaving: dict[int, int] = {}  # refused by all, but what they hold is still theirs
        self.frozen = True  # not entered yet, or lost
        self.term = 0  # the highest that we have handed out
        self.now_s = 0.0
        self.deadline_s = NEVER  # when the next Tick is due
        self.effects: list[Effect] = []
        self.local: deque[Message] = deque()
        self.waits = Waits()
        self.maker_of: Callable[[bytes], int | None] = _nobody
        self.gate: Callable[[bytes, Epoch], bool] = _open  # see `opened`
        self.loss: Epoch = 0  # when we last learned that some start of a node is over
        self.misdirected = 0  # messages that no correct peer would have sent us

    def send(self, node: int, message: Message) -> None:
        """Pass on `message`, after everything sent to that node before; nobody else gets it."""
        if node == self.me:
            self.local.append(message)
        elif node in self.members:
            self.effects.append(Send(node, message))

    def wake(self, at_s: float) -> None:
        """See to it that a Tick comes at that time, or soon after."""
        self.deadline_s = min(self.deadline_s, at_s)

    def directory_of(self, root: bytes) -> int:
        """Return the directory node of `root`: rendezvous hash, so a join moves 1/n of them."""
        return directory_among(self.members, root)

    def alive(self, node: int, incarnation: int) -> bool:
        """Tell whether that very start of the node is a member that is not leaving."""
        return self.members.get(node) == incarnation

    def gone(self, node: int, incarnation: int) -> bool:
        """Tell whether that start of the node is over for sure, and what it held is free."""
        return self.members.get(node) != incarnation and self.leaving.get(node) != incarnation

    def opened(self, root: bytes) -> bool:
        """Tell whether what those who are gone may have held under `root` may be used.

        They may have done there what not everybody knows yet. Whoever keeps what the locks protect
        says when that is mended: `gate` is asked for the epoch of the last loss.
        """
        return self.gate(root, self.loss)

    def new_term(self, above: int = 0) -> int:
        """Return a term above the one given, and above all that we have handed out."""
        self.term = max(self.term, above, self.epoch << TERM_BITS) + 1
        return self.term


def directory_among(nodes: Iterable[int], root: bytes) -> int:
    """Return the node with the highest weight for `root`."""
    best, best_weight = 0, -1
    for node in nodes:
        weight = xxh3_64_intdigest(root, node)
        if weight > best_weight:
            best, best_weight = node, weight
    return best
