"""The master's side of every lock under the trees mastered here. PURE.

A name is root/leaf; a tree is a root with all its leaves. Its term is the reign of this master over
it: what an owner says under another term is void. The first user of a root becomes its master; the
directory node forwards everybody else's first request to the master. Who makes a root up masters it
without asking, see claims.py.

A tree without locks stays for a while, so that its master may lock it again for nothing. Then it is
removed: its master asks the directory node and goes on only after the acknowledgement. Meanwhile
the master's own requests go by the directory, too.

Trees outlive changes of the members. What a dead member held is buried: dropped, in slices, with
doubt on the value blocks it may have changed; where it could write, only after the root's gate has
opened. A member that is leaving may still use what it holds; only what it waits for is dropped.
"""

from collections import deque
from collections.abc import Iterator

from dlm.core.claims import Claims
from dlm.core.departure import Departure
from dlm.core.directory import Directory, routed
from dlm.core.master_copy import LVB_FLAGS, Copy
from dlm.core.resource import Resource
from dlm.core.situation import Situation
from dlm.core.traffic import Traffic
from dlm.core.tree import Tree
from dlm.messages import (
    ASK,
    FORWARDED,
    MAKER,
    UNMADE,
    Cancel,
    Convert,
    Demote,
    Remove,
    Removed,
    Request,
    Unlock,
    Verify,
)
from dlm.modes import CW, EX, PW, Mode

KEEP_S = 1.0  # how long a tree without locks stays
WRITERS = (CW, PW, EX)
_PATIENCE_S = 0.01  # and how much longer while the directory has not acknowledged it


