"""A tree on its way to another master, as its present or former master sees it. PURE.

While it is frozen, first requests wait here. Once it is away they are passed on: the directory node
may forward to us until it has noted who masters the tree now, and owners may remember us.
"""

from dlm.core.directory import routed
from dlm.core.situation import Situation
from dlm.core.tree import Tree
from dlm.messages import Request, Route

Node = tuple[int, int]  # a start of a node: its number and its incarnation


class Departure:
    """One tree that leaves us."""

    __slots__ = (
        "away",
        "begun",
        "held",
        "owners",
        "settled",
        "since_s",
        "stays",
        "target",
        "term",
        "tree",
    )

    def __init__(self, tree: Tree, term: int, target: Node, since_s: float) -> None:
        self.tree = tree
        self.term = term  # the next one
        self.target = target
        self.since_s = since_s
        self.owners: dict[Node, bool] = {}  # that were told to be silent, and whether they are
        self.stays = False  # it is called off, as soon as all are silent
        self.begun = False  # to hand it over
        self.away = False  # the last page is sent: we are not the master any more
        self.settled = False  # the new master has said that it has it
        self.held: list[Request] = []

    def take(self, here: Situation, request: Request) -> None:
        """Keep a first request, or pass it on."""
        onward = routed(request, Route.DIRECT, here.epoch, 0)
        if self.away and here.alive(*self.target):
            here.send(self.target[0], onward)
        else:
            self.held.append(onward)
