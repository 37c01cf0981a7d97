"""Who waits for whom in the whole cluster at one moment: what the search for deadlocks must match.

Worked out from the queues and the locks themselves, by the rules as the protocol document tells
them and not by the code that is being checked. A node is a wait, an edge leads to a wait that must
end first. A victim is false unless its wait was on a cycle when its confirming round began; a cycle
is missed if it lasts `FOUND_S` longer than the last change of the members.
"""

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from dlm.core.master_copy import Copy
from dlm.core.overtaking import OvertakingResource
from dlm.core.waits import LOCK
from dlm.events import Lock, Wait
from dlm.messages import Hop
from dlm.modes import Flags, Mode

if TYPE_CHECKING:
    from dlm.sim.world import Machine

FOUND_S: Final = 1.0
_NOORDER, _NODLCKBLK = int(Flags.NOORDER), int(Flags.NODLCKBLK)
_NODLCKWT = int(Flags.NODLCKWT)
_OTHERS: Final = ((int(Flags.ALTPR), Mode.PR), (int(Flags.ALTCW), Mode.CW))

Graph = dict["Node", frozenset["Node"]]
Cycle = tuple["Node", ...]
Found = tuple["Node", tuple[Hop, ...]]


class Node(NamedTuple):
    """A wait: whose, for which lock, since which stamp."""

    incarnation: int
    lock: int
    stamp: int


