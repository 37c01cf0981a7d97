"""A tree moves to another master: both ends of it. PURE.

A master is whoever has the tree; with the last page of it (Handover) it passes that on, and from
then on it never grants anything there again:

  * it tells each owner to be silent about the tree (Freeze), and grants nothing any more. What is
    on its way still counts: releases and demotions are noted, new requests kept, conversions left
    to be asked for again;
  * when all owners have answered (Frozen), nothing is on its way in either direction, and what it
    knows is all there is to know. It hands it over in pages, queues and value blocks as they are;
  * with the last page the new master tells the directory node (Seats), the owners (Reigns) and the
    former master (Settled), and goes on: it may grant at once, as each owner hears of it first;
  * the former master passes on what comes for it until the directory node has noted the change.

Any change of members calls off what has not been handed over: when all owners are silent the master
goes on under its term, and they with it. If one end is lost, every owner knows that (it was told of
both before it fell silent), and tells its locks as if its master were lost; whoever has the tree
tells the directory node before the round of that change ends, so it is rebuilt only if nobody has
it. That is why an owner does not consent if the next master is lost already.

Invariants (`validate`): what is not away is mastered here, and what is away is not, under its term.
"""

from collections.abc import Callable, Iterator

from dlm.core.departure import Departure, Node
from dlm.core.directory import routed
from dlm.core.master_copy import Copy
from dlm.core.mastery import Mastery
from dlm.core.recovery import Recovery
from dlm.core.resource import Resource
from dlm.core.situation import Situation
from dlm.core.tree import Tree
from dlm.messages import Reign, Reigns, Route, Seat, Seats
from dlm.moving import (
    Abandon,
    Carried,
    Freeze,
    Frozen,
    Handover,
    Move,
    Noted,
    Settled,
    Start,
    Worth,
)

PAGE = 200  # locks in one message


class Arrival:
    """A tree of which not all pages have come."""

    __slots__ = ("source", "starts", "tree")

    def __init__(self, tree: Tree, source: Node) -> None:
        self.tree = tree
        self.source = source
        self.starts: dict[Copy, int] = {}  # the incarnation of each owner