class Mastery:
    """The trees mastered here."""

    def __init__(self, here: Situation, directory: Directory) -> None:
        self._here = here
        self._directory = directory
        self.claims = Claims(here)
        self.keep_s = KEEP_S
        self.leaving = False
        self.traffic = Traffic()
        self.idle: dict[bytes, float] = {}  # trees without locks, and when to give them up
        self.trees: dict[bytes, Tree] = {}
        self.copies: dict[tuple[int, int], Copy] = {}  # by (node, lock)
        self.departures: dict[bytes, Departure] = {}  # trees that are frozen, or already away
        self._seen: dict[tuple[int, int], int] = {}  # forwarded requests, by start of a node
        self._last: dict[tuple[int, int], list[Copy]] = {}  # held by those that are leaving
        self._dead: deque[Copy] = deque()  # to be dropped
        self._behind: list[Copy] = []  # to be dropped when a gate has opened
        self._freed: deque[Resource] = deque()  # to be looked at, as a waiter has gone

    def mastered(self, root: bytes) -> Tree | None:
        """Return the tree, if a local request may be served here without asking anybody."""
        tree = self.trees.get(root)
        if tree is None or tree.removing or root in self.departures:
            return None
        return tree

    def request(self, sender: int, request: Request) -> None:
        """Serve a request, as directory node or as master."""
        here = self._here
        route = request.route
        if route is ASK or route is UNMADE:
            self._directory.ask(request)
            return
        if route is FORWARDED:
            start = (sender, here.members[sender])
            self._seen[start] = self._seen.get(start, 0) + 1
        if self.departures and (departure := self.departures.get(request.root)) is not None:
            departure.take(here, request)
            return
        tree = self.trees.get(request.root)
        if route is MAKER and (tree is None or tree.removing):
            node = here.directory_of(request.root)
            here.send(node, routed(request, UNMADE, here.epoch, 0))
            return
        if route is FORWARDED:
            tree = self._forwarded(sender, request, tree)
        if not here.alive(request.origin, request.incarnation):
            if tree is not None and tree.removing:
                self._begin_removal(tree)  # it had been called off
            return
        if tree is None or tree.removing:
            # The only lock by which the requester knew us has just been cancelled.
            here.send(here.directory_of(request.root), routed(request, ASK, here.epoch, 0))
            return
        self.serve(
            tree,
            request.origin,
            request.lock,
            request.leaf,
            request.mode,
            request.flags,
            request.owner,
        )

    def _forwarded(self, sender: int, request: Request, tree: Tree | None) -> Tree | None:
        """Return the tree, which the directory node's word may bring to life."""
        here, root = self._here, request.root
        start = (sender, here.members[sender])
        binding = request.epoch == here.epoch and sender == here.directory_of(root)
        if tree is None:
            if not binding:
                return None
            tree = self.trees[root] = Tree(root, request.term)
            tree.directory, tree.told, tree.removing = start, here.epoch, True
        told = request.term == tree.term and start == tree.directory
        told = told and request.epoch >= tree.told  # else it has been told anew, and counts anew
        if tree.removing and told and here.alive(request.origin, request.incarnation):
            tree.removing = False
        return tree

    def serve(  # noqa: PLR0913, PLR0917  what a request says
        self, tree: Tree, node: int, lock: int, leaf: bytes, mode: Mode, flags: int, owner: str
    ) -> None:
        """Put the request for a new lock of a node before its resource."""
        here, key = self._here, (node, lock)
        if key in self.copies:
            return  # it was asked for anew after a loss; the answer is on its way
        resource = tree.resources.get(leaf)
        if resource is None:
            self.idle.pop(tree.root, None)
            resource = tree.resources[leaf] = here.rules(tree.root, leaf, tree.term)
        copy = Copy(node, lock, resource, owner)
        copy.requested, copy.flags, copy.since_s = mode, flags, here.now_s
        if flags & LVB_FLAGS:
            copy.uses_lvb = True
        if self.traffic.counting:
            self.traffic.note(tree.root, node, here)
        resource.request(copy, here.send)
        if copy.granted is not None or copy.sequence:
            self.copies[key] = copy
        elif resource.empty:
            self._forget(resource)

    def convert(self, sender: int, message: Convert) -> None:
        """Change a lock's mode, with an answer."""
        copy = self._copy(sender, message.lock, message.term)
        if copy is not None and not self._is_frozen(copy):  # else it is asked for again
            copy.since_s = self._here.now_s
            if self.traffic.counting:
                self.traffic.note(copy.resource.root, sender, self._here)
            copy.resource.convert(copy, message.mode, message.flags, message.lvb, self._here.send)

    def demote(self, sender: int, message: Demote) -> None:
        """Note that a lock has become weaker."""
        copy = self._copy(sender, message.lock, message.term)
        if copy is None:
            return
        if self._is_frozen(copy):
            copy.resource.weaken(copy, message.mode, message.flags, message.lvb)
        else:
            copy.resource.demote(copy, message.mode, message.flags, message.lvb, self._here.send)

    def unlock(self, sender: int, message: Unlock) -> None:
        """Note that a lock is gone."""
        copy = self._copy(sender, message.lock, message.term)
        if copy is None:
            return
        if self._is_frozen(copy):
            copy.resource.drop(copy, message.flags, message.lvb)
        else:
            copy.resource.unlock(copy, message.flags, message.lvb, self._here.send)
        self._drop(sender, copy)

    def cancel(self, sender: int, message: Cancel) -> None:
        """Take back a waiting request or conversion; one that has been answered stays as it is."""
        copy = self.copies.get((sender, message.lock))
        if copy is None or copy.resource.term != message.term or self._is_frozen(copy):
            return
        if copy.resource.cancel(copy, self._here.send):
            self._drop(sender, copy)

    def removed(self, _sender: int, message: Removed) -> None:
        """As master: forget the tree that the directory node has forgotten."""
        tree = self.trees.get(message.root)
        if (
            tree is not None
            and tree.removing
            and tree.term == message.term
            and message.epoch >= tree.told
        ):
            del self.trees[message.root]

    def adopt(self, root: bytes, term: int) -> Tree:
        """Return the tree of which the directory node has just made us the master."""
        here = self._here
        assert root not in self.trees, root
        self.return_to(root)
        tree = self.trees[root] = Tree(root, term)
        node = here.directory_of(root)
        tree.directory, tree.told = (node, here.members[node]), here.epoch
        return tree

    def return_to(self, root: bytes) -> None:
        """Forget that the tree went away: we are its master again."""
        departure = self.departures.pop(root, None)
        for request in departure.held if departure is not None else ():
            self._here.send(self._here.me, request)

    def make(self, root: bytes) -> Tree:
        """Return the tree of a root that is new: mastered here without asking anybody."""
        here = self._here
        node = here.directory_of(root)
        if node == here.me:
            term = self._directory.seat_here(root, 0)
        else:
            term = here.new_term()
            self.claims.add(root, term, node)
        return self.adopt(root, term)

    def keep_or_remove(self, tree: Tree) -> None:
        """Begin to remove a tree under which nobody has got a lock."""
        if not tree.resources and not tree.removing:
            self._begin_idling(tree.root)

    def tick(self) -> None:
        """Give up the trees that nobody has locked for long enough."""
        for root, due_s in tuple(self.idle.items()):
            if due_s > self._here.now_s:
                self._here.wake(due_s)
                return
            if patience_s := self._patience_s(root):
                self.idle[root] = self.idle.pop(root) + patience_s
                self._here.wake(due_s + patience_s)
                continue
            del self.idle[root]
            self._begin_removal(self.trees[root])

    def leave(self) -> None:
        """Keep no trees without locks any more."""
        self.leaving, self.keep_s = True, 0.0
        self.idle = dict.fromkeys(self.idle, self._here.now_s)
        self._here.wake(self._here.now_s)

    def verify(self, sender: int, message: Verify) -> None:
        """Ask the directory node to remove what we do not master."""
        for root, term in ((reign.root, reign.term) for reign in message.reigns):
            if root not in self.trees and root not in self.departures:
                self.disown(sender, root, term)

    def disown(self, node: int, root: bytes, term: int) -> None:
        """Tell the directory node that we do not master the root, unless it comes by forward."""
        here = self._here
        seen = self._seen.get((node, here.members[node]), 0)
        here.send(node, Remove(here.epoch, root, term, seen))

    # -- changes of members ----------------------------------------------------------------------

    def enter(self, *, skipped: bool) -> None:
        """Take away from members that are gone or leaving what they wait for."""
        here = self._here
        self._seen = {start: count for start, count in self._seen.items() if here.alive(*start)}
        for root in self.claims.enter(skipped=skipped):  # in our own share now
            self._directory.claimed_here(root, self.trees[root].term)
        for tree in map(self.trees.__getitem__, self.claims.pending_roots()):
            node = here.directory_of(tree.root)
            tree.directory, tree.told = (node, here.members[node]), here.epoch
        for start in tuple(self._last):
            if here.gone(*start):
                self._dead.extend(self._last.pop(start))

    def left(self, starts: dict[int, int]) -> None:
        """These starts of nodes are no members any more, or are leaving."""
        for key, copy in tuple(self.copies.items()):
            if copy.node not in starts:
                continue
            del self.copies[key]
            self.orphan(copy, starts[copy.node])

    def orphan(self, copy: Copy, incarnation: int) -> None:
        """The owner of this copy is no member any more, or is leaving."""
        start = (copy.node, incarnation)
        copy.node = -copy.node  # nobody is told anything, and no later start is taken for it
        if copy.requested is not None:
            copy.resource.stop_waiting(copy)
            self._freed.append(copy.resource)
        if copy.granted is None:
            return
        if self._here.gone(*start):
            self._dead.append(copy)
        else:
            self._last.setdefault(start, []).append(copy)

    def bury(self) -> Iterator[None]:
        """Drop what the dead held, step by step, and let those go on who waited for it."""
        while self._freed:
            self._look_at(self._freed.popleft())
            yield
        while self._dead:
            copy = self._dead.popleft()
            if copy.granted in WRITERS and not self._here.opened(copy.resource.root):
                self._behind.append(copy)
                continue
            copy.resource.bury(copy)
            self._look_at(copy.resource)
            yield

    def dig_up(self) -> bool:
        """Let `bury` look again at what is behind a gate; False: nothing is."""
        self._dead.extend(self._behind)
        self._behind.clear()
        return bool(self._dead)

    def install(self, tree: Tree) -> None:
        """Take in a tree that has been rebuilt or has moved here; `thaw` lets it go."""
        assert tree.root not in self.trees or not self.trees[tree.root].resources
        self.return_to(tree.root)
        self.trees[tree.root] = tree
        self.idle.pop(tree.root, None)
        tree.thawing = True
        for resource in tree.resources.values():
            for copy in resource.copies():
                if copy.node > 0:
                    self.copies[copy.node, copy.lock] = copy

    def part_with(self, tree: Tree) -> None:
        """Forget a tree that another node masters from now on."""
        del self.trees[tree.root]
        self.idle.pop(tree.root, None)
        for resource in tree.resources.values():
            for copy in resource.copies():
                del self.copies[copy.node, copy.lock]

    def thaw(self, tree: Tree, *, recover: bool) -> Iterator[None]:
        """Grant what can be, step by step; `recover` as for Resource.settle."""
        for leaf, resource in tuple(tree.resources.items()):
            if tree.resources.get(leaf) is resource:
                resource.settle(self._here.send, recover=recover)
            yield
        tree.thawing = False

    def tell(self, tree: Tree) -> bool:
        """Prepare to tell the present directory node of the tree; False: it shall not know.

        An empty tree may have been forgotten by its former directory node already, and somebody
        else may have become its master: it is just forgotten.
        """
        here = self._here
        node = here.directory_of(tree.root)
        start = (node, here.members[node])
        if self.claims.is_pending(tree.root):
            return False  # it is claimed there
        if tree.removing and tree.directory != start:
            del self.trees[tree.root]
            return False
        if tree.removing:
            tree.told = here.epoch
            self.disown(node, tree.root, tree.term)
            return False
        tree.directory, tree.told = start, here.epoch
        return True

    def clear(self) -> None:
        """Forget all."""
        self.trees.clear()
        self.idle.clear()
        self.copies.clear()
        self.departures.clear()
        self._last.clear()
        self._dead.clear()
        self._behind.clear()
        self._freed.clear()

    @property
    def burying(self) -> bool:
        """Some copies of members that are gone have not been dropped yet."""
        return bool(self._dead or self._freed or self._behind)

    def validate(self) -> None:
        """Assert the invariants of everything mastered here."""
        seen = 0
        self.claims.validate()
        for root, tree in self.trees.items():
            assert tree.removing + (root in self.idle) == (not tree.resources), root
            for leaf, resource in tree.resources.items():
                assert (resource.root, resource.leaf) == (root, leaf)
                assert resource.term == tree.term
                assert not resource.empty or self.burying
                settled = not (tree.thawing or self.burying or root in self.departures)
                resource.validate(settled=settled)
                for copy in resource.copies():
                    if copy.node > 0:
                        seen += 1
                        assert self.copies[copy.node, copy.lock] is copy
        assert seen == len(self.copies)

    def _copy(self, sender: int, lock: int, term: int) -> Copy | None:
        copy = self.copies.get((sender, lock))
        if copy is None or copy.resource.term != term:
            return None  # of an earlier reign: the owner tells the new master
        if copy.granted is None or copy.requested is not None:
            self._here.misdirected += 1
            return None
        return copy

    def _is_frozen(self, copy: Copy) -> bool:
        """Tell whether its tree grants nothing, as it is about to move."""
        return bool(self.departures) and copy.resource.root in self.departures

    def _drop(self, sender: int, copy: Copy) -> None:
        del self.copies[sender, copy.lock]
        if copy.resource.empty:
            self._forget(copy.resource)

    def _patience_s(self, root: bytes) -> float:
        """Return for how long a tree without locks must stay all the same."""
        if self.claims.is_pending(root) or root in self.departures:
            return _PATIENCE_S
        return KEEP_S if self.trees[root].pinned and not self.leaving else 0.0

    def _look_at(self, resource: Resource) -> None:
        """Settle the resource, if it is still there; forget it if it has become empty."""
        tree = self.trees.get(resource.root)
        if tree is None or tree.resources.get(resource.leaf) is not resource:
            return
        if resource.empty:
            self._forget(resource)
        elif resource.root not in self.departures:
            resource.settle(self._here.send)

    def _forget(self, resource: Resource) -> None:
        tree = self.trees[resource.root]
        del tree.resources[resource.leaf]
        if tree.resources:
            return
        if self.claims.take_back(tree.root):
            del self.trees[tree.root]
        else:
            self._begin_idling(tree.root)

    def _begin_idling(self, root: bytes) -> None:
        due_s = self.idle[root] = self._here.now_s + self.keep_s
        self._here.wake(due_s)

    def _begin_removal(self, tree: Tree) -> None:
        here = self._here
        tree.removing = True
        node = here.directory_of(tree.root)
        if tree.directory == (node, here.members[node]):
            self.disown(node, tree.root, tree.term)
        # else the directory has moved, and `tell` is about to be called
