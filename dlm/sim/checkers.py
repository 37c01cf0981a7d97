"""What must hold in a whole cluster, checked after every event and when nothing moves any more."""

from itertools import combinations
from typing import TYPE_CHECKING

from dlm.events import Name
from dlm.modes import Mode
from dlm.sim.estates import Estates
from dlm.sim.values import Values
from dlm.sim.waitgraph import WaitGraph

if TYPE_CHECKING:
    from dlm.sim.world import Machine


class Violation(AssertionError):
    """An invariant of the whole cluster is broken."""


class Checker:
    """Looks at all live nodes at once, as no node can."""

    def __init__(self) -> None:
        self.values = Values()
        self.waits = WaitGraph()
        self.estates = Estates()

    def after_event(self, machines: "list[Machine]", acted: "Machine", now_s: float) -> None:
        """Check what holds at any moment."""
        self.waits.look(now_s)
        self.values.look(machines, acted, now_s)
        complaints = self.waits.complaints or self.values.complaints or self.estates.complaints
        _require(not complaints, *complaints)
        self._check_exclusion(machines)
        self._check_mastery(machines)

    def at_rest(self, machines: "list[Machine]") -> None:
        """Check what holds when every message has arrived and nobody does anything."""
        for machine in machines:
            core = machine.core
            _require(not core.here.frozen, "never entered a view", machine.node)
            _require(not core.recovery.busy, "a recovery never ended", core.recovery.awaited())
            _require(not core.mastery.departures, "never forgotten", core.mastery.departures)
            _require(not core.migration.arriving, "never arrived", core.migration.arriving)
            _require(not core.directory.held, "a request never found its master", machine.node)
            _require(
                not core.ownership.pending, "never answered", machine.node, core.ownership.pending
            )
        self._check_copies(machines)
        self._check_directory(machines)

    def _check_exclusion(self, machines: "list[Machine]") -> None:
        held: dict[Name, list[tuple[Mode, int]]] = {}
        for machine in machines:
            for lock in machine.core.ownership.locks.values():
                if lock.mode is not None:
                    held.setdefault(lock.name, []).append((lock.mode, machine.node))
        for name, holders in held.items():
            for (mode, node), (other_mode, other) in combinations(holders, 2):
                _require(
                    mode.compatible(other_mode), "exclusion", name, mode, node, other_mode, other
                )

    def _check_mastery(self, machines: "list[Machine]") -> None:
        masters: dict[tuple[int, bytes], int] = {}
        for machine in machines:
            here = machine.core.here
            if here.frozen:
                continue
            for root, tree in machine.core.mastery.trees.items():
                if not tree.resources:
                    continue
                other = masters.setdefault((tree.term, root), machine.node)
                _require(other == machine.node, "two masters", root, other, machine.node)

    def _check_copies(self, machines: "list[Machine]") -> None:
        own = {
            (machine.node, lock.id): (lock.name, lock.granted, lock.requested)
            for machine in machines
            for lock in machine.core.ownership.locks.values()
        }
        copies = {
            key: (copy.resource.name, copy.granted, copy.requested)
            for machine in machines
            for key, copy in machine.core.mastery.copies.items()
        }
        _require(own == copies, "master and owner disagree", own, copies)

    def _check_directory(self, machines: "list[Machine]") -> None:
        trees = {root: m.node for m in machines for root in m.core.mastery.trees}
        entries = {
            root: entry.master[0]
            for m in machines
            for root, entry in m.core.directory.entries.items()
        }
        _require(trees == entries, "directory and trees disagree", trees, entries)
        for machine in machines:
            for root, known in machine.core.ownership.roots.items():
                _require(known.master == trees.get(root), "wrong master known", root)


def _require(condition: bool, *story: object) -> None:  # noqa: FBT001  reads like assert
    if not condition:
        raise Violation(story)