class Migration:
    """All trees on their way from or to this node."""

    def __init__(self, here: Situation, mastery: Mastery, recovery: Recovery) -> None:
        self._here = here
        self._mastery = mastery
        self._recovery = recovery
        self.on_taken: Callable[[Tree], None] = _ignore
        self.arriving: dict[bytes, Arrival] = {}
        self.left = 0  # trees so far
        self.taken = 0
        self.called_off = 0
        self.longest_s = 0.0  # from the first word about it to the new master's

    # -- the old master --------------------------------------------------------------------------

    def start(self, root: bytes, target: int) -> bool:
        """Begin to move the tree; False: not now, or not from here."""
        here, tree = self._here, self._mastery.trees.get(root)
        if tree is None or target == here.me or target not in here.members:
            return False
        if not self._can_move(tree):
            return False
        departure = Departure(tree, here.new_term(tree.term), self._start(target), here.now_s)
        self._mastery.departures[root] = departure
        freeze = Freeze(departure.term, root, tree.term, *departure.target)
        for node in sorted(tree.owners()):
            departure.owners[self._start(node)] = False
            here.send(node, freeze)
        return True

    def _can_move(self, tree: Tree) -> bool:
        """Tell whether its directory node knows us, and nothing else is going on there."""
        here, mastery, root = self._here, self._mastery, tree.root
        if not tree.resources or tree.removing or tree.thawing or root in mastery.departures:
            return False
        if self._recovery.telling or mastery.burying or mastery.claims.is_pending(root):
            return False
        known = tree.directory == self._start(here.directory_of(root))
        return known and min(tree.owners()) > 0

    def frozen(self, sender: int, message: Frozen) -> None:
        """Note that an owner is silent; if all are, hand the tree over."""
        departure = self._mastery.departures.get(message.root)
        if departure is None or departure.term != message.term or departure.begun:
            return
        departure.owners[self._start(sender)] = True
        departure.stays = departure.stays or not message.consents
        self._look_at(departure)

    def _look_at(self, departure: Departure) -> None:
        """If all owners are silent hand the tree over, or go on with it if it was called off."""
        if not all(departure.owners.values()):
            return
        if departure.stays or not departure.tree.resources:
            self._call_off(departure)
        else:
            departure.begun = True
            self._recovery.add_chore(self._hand_over(departure))

    def _hand_over(self, departure: Departure) -> Iterator[None]:
        """Send the tree, in steps; nothing changes it meanwhile, but it may be called off."""
        here, tree, term = self._here, departure.tree, departure.term
        worths: list[Worth] = []
        page: list[Carried] = []
        if self._mastery.departures.get(tree.root) is not departure:
            return  # before the first step
        for leaf, resource in tree.resources.items():
            worths.append(Worth(leaf, resource.lvb, resource.lvb_sequence, resource.lvb_valid))
            for copy in resource.copies():
                page.append(_carried(copy, here))
                if len(page) >= PAGE:
                    pages = tuple(worths), tuple(page)
                    here.send(departure.target[0], Handover(term, tree.root, *pages, last=False))
                    worths, page = [], []
                yield
                if self._mastery.departures.get(tree.root) is not departure:
                    return
        owners = tuple(Start(*start) for start in departure.owners)
        pages = tuple(worths), tuple(page)
        last = Handover(term, tree.root, *pages, last=True, owners=owners, pinned=tree.pinned)
        here.send(departure.target[0], last)
        self._let_go(departure)

    def _let_go(self, departure: Departure) -> None:
        departure.away = True
        self._mastery.part_with(departure.tree)
        held, departure.held = departure.held, []
        for request in held:
            departure.take(self._here, request)

    def _call_off(self, departure: Departure) -> None:
        """Go on as the master, under the term that never ended."""
        here, tree = self._here, departure.tree
        self.called_off += 1
        if departure.begun and here.alive(*departure.target):
            here.send(departure.target[0], Abandon(departure.term, tree.root))
        self._tell_owners(departure.owners, departure.term, Reign(tree.root, tree.term))
        tree.thawing = True
        self._recovery.add_chore(self._mastery.thaw(tree, recover=False))
        self._mastery.return_to(tree.root)

    def settled(self, _sender: int, message: Settled) -> None:
        """Tell the directory node to send us nothing more."""
        here, departure = self._here, self._mastery.departures.get(message.root)
        if departure is None or departure.term != message.term:
            return
        departure.settled = True
        self.left += 1
        self.longest_s = max(self.longest_s, here.now_s - departure.since_s)
        self._move(departure)

    def _move(self, departure: Departure) -> None:
        here, root = self._here, departure.tree.root
        move = Move(here.epoch, root, departure.term, *departure.target)
        here.send(here.directory_of(root), move)

    def noted(self, sender: int, message: Noted) -> None:
        """Forget a tree that the present directory node forwards nothing more to us for."""
        here, root = self._here, message.root
        departure = self._mastery.departures.get(root)
        if departure is None or departure.term != message.term:
            return
        if message.epoch != here.epoch or sender != here.directory_of(root):
            return
        assert departure.settled or not here.alive(*departure.target)
        del self._mastery.departures[root]
        for request in departure.held:
            here.send(sender, routed(request, Route.ASK, here.epoch, 0))

    # -- the new master --------------------------------------------------------------------------

    def handover(self, sender: int, message: Handover) -> None:
        """Take a page of a tree; with the last one, be its master."""
        here, root = self._here, message.root
        arrival = self.arriving.get(root)
        if arrival is None or arrival.tree.term < message.term:
            tree = Tree(root, message.term, here.now_s)
            arrival = self.arriving[root] = Arrival(tree, self._start(sender))
        assert arrival.tree.term == message.term
        self._take_page(arrival, message)
        if message.last:
            arrival.tree.pinned = message.pinned
            del self.arriving[root]
            self._begin(arrival, message.owners)

    def _take_page(self, arrival: Arrival, message: Handover) -> None:
        here, tree = self._here, arrival.tree
        for worth in message.worths:
            resource = here.rules(tree.root, worth.leaf, tree.term)
            resource.lvb, resource.lvb_sequence = worth.lvb, worth.lvb_sequence
            resource.lvb_valid = worth.lvb_valid
            tree.resources[worth.leaf] = resource
        copies: dict[bytes, list[Copy]] = {}
        for carried in message.copies:
            copy = _copy(carried, tree.resources[carried.leaf], here.now_s)
            copies.setdefault(carried.leaf, []).append(copy)
            arrival.starts[copy] = carried.incarnation
        for leaf, some in copies.items():
            tree.resources[leaf].restore(some)

    def _begin(self, arrival: Arrival, owners: tuple[Start, ...]) -> None:
        """Be the master: tell the directory node, the owners and the former master; then grant."""
        here, mastery, tree = self._here, self._mastery, arrival.tree
        self.taken += 1
        for copy, incarnation in arrival.starts.items():
            if not here.alive(copy.node, incarnation):
                mastery.orphan(copy, incarnation)
        mastery.install(tree)
        directory = here.directory_of(tree.root)
        tree.directory, tree.told = self._start(directory), here.epoch
        seat = Seat(tree.root, tree.term, here.me, here.incarnation)
        here.send(directory, Seats(here.epoch, (seat,), last=False))
        starts = {(start.node, start.incarnation): True for start in owners}
        self._tell_owners(starts, tree.term, Reign(tree.root, tree.term))
        here.send(arrival.source[0], Settled(tree.term, tree.root))
        self._recovery.add_chore(mastery.thaw(tree, recover=False))
        self._recovery.add_chore(mastery.bury())
        self.on_taken(tree)

    def abandon(self, _sender: int, message: Abandon) -> None:
        """Forget the pages of a tree that stays where it was."""
        arrival = self.arriving.get(message.root)
        if arrival is not None and arrival.tree.term == message.term:
            del self.arriving[message.root]

    # -- both ------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Call off what can be; tell the directory nodes of the rest, before the round ends."""
        here = self._here
        for root, arrival in tuple(self.arriving.items()):
            if not here.alive(*arrival.source):
                del self.arriving[root]
        for departure in tuple(self._mastery.departures.values()):
            if not departure.away:
                departure.stays = True
                owners = departure.owners.items()
                departure.owners = {start: now for start, now in owners if here.alive(*start)}
                self._look_at(departure)
            elif departure.settled or not here.alive(*departure.target):
                self._move(departure)
            else:  # the new master may not have it yet: until it has, what comes shall come to us
                tree = departure.tree
                seat = Seat(tree.root, tree.term, here.me, here.incarnation)
                here.send(here.directory_of(tree.root), Seats(here.epoch, (seat,), last=False))

    def lose(self) -> None:
        """Forget all."""
        self.arriving.clear()

    def validate(self) -> None:
        """Assert the invariants."""
        trees = self._mastery.trees
        for root, departure in self._mastery.departures.items():
            assert departure.away == (trees.get(root) is not departure.tree), root
            assert not departure.away or root not in trees, root
            assert departure.away or not departure.settled

    def _tell_owners(self, owners: dict[Node, bool], tag: int, reign: Reign) -> None:
        here = self._here
        for node, incarnation in owners:
            if here.alive(node, incarnation):
                here.send(node, Reigns(here.epoch, tag, (reign,)))

    def _start(self, node: int) -> Node:
        return node, self._here.members[node]


def _ignore(_tree: Tree) -> None:
    pass


def _carried(copy: Copy, here: Situation) -> Carried:
    waited_s = here.now_s - copy.since_s if copy.requested is not None else 0.0
    return Carried(
        copy.resource.leaf,
        copy.node,
        here.members[copy.node],
        copy.lock,
        copy.granted,
        copy.requested,
        copy.flags,
        copy.owner,
        copy.sequence,
        copy.highbast,
        copy.demoted,
        copy.uses_lvb,
        copy.lvb,
        max(0, int(waited_s * 1000)),
    )


def _copy(carried: Carried, resource: Resource, now_s: float) -> Copy:
    copy = Copy(carried.node, carried.lock, resource, carried.owner)
    copy.granted, copy.requested, copy.flags = carried.granted, carried.requested, carried.flags
    copy.sequence, copy.highbast, copy.demoted = carried.sequence, carried.told, carried.demoted
    copy.uses_lvb, copy.lvb = carried.uses_lvb, carried.lvb
    copy.since_s = now_s - carried.waited_ms / 1000
    return copy
