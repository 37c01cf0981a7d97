"""The members changed: tell the directory, rebuild the trees of lost masters, bury the dead. PURE.

A tree whose master lives goes on as if nothing had happened. On entering an epoch each node tells
each other one, in pages,
  * Seats: the trees that it masters whose directory node has changed;
  * Locks: what it holds under roots whose master is gone, for the root's directory node.
With the `last` pages of all members a directory node knows its whole share, and masters the roots
without a master itself, which spreads them evenly: it rebuilds each tree from what its owners told,
says so to them (Reigns), and grants. That is one round, and no tree waits for another's.

While somebody is leaving, what it holds is unknown: then no tree is rebuilt, and the names in the
parts of the directory that have moved wait. All else goes on.

The work of a large recovery is cut into slices, one a Tick; a change of members begins it anew,
except that trees already rebuilt stay.
"""

from collections import deque
from collections.abc import Iterator

from dlm.core.directory import Directory
from dlm.core.mastery import Mastery
from dlm.core.own_lock import Root
from dlm.core.ownership import Ownership
from dlm.core.rebuild import rebuild
from dlm.core.situation import Situation
from dlm.core.succession import Succession
from dlm.core.tree import Tree
from dlm.events import Name
from dlm.messages import Locks, Record, Reign, Reigns, Seat, Seats

PAGE = 200  # entries in one message
SLICE = 400  # steps of work in one transition, a few microseconds each

Job = Iterator[None]


class Orphan:
    """A root whose master is gone, as its owners tell it."""

    __slots__ = ("records", "reporters", "term")

    def __init__(self) -> None:
        self.term = 0
        self.records: dict[bytes, list[tuple[int, Record]]] = {}  # by leaf
        self.reporters: dict[int, None] = {}


