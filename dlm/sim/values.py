"""What may be read from value blocks, and when they are rightly called doubtful.

By the rules of fs/dlm: a value is doubtful from an invalidation on, or from the death of a holder
in PW or EX that used value blocks, until the next write; and after the death of its master, unless
a survivor holds the lock in more than CR and knows the last value. A sequence number that a lock
has seen never goes back while that lock lives.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from dlm.events import Lock, Name
from dlm.modes import Mode

if TYPE_CHECKING:
    from dlm.core.tree import Tree
    from dlm.sim.world import Machine

SETTLED_S: Final = 0.5  # after a death: whatever it causes has been caused


class Values:
    """Follows all value blocks of a cluster."""

    def __init__(self) -> None:
        self.read = 0
        self.complaints: list[str] = []
        self._allowed: dict[Name, set[bytes]] = {}  # what may be read; empty: invalidated
        self._doubts: dict[Name, float] = {}  # may be doubtful, and since when
        self._lost: set[Name] = set()  # must be doubtful
        self._now_s = 0.0
        self._nodes: dict[int, int] = {}  # by incarnation
        self._writers: dict[int, set[Name]] = {}  # who may write, by incarnation
        self._holders: dict[int, set[Name]] = {}  # who surely may
        self._masters: dict[int, set[Name]] = {}
        self._strong: dict[int, set[Name]] = {}  # of which each has the last value
        self._sent: dict[Name, int] = {}  # on the way to that start of a node, with their tree
        self._unsettled: dict[Name, float] = {}  # their master died, at that time
        self._sequences: dict[tuple[int, int], int] = {}  # by incarnation and lock

    def look(self, machines: "Iterable[Machine]", acted: "Machine", now_s: float) -> None:
        """Note who is there, what the one that acted holds, and who has died since."""
        self._now_s = now_s
        alive = {machine.incarnation: machine for machine in machines}
        if acted.incarnation in alive and not acted.core.lost:
            self._nodes[acted.incarnation] = acted.node
            self._strong[acted.incarnation] = self._look_at(acted.incarnation, acted)
        self._look_for_lost_trees(alive)
        gone = {i for i in self._writers if i not in alive or alive[i].core.lost}
        for incarnation in gone:
            self._bury(incarnation)
            for machine in alive.values():
                self._doubt_what_it_held(self._nodes[incarnation], machine)
        for name, since_s in tuple(self._unsettled.items()):
            if not any(name in strong for strong in self._strong.values()):
                self._doubts[name] = now_s
            if since_s + SETTLED_S < now_s:
                del self._unsettled[name]

    def wrote(self, name: Name, value: bytes | None) -> None:
        """A holder that excludes others wrote the value block, or (None) invalidated it."""
        self._allowed[name] = set() if value is None else {value}
        if value is None:
            self._doubts[name] = self._now_s
        else:
            self._lost.discard(name)

    def may_write(self, name: Name, value: bytes) -> None:
        """A holder asked for a conversion that writes; a crash may hide whether it was granted."""
        self._allowed.setdefault(name, set()).add(value)

    def may_have_written(self, name: Name) -> None:
        """What a holder asked to write (see `may_write`) has been written, or it was demoted."""
        self._lost.discard(name)

    def was_granted(self, lock: Lock) -> None:
        """A lock that excludes writers has just read the value block."""
        name = lock.name
        if not lock.lvb_valid:
            if name not in self._doubts:
                self.complaints.append(f"needless doubt about the LVB of {lock}")
            return
        if not lock.lvb_sequence:
            return
        self.read += 1
        allowed = self._allowed.get(name, set())
        if lock.lvb not in allowed:
            self.complaints.append(f"stale LVB: {lock} has {lock.lvb!r}, not in {allowed}")
        if name in self._lost:
            self.complaints.append(f"the LVB of {lock} is not doubted although its writer died")
        if self._doubts.get(name, self._now_s) + SETTLED_S < self._now_s:
            del self._doubts[name]

    def _look_at(self, incarnation: int, machine: "Machine") -> set[Name]:
        """Return the names for which this machine has the last value and keeps writers off."""
        strong: set[Name] = set()
        writers: set[Name] = set()
        holders: set[Name] = set()
        for lock in machine.core.ownership.locks.values():
            held = lock.granted if lock.granted is not None else Mode.NL
            if lock.uses_lvb and held >= Mode.PW:
                holders.add(lock.name)
            if lock.uses_lvb and max(held, lock.requested or Mode.NL) >= Mode.PW:
                writers.add(lock.name)
            if held > Mode.CR and lock.lvb_sequence == lock.known_sequence > 0:
                strong.add(lock.name)
            key = incarnation, lock.id
            if lock.known_sequence < self._sequences.get(key, 0):
                self.complaints.append(f"the LVB sequence of {lock} went back")
            self._sequences[key] = lock.known_sequence
        self._writers[incarnation], self._holders[incarnation] = writers, holders
        self._masters[incarnation] = {
            resource.name for tree in _trees(machine) for resource in tree.resources.values()
        }
        return strong

    def _look_for_lost_trees(self, alive: "dict[int, Machine]") -> None:
        """A tree that was sent to somebody who is dead has lost its master."""
        for machine in alive.values():
            for departure in machine.core.mastery.departures.values():
                if departure.away and not departure.settled:
                    for resource in departure.tree.resources.values():
                        self._sent[resource.name] = departure.target[1]
        for name, incarnation in tuple(self._sent.items()):
            target = alive.get(incarnation)
            if target is None or target.core.lost or target.cut:
                self._unsettled[name] = self._now_s
                del self._sent[name]
            elif name.root in target.core.mastery.trees:
                del self._sent[name]

    def _bury(self, incarnation: int) -> None:
        for name in self._writers.pop(incarnation):
            self._doubts[name] = self._now_s
        self._lost |= self._holders.pop(incarnation)
        del self._strong[incarnation]
        for name in self._masters.pop(incarnation):
            self._unsettled[name] = self._now_s

    def _doubt_what_it_held(self, dead: int, master: "Machine") -> None:
        """What the dead one gave up may be unknown to the master for ever."""
        for tree in _trees(master):
            for resource in tree.resources.values():
                strongest = [
                    max(copy.granted or 0, copy.requested or 0)
                    for copy in resource.copies()
                    if abs(copy.node) == dead  # negative: it is leaving
                ]
                if max(strongest, default=0) >= Mode.PW:
                    self._doubts[resource.name] = self._now_s


def _trees(machine: "Machine") -> "Iterator[Tree]":
    """Yield the trees that this machine masters, and those that it has sent but not got rid of."""
    yield from machine.core.mastery.trees.values()
    for departure in machine.core.mastery.departures.values():
        if departure.away:
            yield departure.tree
