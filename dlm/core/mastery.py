"""Who masters which tree, and the master's side of every lock under the trees mastered here. PURE.

A name is root/leaf; a tree is a root with all its leaves. Only roots have directory entries, on the
node that a rendezvous hash of the root over the members picks. The first user of a root becomes its
master; the directory node forwards everybody else's first request to the master. Who makes a root
up masters it without asking, see claims.py.

A tree without locks stays for a while, so that its master may lock it again for nothing. Then it is
removed: its master asks the directory node and goes on only after the
acknowledgement. Both count the requests forwarded under the entry; the directory node forgets the
entry only if the master has seen all of them. Else it says nothing, for the forward that the master
is about to see calls the removal off. Meanwhile the master's own requests go by the directory, too.

Between `Enter` and the thaw, trees and copies are those of the last epoch in which locks moved.
"""

from dlm.core.claims import Claims
from dlm.core.master_copy import LVB_FLAGS, Copy
from dlm.core.resource import Resource
from dlm.core.situation import Situation
from dlm.events import Name
from dlm.messages import (
    Cancel,
    Claim,
    Claimed,
    Convert,
    Demote,
    Mastered,
    Remove,
    Removed,
    Request,
    Route,
    Unlock,
)
from dlm.modes import Mode, is_down

KEEP_S = 1.0  # how long a tree without locks stays


class Tree:
    """A root mastered here."""

    __slots__ = ("forwards", "removing", "resources", "root")

    def __init__(self, root: bytes) -> None:
        self.root = root
        self.resources: dict[bytes, Resource] = {}  # by leaf; only those with locks
        self.forwards = 0  # requests that the directory node forwarded to us
        self.removing = False


class Entry:
    """A root's record on its directory node."""

    __slots__ = ("forwards", "master")

    def __init__(self, master: int) -> None:
        self.master = master
        self.forwards = 0  # requests that we forwarded to the master