class Recovery:
    """The way from one set of members to the next."""

    def __init__(
        self,
        here: Situation,
        directory: Directory,
        mastery: Mastery,
        ownership: Ownership,
        succession: Succession,
    ) -> None:
        self._here = here
        self._directory = directory
        self._mastery = mastery
        self._ownership = ownership
        self._succession = succession
        self._orphans: dict[bytes, Orphan] = {}
        self._missing: set[int] = set()  # whose last page has not come yet
        self._jobs: deque[Job] = deque()  # of this epoch only
        self._chores: deque[Job] = deque()  # to be finished whatever happens

    def enter(self, *, skipped: bool) -> None:
        """Begin to tell what others must know."""
        here = self._here
        self._directory.unsettled.update(self._orphans)
        self._orphans = {}
        self._directory.orphans = self._orphans
        self._missing = set(here.members)
        self._jobs.clear()
        self._jobs.append(self._tell(everything=skipped))
        self._chores.append(self._mastery.bury())
        self.tick()

    def add_job(self, job: Job) -> None:
        """Take on work of this epoch, to be done in slices; the first is done at once."""
        self._jobs.append(job)
        self.tick()

    def add_chore(self, job: Job) -> None:
        """Take on work to be done in slices."""
        self._chores.append(job)
        self._here.wake(self._here.now_s)

    def tick(self) -> None:
        """Do a slice of the work, or two."""
        for jobs in (self._jobs, self._chores):
            left = SLICE
            while jobs and left > 0:
                for _ in jobs[0]:
                    left -= 1
                    if left <= 0:
                        break
                else:
                    jobs.popleft()
        if self._chores or self._jobs:
            self._here.wake(self._here.now_s)

    def opened(self) -> None:
        """Look again at what waits behind a gate."""
        if self._mastery.dig_up():
            self._chores.append(self._mastery.bury())
        if self._directory.complete and self._orphans:
            self._jobs.append(self._adopt())
        self.tick()
        self._directory.retry_all()

    def seats(self, sender: int, message: Seats) -> None:
        """As directory node: learn what the sender masters, and perhaps that this was all."""
        for seat in message.seats:
            self._directory.told(seat)
        if message.last and message.epoch == self._here.epoch:
            self._missing.discard(sender)
            if not self._missing and not self._here.leaving:
                self._complete()

    def locks(self, sender: int, message: Locks) -> None:
        """As directory node: learn what the sender holds under roots without a master."""
        if message.tag != self._here.epoch:
            return  # of an older view: it tells them again
        for reign in message.roots:
            orphan = self._orphans.setdefault(reign.root, Orphan())
            orphan.term = max(orphan.term, reign.term)
            orphan.reporters[sender] = None
        for record in message.records:
            orphan = self._orphans.setdefault(record.root, Orphan())
            orphan.records.setdefault(record.leaf, []).append((sender, record))

    def awaited(self) -> dict[str, list[int]]:
        """Return who has not told us all yet; for dumps."""
        return {"pages": sorted(self._missing), "leaving": sorted(self._here.leaving)}

    @property
    def telling(self) -> bool:
        """Some directory node may not have been told of the trees mastered here."""
        return bool(self._jobs)

    @property
    def busy(self) -> bool:
        """Something of the last change of members is still to be done here."""
        return bool(self._missing or self._jobs or self._chores or self._orphans)

    def lose(self) -> None:
        """Forget all."""
        self._jobs.clear()
        self._chores.clear()
        self._orphans.clear()
        self._missing.clear()

    # -- telling ---------------------------------------------------------------------------------

    def _tell(self, *, everything: bool) -> Job:
        here = self._here
        yield from self._tell_seats(everything=everything)
        if not here.leaving:
            yield from self._tell_locks()
        for node in here.members:
            here.send(node, Seats(here.epoch, (), last=True))

    def _tell_seats(self, *, everything: bool) -> Job:
        here = self._here
        pages: dict[int, list[tuple[Seat, Tree]]] = {node: [] for node in here.members}
        for tree in tuple(self._mastery.trees.values()):
            yield
            node = here.directory_of(tree.root)
            start = (node, here.members[node])
            if self._mastery.trees.get(tree.root) is not tree:
                continue
            if tree.directory != start or everything:
                seat = Seat(tree.root, tree.term, here.me, here.incarnation)
                pages[node].append((seat, tree))
                if len(pages[node]) >= PAGE:
                    self._send_seats(node, pages[node])
        for node, page in pages.items():
            self._send_seats(node, page)

    def _send_seats(self, node: int, page: list[tuple[Seat, Tree]]) -> None:
        here, mastery = self._here, self._mastery
        seats: list[Seat] = []
        for seat, tree in page:
            if mastery.trees.get(seat.root) is tree and mastery.tell(tree):
                seats.append(seat)
        page.clear()
        if seats:
            here.send(node, Seats(here.epoch, tuple(seats), last=False))

    def _tell_locks(self) -> Job:
        here, owned = self._here, self._ownership
        pages = {node: _Page(here, node, here.epoch) for node in here.members}
        for root, known in tuple(owned.roots.items()):
            yield
            if owned.roots.get(root) is not known:
                continue
            if not self._is_lost(known):
                continue
            page = pages[here.directory_of(root)]
            self._succession.mark(root, here.epoch)
            page.add_root(Reign(root, known.term))
            for record in self._succession.records(root):
                page.add(record)
                yield
        for page in pages.values():
            page.flush()

    def _is_lost(self, known: Root) -> bool:
        """Tell whether its master is gone, or who was to be it."""
        here = self._here
        if known.moving is not None and here.gone(*known.moving):
            return True
        return here.gone(known.master, known.incarnation)

    # -- rebuilding ------------------------------------------------------------------------------

    def _complete(self) -> None:
        self._directory.completed()
        self._jobs.append(self._adopt())
        self.tick()
        self._directory.retry_all()

    def _adopt(self) -> Job:
        """Master the roots that nobody masters any more."""
        here = self._here
        confirmed: dict[int, list[Reign]] = {}
        ready: list[Tree] = []
        count = 0
        for root in tuple(self._orphans):
            if self._directory.adopted(root):
                del self._orphans[root]
                self._directory.retry(root)
                yield
                continue
            if not here.opened(root):
                yield
                continue
            orphan = self._orphans[root]  # freed in the step that deletes it
            tree = Tree(root, 0)
            for leaf, records in orphan.records.items():
                tree.resources[leaf] = rebuild(Name(root, leaf), 0, records, here.now_s, here.rules)
                for _ in records:
                    count += 1
                    yield
            self._seat(tree, orphan)
            for node in orphan.reporters:
                confirmed.setdefault(node, []).append(Reign(root, tree.term))
            ready.append(tree)
            count += 1
            if count >= PAGE:
                self._confirm(confirmed, ready)
                count = 0
        self._confirm(confirmed, ready)
        yield from self._directory.sweep()

    def _seat(self, tree: Tree, orphan: Orphan) -> None:
        here = self._here
        if tree.resources:
            tree.reign(self._directory.seat_here(tree.root, orphan.term))
            tree.directory, tree.told = (here.me, here.incarnation), here.epoch
            self._mastery.install(tree)
        else:
            self._directory.entries.pop(tree.root, None)
        del self._orphans[tree.root]

    def _confirm(self, confirmed: dict[int, list[Reign]], ready: list[Tree]) -> None:
        """Say who masters the trees now, then let them go: the grants come after the word."""
        here = self._here
        for node, reigns in confirmed.items():
            here.send(node, Reigns(here.epoch, here.epoch, tuple(reigns)))
        confirmed.clear()
        for tree in ready:
            if tree.resources:
                self.add_chore(self._mastery.thaw(tree, recover=True))
            self._directory.retry(tree.root)
        ready.clear()


class _Page:
    """Locks on their way to one node, sent whenever enough have come together."""

    def __init__(self, here: Situation, node: int, tag: int) -> None:
        self._here = here
        self._node = node
        self._tag = tag
        self._roots: list[Reign] = []
        self._current: Reign | None = None
        self._records: list[Record] = []

    def add_root(self, reign: Reign) -> None:
        """Begin with the locks of another root."""
        if len(self._roots) + len(self._records) >= PAGE:
            self.flush()
        self._current = reign
        self._roots.append(reign)

    def add(self, record: Record) -> None:
        """Add a lock of the root last begun."""
        self._records.append(record)
        if len(self._roots) + len(self._records) >= PAGE:
            self.flush()
            assert self._current is not None
            self._roots.append(self._current)

    def flush(self) -> None:
        """Send what there is."""
        if self._roots:
            page = Locks(self._tag, tuple(self._roots), tuple(self._records))
            self._here.send(self._node, page)
        self._roots, self._records = [], []
