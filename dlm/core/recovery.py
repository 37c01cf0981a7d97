"""A member left or joined: freeze, find the masters, tell them the locks, thaw. PURE.

Each change of the members is a new lock epoch; every lock message belongs to one, and nothing of an
older epoch counts. So what was in flight is void, and each lock's owner, whose word is the truth,
tells it anew. Three rounds, each from all to all, each ended by a page marked `last`:

  Names    owner to directory node: the roots I have locks under, and who mastered them;
  Masters  directory node to owner: who masters them now. The newest belief counts, for a survivor
           may have missed the thaw of an epoch that another one saw. If that master is gone, the
           directory node itself takes over, which spreads the roots of a dead master evenly;
  Locks    owner to master: every lock, with its place in the queue.

Whoever has all last pages of Locks has all it needs and thaws at once; messages of the new epoch
that reach a node still frozen wait there. Another change restarts everything; trees, copies and the
owners' beliefs stay those of the last thaw until the next one.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from dlm.core.master_copy import Copy
from dlm.core.mastery import Entry, Mastery, Tree
from dlm.core.ownership import Ownership
from dlm.core.rebuild import rebuild
from dlm.core.resource import Resource
from dlm.core.situation import Situation
from dlm.events import Name
from dlm.messages import Belief, Locks, Masters, Names, Record

PAGE = 500  # entries in one message

_Entry = TypeVar("_Entry")


class Recovery:
    """The way from one epoch to the next."""

    def __init__(self, here: Situation, mastery: Mastery, ownership: Ownership) -> None:
        self._here = here
        self._mastery = mastery
        self._ownership = ownership
        self._asked: dict[int, list[bytes]] = {}  # by directory node
        self._named: dict[int, list[Belief]] = {}  # by owner
        self._answers: dict[int, list[int]] = {}  # by directory node
        self._reports: dict[int, list[Locks]] = {}  # by owner
        self._missing_names: set[int] = set()
        self._missing_masters: set[int] = set()
        self._missing_locks: set[int] = set()
        self._directory: dict[bytes, Entry] = {}  # as decided for the epoch to come

    def enter(self, epoch: int, members: dict[int, int]) -> None:
        """Freeze, and begin the first round."""
        here = self._here
        here.epoch, here.members = epoch, dict(sorted(members.items()))
        here.frozen = True
        self._mastery.claims.enter()
        self._named = {node: [] for node in here.members}
        self._answers = {node: [] for node in here.members}
        self._reports = {node: [] for node in here.members}
        self._missing_names = set(here.members)
        self._missing_masters = set(here.members)
        self._missing_locks = set(here.members)
        self._asked = {node: [] for node in here.members}
        for root in self._ownership.roots:
            self._asked[here.directory_of(root)].append(root)
        for node, roots in self._asked.items():
            beliefs = [self._belief(root) for root in roots]
            for page, last in _pages(beliefs):
                here.send(node, Names(epoch, page, last))

    def names(self, sender: int, message: Names) -> None:
        """As directory node: collect beliefs; answer when all owners have spoken."""
        self._named[sender].extend(message.names)
        if message.last:
            self._missing_names.remove(sender)
            if not self._missing_names:
                self._decide()

    def masters(self, sender: int, message: Masters) -> None:
        """As owner: collect the masters; report our locks when all are known."""
        self._answers[sender].extend(message.masters)
        if message.last:
            self._missing_masters.remove(sender)
            if not self._missing_masters:
                self._report()

    def locks(self, sender: int, message: Locks) -> None:
        """As master: collect the locks; thaw when all owners have reported."""
        self._reports[sender].append(message)
        if message.last:
            self._missing_locks.remove(sender)
            if not self._missing_locks:
                self._thaw()

    def awaited(self) -> dict[str, list[int]]:
        """Return whose pages are still missing, by round; for dumps."""
        return {
            "names": sorted(self._missing_names),
            "masters": sorted(self._missing_masters),
            "locks": sorted(self._missing_locks),
        }

    def _belief(self, root: bytes) -> Belief:
        known = self._ownership.roots[root]
        return Belief(root, known.master, known.incarnation, known.as_of)

    def _decide(self) -> None:
        here = self._here
        newest: dict[bytes, Belief] = {}
        for beliefs in self._named.values():
            for belief in beliefs:
                known = newest.get(belief.root)
                if known is None or belief.as_of > known.as_of:
                    newest[belief.root] = belief
        self._directory = {
            root: Entry(b.master if here.alive(b.master, b.incarnation) else here.me)
            for root, b in newest.items()
        }
        for node, beliefs in self._named.items():
            answers = [self._directory[belief.root].master for belief in beliefs]
            for page, last in _pages(answers):
                here.send(node, Masters(here.epoch, page, last))

    def _report(self) -> None:
        here, owned = self._here, self._ownership
        records: dict[int, list[Record]] = {node: [] for node in here.members}
        unused: dict[int, list[bytes]] = {node: [] for node in here.members}
        for node, roots in self._asked.items():
            for root, master in zip(roots, self._answers[node], strict=True):
                if root in owned.roots:
                    owned.roots[root].next_master = master
                    owned.roots[root].next_incarnation = here.members[master]
                    records[master].extend(owned.records(root))
                else:
                    unused[master].append(root)
        for node in here.members:
            if unused[node]:
                here.send(node, Locks(here.epoch, (), tuple(unused[node]), last=False))
            for page, last in _pages(records[node]):
                here.send(node, Locks(here.epoch, page, (), last))
        here.told_epoch = here.epoch

    def _thaw(self) -> None:
        here, mastery = self._here, self._mastery
        assert here.told_epoch == here.epoch
        resources = self._rebuilt()
        trees: dict[bytes, Tree] = {}
        copies: dict[tuple[int, int], Copy] = {}
        for resource in resources:
            root, leaf = resource.name
            trees.setdefault(root, Tree(root)).resources[leaf] = resource
            copies.update({(copy.node, copy.lock): copy for copy in resource.copies()})
        mastery.trees, mastery.copies, mastery.directory = trees, copies, self._directory
        here.frozen = False
        mastery.claims.thaw()
        mastery.idle.clear()
        self._directory = {}
        unused = [root for pages in self._reports.values() for p in pages for root in p.unused]
        self._reports = {}
        for resource in resources:
            resource.settle(here.send, recover=True)
        for root in unused:
            mastery.unused(root)
        self._ownership.resume()

    def _rebuilt(self) -> list[Resource]:
        """Return the resources that we master from now on, made of what the owners reported."""
        here, old_trees = self._here, self._mastery.trees
        reported: dict[Name, list[tuple[int, Record]]] = {}
        for node, pages in self._reports.items():
            for page in pages:
                for record in page.records:
                    name = Name(record.root, record.leaf)
                    reported.setdefault(name, []).append((node, record))
        resources = []
        for name, records in reported.items():
            old_tree = old_trees.get(name.root)
            old = None if old_tree is None else old_tree.resources.get(name.leaf)
            resources.append(rebuild(name, here.epoch, records, old, here.now_s, here.rules))
        return resources


def _pages(entries: Sequence[_Entry]) -> Iterator[tuple[tuple[_Entry, ...], bool]]:
    """Yield the entries in pages, at least one, and whether it is the last."""
    first = 0
    while first + PAGE < len(entries):
        yield tuple(entries[first : first + PAGE]), False
        first += PAGE
    yield tuple(entries[first:]), True