class Mastery:
    """The trees mastered here and this node's share of the directory."""

    def __init__(self, here: Situation) -> None:
        self._here = here
        self.claims = Claims(here)
        self.keep_s = KEEP_S
        self.idle: dict[bytes, float] = {}  # trees without locks, and when to give them up
        self.trees: dict[bytes, Tree] = {}
        self.directory: dict[bytes, Entry] = {}
        self.copies: dict[tuple[int, int], Copy] = {}  # by (node, lock)

    def masters(self, root: bytes) -> bool:
        """Tell whether a local request for `root` may be served here without asking anybody."""
        tree = self.trees.get(root)
        return tree is not None and not tree.removing

    def request(self, _sender: int, request: Request) -> None:
        """Serve a request, as directory node or as master."""
        if request.route is Route.ASK:
            self._find_master(request)
            return
        tree = self.trees.get(request.root)
        if request.route is Route.FORWARDED:
            if tree is None:
                tree = self.trees[request.root] = Tree(request.root)
            tree.forwards += 1
            tree.removing = False
        if tree is None or tree.removing:
            # The only lock by which the requester knew us has just been cancelled.
            self._ask_directory(request)
            return
        self.serve(tree, request)

    def serve(self, tree: Tree, request: Request) -> None:
        """Put the request before its resource."""
        here, key = self._here, (request.origin, request.lock)
        if key in self.copies:
            here.misdirected += 1
            return
        resource = tree.resources.get(request.leaf)
        if resource is None:
            self.idle.pop(request.root, None)
            name = Name(request.root, request.leaf)
            resource = tree.resources[request.leaf] = here.rules(name, here.epoch)
        copy = Copy(request.origin, request.lock, resource, request.owner)
        copy.requested, copy.flags, copy.since_s = request.mode, request.flags, here.now_s
        copy.uses_lvb = bool(request.flags & LVB_FLAGS)
        resource.request(copy, here.send)
        if copy.granted is not None or copy.sequence:
            self.copies[key] = copy
        elif resource.empty:
            self._forget(resource)

    def convert(self, sender: int, message: Convert) -> None:
        """Change a lock's mode, with an answer."""
        copy = self._copy(sender, message.lock)
        if copy is not None:
            copy.since_s = self._here.now_s
            copy.resource.convert(copy, message.mode, message.flags, message.lvb, self._here.send)

    def demote(self, sender: int, message: Demote) -> None:
        """Note that a lock has become weaker."""
        copy = self._copy(sender, message.lock)
        if copy is not None:
            copy.resource.demote(copy, message.mode, message.flags, message.lvb, self._here.send)

    def unlock(self, sender: int, message: Unlock) -> None:
        """Note that a lock is gone."""
        copy = self._copy(sender, message.lock)
        if copy is not None:
            copy.resource.unlock(copy, message.flags, message.lvb, self._here.send)
            self._drop(sender, copy)

    def cancel(self, sender: int, message: Cancel) -> None:
        """Take back a waiting request or conversion; one that has been answered stays as it is."""
        copy = self.copies.get((sender, message.lock))
        if copy is not None and copy.resource.cancel(copy, self._here.send):
            self._drop(sender, copy)

    def note_late(self, sender: int, message: Demote | Unlock) -> None:
        """Keep the LVB that a survivor wrote before it learned of the new epoch.

        Its records, which follow on the same link, are the truth about modes; but an LVB written
        with an unlock would otherwise be lost.
        """
        copy = self.copies.get((sender, message.lock))
        if copy is None or copy.granted is None or copy.requested is not None:
            return
        if isinstance(message, Unlock):
            copy.resource.drop(copy, message.flags, message.lvb)
            del self.copies[sender, message.lock]
        elif is_down(copy.granted, message.mode):
            copy.resource.weaken(copy, message.mode, message.flags, message.lvb)

    def remove(self, sender: int, message: Remove) -> None:
        """As directory node: forget an entry unless a forward is still on its way to the master."""
        entry = self.directory.get(message.root)
        if entry is None or entry.master != sender:
            self._here.misdirected += 1
        elif entry.forwards == message.forwards:
            del self.directory[message.root]
            self._here.send(sender, Removed(self._here.epoch, message.root))

    def removed(self, _sender: int, message: Removed) -> None:
        """As master: forget the tree that the directory node has forgotten."""
        tree = self.trees.pop(message.root)
        assert tree.removing
        assert not tree.resources

    def unused(self, root: bytes) -> None:
        """Remove a tree that recovery gave us although its last lock had just gone."""
        if root not in self.trees:
            self.trees[root] = Tree(root)
            self._begin_idling(root)

    def adopt(self, root: bytes) -> Tree:
        """Return the tree of which the directory node has just made us the master."""
        assert root not in self.trees, root
        tree = self.trees[root] = Tree(root)
        return tree

    def make(self, root: bytes) -> Tree:
        """Return the tree of a root that is new: mastered here without asking anybody."""
        directory = self._here.directory_of(root)
        if directory == self._here.me:
            self.directory[root] = Entry(directory)
        else:
            self.claims.add(root, directory)
        return self.adopt(root)

    def claim(self, sender: int, message: Claim) -> None:
        """As directory node: learn who masters roots that are new."""
        here = self._here
        for root in message.roots:
            if root in self.directory:
                here.misdirected += 1  # not new at all
            else:
                self.directory[root] = Entry(sender)
        here.send(sender, Claimed(here.epoch, len(message.roots)))

    def tick(self) -> None:
        """Give up the trees that nobody has locked for long enough."""
        for root, due_s in tuple(self.idle.items()):
            if due_s > self._here.now_s:
                self._here.wake(due_s)
                return
            del self.idle[root]
            self._begin_removal(self.trees[root])

    def validate(self) -> None:
        """Assert the invariants of everything mastered here."""
        seen = 0
        self.claims.validate()
        for root, tree in self.trees.items():
            assert tree.removing + (root in self.idle) == (not tree.resources), root
            for leaf, resource in tree.resources.items():
                assert resource.name == (root, leaf)
                assert not resource.empty
                resource.validate()
                for copy in resource.copies():
                    seen += 1
                    assert self.copies[copy.node, copy.lock] is copy
        assert seen == len(self.copies)

    def _find_master(self, request: Request) -> None:
        """As directory node: let the requester master a new root, forward for a known one."""
        here, root = self._here, request.root
        entry = self.directory.get(root)
        if entry is None:
            self.directory[root] = Entry(request.origin)
            here.send(request.origin, Mastered(here.epoch, request.lock))
            return
        entry.forwards += 1
        here.send(entry.master, _routed(request, Route.FORWARDED))

    def _ask_directory(self, request: Request) -> None:
        here = self._here
        here.send(here.directory_of(request.root), _routed(request, Route.ASK))

    def _copy(self, sender: int, lock: int) -> Copy | None:
        copy = self.copies.get((sender, lock))
        if copy is None or copy.granted is None or copy.requested is not None:
            self._here.misdirected += 1
            return None
        return copy

    def _drop(self, sender: int, copy: Copy) -> None:
        del self.copies[sender, copy.lock]
        if copy.resource.empty:
            self._forget(copy.resource)

    def _forget(self, resource: Resource) -> None:
        tree = self.trees[resource.name.root]
        del tree.resources[resource.name.leaf]
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
        here.send(here.directory_of(tree.root), Remove(here.epoch, tree.root, tree.forwards))


def loses_lvb(copy: Copy) -> bool:
    """Tell whether the LVB is doubtful if this holder vanished without a word."""
    return copy.granted is not None and copy.granted >= Mode.PW and copy.uses_lvb


def _routed(request: Request, route: Route) -> Request:
    return Request(
        request.epoch,
        request.origin,
        request.lock,
        request.root,
        request.leaf,
        request.mode,
        request.flags,
        request.owner,
        route,
    )