class WaitGraph:
    """Follows the cycles of the whole cluster from event to event."""

    def __init__(self) -> None:
        self.machines: dict[int, Machine] = {}  # live ones, by node; shared with the world
        self.cycles: dict[Cycle, float] = {}  # those there are, and since when
        self.found = 0
        self.longest_s = 0.0
        self.complaints: list[str] = []
        self._confirmed: set[Found] = set()
        self._broken: set[frozenset[tuple[int, int, int]]] = set()  # had their victim
        self._stamps: dict[tuple[int, int], int] = {}  # of victims that may not know it yet
        self._disturbed_s = 0.0

    def watch(self, machine: "Machine") -> None:
        """Be told what this machine's search does."""
        detector = machine.core.detector
        detector.on_close = lambda wait, cycle: self._closes(machine, wait, cycle)
        detector.on_victim = lambda wait, cycle: self._gives_way(machine, wait, cycle)

    def look(self, now_s: float) -> None:
        """Take note of the cycles there are now."""
        machines = self.machines.values()
        if any(m.core.here.frozen or m.core.recovery.busy for m in machines):
            self._disturbed_s = now_s
        if not self.cycles and not any(machine.core.here.waits.by_key for machine in machines):
            return
        graph = self._graph()
        self.cycles = {c: since for c, since in self.cycles.items() if _exists(c, graph)}
        known = {node for cycle in self.cycles for node in cycle}
        for node in graph:
            if node not in known:
                cycle = _shortest_cycle(node, graph)
                if cycle is not None and not known.issuperset(cycle):
                    self.cycles[cycle] = now_s
                    known.update(cycle)
        for cycle, since in self.cycles.items():
            age_s = now_s - max(since, self._disturbed_s)
            self.longest_s = max(self.longest_s, age_s)
            if age_s > FOUND_S:
                self.complaints.append(f"a deadlock was missed: {cycle} since {since}")

    def _closes(self, machine: "Machine", wait: Wait, hops: tuple[Hop, ...]) -> None:
        node, graph = Node(machine.incarnation, wait.key[1], wait.stamp), self._graph()
        if node in graph and _shortest_cycle(node, graph) is not None:
            self._confirmed.add((node, hops))
        else:
            self._confirmed.discard((node, hops))

    def _gives_way(self, machine: "Machine", wait: Wait, hops: tuple[Hop, ...]) -> None:
        node = Node(machine.incarnation, wait.key[1], wait.stamp)
        self.found += 1
        if (node, hops) not in self._confirmed:
            self.complaints.append(f"a false victim: {node} of {wait.owner}")
        self._stamps[machine.node, wait.key[1]] = wait.stamp
        who = frozenset(self._waits_of(hops))
        if who in self._broken:
            self.complaints.append(f"two victims of one deadlock: {who}")
        self._broken.add(who)
        for cycle in [cycle for cycle in self.cycles if node in cycle]:
            del self.cycles[cycle]

    def _waits_of(self, hops: tuple[Hop, ...]) -> Iterator[tuple[int, int, int]]:
        """Yield the waits of a cycle, also those that others only stand behind."""
        for hop in hops:
            yield hop.node, hop.number, hop.stamp
            if hop.blocker is not None and hop.blocker.place:
                node, number = hop.blocker.behind_node, hop.blocker.behind_number
                home = self.machines.get(node)
                wait = None if home is None else home.core.here.waits.by_key.get((LOCK, number))
                stamp = self._stamps.get((node, number)) if wait is None else wait.stamp
                # One that takes no part has none, but another way round it is another cycle.
                yield node, number, -hop.blocker.place if stamp is None else stamp

    # -- the graph -------------------------------------------------------------------------------

    def _graph(self) -> Graph:
        return {
            _node(machine, lock): frozenset(self._successors(machine, lock))
            for machine in self.machines.values()
            for lock in machine.core.ownership.pending.values()
            if _waits_for_good(lock)
        }

    def _successors(self, machine: "Machine", lock: Lock) -> Iterator[Node]:
        copy = self._queued(machine, lock)
        if copy is None:
            return
        wanted, resource = copy.requested, copy.resource
        assert wanted is not None
        contents = _contents(copy.flags, wanted)
        for other in (*resource.granted, *resource.converting):
            assert other.granted is not None
            if other is not copy and not any(map(other.granted.compatible, contents)):
                yield from self._waits_of_holders(other)
        if copy.flags & _NOORDER:
            return
        if copy.granted is None:
            before = resource.waiting[: resource.waiting.index(copy)]
            if not isinstance(resource, OvertakingResource):
                before = [*resource.converting, *before]
        else:
            before = resource.converting[: resource.converting.index(copy)]
        for other in before:
            home, own = self._home(other)
            if home is not None and own is not None and own.requested and _waits_for_good(own):
                yield _node(home, own)

    def _queued(self, machine: "Machine", lock: Lock) -> Copy | None:
        """Return the wait as its master knows it."""
        root = machine.core.ownership.roots.get(lock.name.root)
        master = None if root is None else self.machines.get(root.master)
        if master is None or master.core.here.frozen or machine.core.here.frozen:
            return None
        copy = master.core.mastery.copies.get((machine.node, lock.id))
        if copy is None and root is not None and root.moving is not None:
            copy = self._on_its_way(machine, lock, master, root.moving[0])
        return copy if copy is not None and copy.requested is not None else None

    def _on_its_way(
        self, machine: "Machine", lock: Lock, source: "Machine", target: int
    ) -> Copy | None:
        """Return the wait as the next master knows it, or as the last one has sent it."""
        key = machine.node, lock.id
        taker = self.machines.get(target)
        if taker is not None and key in taker.core.mastery.copies:
            return taker.core.mastery.copies[key]
        departure = source.core.mastery.departures.get(lock.name.root)
        resource = None if departure is None else departure.tree.resources.get(lock.name.leaf)
        copies = () if resource is None else resource.copies()
        return next((copy for copy in copies if (copy.node, copy.lock) == key), None)

    def _waits_of_holders(self, copy: Copy) -> Iterator[Node]:
        home, lock = self._home(copy)
        if home is None or lock is None or lock.granted is not copy.granted:
            return
        if lock.flags & _NODLCKBLK or lock.parting is not None:
            return
        owners = [] if lock.transaction is None else [lock.transaction]
        for owner in (*owners, *(lock.users or ())):
            for _, number in owner.waits:
                yield _node(home, home.core.ownership.locks[number])

    def _home(self, copy: Copy) -> "tuple[Machine | None, Lock | None]":
        home = self.machines.get(copy.node)
        return home, None if home is None else home.core.ownership.locks.get(copy.lock)


def _node(machine: "Machine", lock: Lock) -> Node:
    wait = machine.core.here.waits.by_key.get((LOCK, lock.id))
    return Node(machine.incarnation, lock.id, lock.turn if wait is None else wait.stamp)


def _contents(flags: int, wanted: Mode) -> list[Mode]:
    """Return the modes with any of which a waiting lock would go on."""
    return [wanted, *(mode for flag, mode in _OTHERS if flags & flag)]


def _waits_for_good(lock: Lock) -> bool:
    return not lock.cancelling and not lock.flags & _NODLCKWT


def _exists(cycle: Cycle, graph: Graph) -> bool:
    following = (*cycle[1:], cycle[0])
    return all(b in graph.get(a, ()) for a, b in zip(cycle, following, strict=True))


def _shortest_cycle(start: Node, graph: Graph) -> Cycle | None:
    """Return the nodes of a shortest cycle through `start`, or None."""
    came_from: dict[Node, Node] = {}
    queue = deque([start])
    while queue:
        node = queue.popleft()
        for following in sorted(graph.get(node, ())):
            if following == start:
                cycle = [node]
                while cycle[-1] != start:
                    cycle.append(came_from[cycle[-1]])
                return tuple(reversed(cycle))
            if following not in came_from:
                came_from[following] = node
                queue.append(following)
    return None
