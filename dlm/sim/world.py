"""A whole cluster in one thread: the production core, a seeded network, seeded crashes and views.

One `random.Random(seed)` takes every decision, so a seed and a commit are a complete bug report:
`python -m dlm.sim --seed 7 --nodes 5` replays the run message by message.

Links are ordered and lossless while both starts of the two nodes are members; a crash loses what
was still under way from some point on. A node that is cut off goes on with what it holds until its
lease ends; the others see it leaving first, and gone only after that. Each member learns of a view
in its own time and may skip some; a node may also be deaf for a while, and catch up.
"""

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from functools import partial

from dlm.core.lockspace import LockspaceCore
from dlm.core.mastery import KEEP_S
from dlm.effects import Answered, Complete, Effect, Heard, Notify, Send
from dlm.errors import LockError
from dlm.events import Enter, Event, Lose, Migrate, Received, Tick
from dlm.fields import Epoch
from dlm.messages import Status, decode, encode
from dlm.sim.checkers import Checker
from dlm.sim.estates import GROUPS
from dlm.sim.faults import NEVER, Faults, circumstances
from dlm.sim.gates import Gates

TRACE_LINES = 30000


class Machine:
    """One start of one node."""

    def __init__(self, node: int, incarnation: int) -> None:
        self.node = node
        self.incarnation = incarnation
        self.core = LockspaceCore(node, incarnation)
        self.alive = True
        self.mute = False  # nobody hears it
        self.deaf = False  # it hears nobody
        self.paused_until_s = 0.0
        self.held_up: list[tuple[Machine, int, bytes]] = []  # what came during the pause
        self.early: list[tuple[Machine, int, bytes]] = []  # of views that it has not entered yet
        self.alarm_s = float("inf")  # when it will look at the clock
        self.rolled = [0] * GROUPS  # what it knows of the gates
        self.removed_epoch: Epoch | None = None  # the view in which it is no longer a member

    @property
    def cut(self) -> bool:
        """Cut off, in one direction at least: it will be removed."""
        return self.mute or self.deaf


def maker_of(root: bytes) -> int | None:
    """Return the incarnation at the end of a name that has been made up."""
    _, _, incarnation = root.partition(b"@")
    return int(incarnation) if incarnation else None


Listener = Callable[[Machine, Effect], None]


class World:
    """The nodes, the network, the membership, and the queue of what happens next."""

    def __init__(
        self, seed: int, node_count: int, faults: Faults, *, tracing: bool = False
    ) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.tracing = tracing
        self.now_s = 0.0
        self.events_run = 0
        self.quiet = False  # no more faults
        self.machines: dict[int, Machine] = {}  # live ones, by node
        self.checker = Checker()
        self.checker.waits.machines = self.machines
        self.gates = Gates(self)
        self.trace: deque[str] = deque(maxlen=TRACE_LINES)
        self.listener: Listener | None = None
        self.started: Callable[[Machine], None] | None = None
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self.epoch = 0
        self._view: dict[int, int] = {}  # its members
        self._members: dict[int, int] = {}
        self._leaving: dict[int, int] = {}
        self._view_leaving: dict[int, int] = {}
        self._starts: dict[int, Machine] = {}  # every start ever, by incarnation
        self._link_free_s: dict[tuple[int, int], float] = {}
        self._incarnation = 0
        self.met: Counter[str] = Counter()  # kinds of faults, and what they hit
        self._apart: frozenset[int] = frozenset()  # nodes on one side of a partition
        self._healed_s = 0.0
        self.names_tell = self.likely(0.5)  # new names tell who made them up
        self._node_count = node_count

    # -- running ---------------------------------------------------------------------------------

    def boot(self) -> None:
        """Start all nodes and form the first view."""
        for node in range(1, self._node_count + 1):
            self._start(node)
        self._propose()
        self._schedule_fault()
        if self.faults.pause_interval_s != NEVER:
            self.after(self.around(self.faults.pause_interval_s), self._pause)
        if self.faults.split_interval_s != NEVER:
            self.after(self.around(self.faults.split_interval_s), self._split)
        if self.faults.migration_interval_s != NEVER:
            self._migrate()

    def run(self, until_s: float) -> None:
        """Run events in time order until none is left or `until_s` is reached."""
        while self._agenda and self._agenda[0][0] <= until_s:
            self.now_s, _, happen = heapq.heappop(self._agenda)
            self.events_run += 1
            happen()

    def after(self, delay_s: float, happen: Callable[[], None]) -> None:
        """Let `happen` be called later."""
        self.at(self.now_s + delay_s, happen)

    def at(self, at_s: float, happen: Callable[[], None]) -> None:
        """Let `happen` be called at that time, after what was asked for then before."""
        self._sequence += 1
        heapq.heappush(self._agenda, (at_s, self._sequence, happen))

    def around(self, mean_s: float) -> float:
        """Return a random duration."""
        return self.random.expovariate(1 / mean_s)

    def likely(self, probability: float) -> bool:
        """Throw a biased coin."""
        return self.random.random() < probability

    def act(self, machine: Machine, event: Event) -> bool:
        """Give `event` to the core and carry out what it asks for; False if it refused."""
        if not machine.alive:
            return False
        if self.tracing:
            self._note(f"n{machine.node} {event}")
        try:
            effects = machine.core.handle(event, self.now_s)
        except LockError as error:
            self._note(f"n{machine.node} refused: {error!r}")
            return False
        for effect in effects:
            self._carry_out(machine, effect)
        self.met["tree moved"] += machine.core.migration.taken
        machine.core.migration.taken = 0
        machine.core.validate()
        assert not machine.core.here.misdirected, "no correct peer sends that"
        self.checker.after_event(list(self.machines.values()), machine, self.now_s)
        self._arm(machine)
        return True

    def _arm(self, machine: Machine) -> None:
        """Let a Tick come at the machine's deadline, or a little later."""
        deadline_s = machine.core.deadline_s
        if deadline_s < machine.alarm_s:
            machine.alarm_s = max(deadline_s, self.now_s) + self.around(self.faults.delay_s / 10)
            self.after(max(0.0, machine.alarm_s - self.now_s), lambda: self._ring(machine))

    def _ring(self, machine: Machine) -> None:
        if self.now_s >= machine.alarm_s:
            machine.alarm_s = float("inf")
            self.act(machine, Tick())

    # -- network ---------------------------------------------------------------------------------

    def _carry_out(self, machine: Machine, effect: Effect) -> None:
        if isinstance(effect, Send):
            target = machine.core.here.members[effect.node]
            self._transmit(machine, target, encode(effect.message))
            return
        if self.tracing:
            self._note_effect(machine, effect)
        if isinstance(effect, Complete) and effect.status is Status.GRANTED and self.faults.gate_s:
            self.checker.estates.granted(effect.lock)
        assert self.listener is not None
        self.listener(machine, effect)

    def _note_effect(self, machine: Machine, effect: Complete | Notify | Answered | Heard) -> None:
        if isinstance(effect, Heard):
            self._note(f"n{machine.node} {effect.hearing!r}")
            return
        if isinstance(effect, Answered):
            self._note(f"n{machine.node} {effect.request!r} {effect.request.verdict!r}")
            return
        if isinstance(effect, Complete):
            self._note(f"n{machine.node} {effect.lock!r} {effect.status.name}")
        else:
            self._note(f"n{machine.node} {effect.lock!r} blocks {effect.mode.name}")

    def _transmit(self, source: Machine, target: int, body: bytes) -> None:
        """Deliver after a random delay, never overtaking earlier messages on the same link."""
        link, epoch = (source.incarnation, target), source.core.here.epoch
        if source.mute or self._starts[target].deaf:
            return  # and nothing comes after it: the one that is cut off will be removed
        at_s = max(self.now_s + self.around(self.faults.delay_s), self._link_free_s.get(link, 0.0))
        if self.now_s < self._healed_s and self._splits(source.node, self._starts[target].node):
            at_s = max(at_s, self._healed_s)
        self._link_free_s[link] = at_s
        self.at(at_s, lambda: self._arrive(source, self._starts[target], epoch, body))

    def _arrive(self, source: Machine, target: Machine, epoch: int, body: bytes) -> None:
        if self.now_s < target.paused_until_s or target.held_up:
            if not target.held_up:
                self.at(target.paused_until_s, lambda: self._resume(target))
            target.held_up.append((source, epoch, body))
            return
        self._let_in(source, target, epoch, body)

    def _resume(self, target: Machine) -> None:
        """Let arrive, in order, what came during a pause, unless there is another one by now."""
        if self.now_s < target.paused_until_s:
            self.at(target.paused_until_s, lambda: self._resume(target))
            return
        held_up, target.held_up = target.held_up, []
        for source, epoch, body in held_up:
            self._let_in(source, target, epoch, body)

    def _let_in(self, source: Machine, target: Machine, epoch: int, body: bytes) -> None:
        if not source.alive and self._is_lost_in_crash(source, target):
            return
        if source.mute or target.deaf or not target.alive:
            return
        if epoch > target.core.here.epoch or target.early:
            target.early.append((source, epoch, body))
        else:
            self._receive(source, target, body)

    def _receive(self, source: Machine, target: Machine, body: bytes) -> None:
        gone = source.removed_epoch
        if gone is None or target.core.here.epoch < gone:
            self.act(target, Received(source.node, decode(body)))

    def _drain(self, target: Machine) -> None:
        """Let arrive what has waited for the view that the node has just entered."""
        while target.early and target.early[0][1] <= target.core.here.epoch:
            source, _, body = target.early.pop(0)
            self._receive(source, target, body)

    def _is_lost_in_crash(self, source: Machine, target: Machine) -> bool:
        """Let a crash cut the link at a random message: after one lost, all are lost."""
        link = source.incarnation, target.incarnation
        if self._link_free_s[link] != float("inf") and self.likely(0.5):
            self._link_free_s[link] = float("inf")
        return self._link_free_s[link] == float("inf")

    # -- membership ------------------------------------------------------------------------------

    def _start(self, node: int) -> None:
        self._incarnation += 1
        machine = Machine(node, self._incarnation)
        if self.names_tell:
            machine.core.here.maker_of = maker_of
        if self.faults.gate_s:
            machine.core.here.gate = partial(self.gates.is_open, machine)
            self.after(self.around(self.faults.view_delay_s), partial(self.gates.tell, machine))
        machine.core.mastery.keep_s = self.random.choice((0.0, 0.002, KEEP_S))
        self.machines[node] = self._starts[machine.incarnation] = machine
        self._members[node] = machine.incarnation
        self.checker.waits.watch(machine)
        if self.started is not None:
            self.started(machine)

    def _propose(self) -> None:
        """Make the present members the next view; each learns of it in its own time."""
        self.epoch += 1
        epoch, members, leaving = self.epoch, dict(self._members), dict(self._leaving)
        self._view, self._view_leaving = members, leaving
        for machine in self._starts.values():
            if members.get(machine.node) != machine.incarnation and machine.removed_epoch is None:
                machine.removed_epoch = epoch
        gone = [i for i, start in self._starts.items() if start.removed_epoch is not None]
        if self.faults.gate_s and self.checker.estates.leave_out(gone, epoch):
            self.gates.roll_forward(epoch)
        self._note(f"view {epoch}: {members}, leaving {leaving}")
        for incarnation in members.values():
            self._announce(self._starts[incarnation], Enter(epoch, members, leaving, epoch - 1))

    def _announce(self, machine: Machine, enter: Enter) -> None:
        def act() -> None:
            newest = enter
            if self.now_s < machine.paused_until_s:
                self.after(machine.paused_until_s - self.now_s, act)
                return
            if self.likely(0.5) and self._view.get(machine.node) == machine.incarnation:
                newest = Enter(self.epoch, self._view, self._view_leaving, self.epoch - 1)
            if machine.alive and not machine.deaf and machine.core.here.epoch < newest.epoch:
                self.act(machine, newest)
                self._drain(machine)

        self.after(self.around(self.faults.view_delay_s), act)

    def _pause(self) -> None:
        """Let a node be deaf for a while."""
        if self.quiet:
            return
        if self.machines:
            machine = self.machines[self.random.choice(sorted(self.machines))]
            until_s = self.now_s + self.around(self.faults.pause_s)
            machine.paused_until_s = max(machine.paused_until_s, until_s)
            self.met["pause"] += 1
        self.after(self.around(self.faults.pause_interval_s), self._pause)

    def _split(self) -> None:
        """Hold up, for a while, whatever passes between some nodes and the others."""
        if self.quiet:
            return
        nodes = sorted(self.machines)
        if len(nodes) > 1 and self._healed_s <= self.now_s:
            count = self.random.randint(1, len(nodes) - 1)
            self._apart = frozenset(self.random.sample(nodes, count))
            self._healed_s = self.now_s + self.around(self.faults.split_s)
            self.met["partition"] += 1
        self.after(self.around(self.faults.split_interval_s), self._split)

    def _splits(self, one: int, other: int) -> bool:
        return (one in self._apart) != (other in self._apart)

    def _migrate(self) -> None:
        """Let some tree move to some other member."""
        if self.quiet:
            return
        roots = [
            (node, root)
            for node, machine in sorted(self.machines.items())
            for root, tree in machine.core.mastery.trees.items()
            if tree.resources and not machine.cut
        ]
        if roots:
            node, root = self.random.choice(roots)
            machine = self.machines[node]
            target = self.random.choice(list(machine.core.here.members))
            self.act(machine, Migrate(root, target))
        self.after(self.around(self.faults.migration_interval_s), self._migrate)

    def _schedule_fault(self) -> None:
        if self.faults.crash_interval_s != NEVER:
            self.after(self.around(self.faults.crash_interval_s), self._fault)

    def _fault(self) -> None:
        if self.quiet:
            return
        self._take_one_down()
        self._schedule_fault()
        if self.random.random() < self.faults.second_crash_probability:
            self.after(self.around(self.faults.view_delay_s), self._again)
            self.after(self.faults.detection_s + self.around(self.faults.view_delay_s), self._again)

    def _again(self) -> None:
        if not self.quiet:
            self._take_one_down()

    def _take_one_down(self) -> None:
        well = sorted(node for node, machine in self.machines.items() if not machine.cut)
        if len(well) > 1:
            self._take_down(self.machines[self.random.choice(well)])

    def _take_down(self, machine: Machine) -> None:
        self.met.update(circumstances(machine, self.machines.values()))
        dice = self.random.random()
        if dice < self.faults.cut_probability:
            self._cut_off(machine)
        elif dice < self.faults.cut_probability + self.faults.removal_probability:
            self._note(f"n{machine.node} gives up")
            self.met["removed alive"] += 1
            self._end(machine)
        else:
            self._note(f"n{machine.node} crashes")
            self.met["crash"] += 1
            self.checker.estates.bury(machine)
            machine.alive = False
            del self.machines[machine.node]
        self.after(self.around(self.faults.detection_s), lambda: self._suspect(machine))

    def _cut_off(self, machine: Machine) -> None:
        kind = "cut off"
        if self.faults.one_way_probability and self.likely(self.faults.one_way_probability):
            kind = self.random.choice(("mute", "deaf"))
        self._note(f"n{machine.node} is {kind}")
        self.met[kind] += 1
        machine.mute, machine.deaf = kind != "deaf", kind != "mute"

    def _end(self, machine: Machine) -> None:
        """Let the node notice that it is a member no more."""
        self.checker.estates.bury(machine)
        self.act(machine, Lose())
        machine.alive = False
        del self.machines[machine.node]

    def _suspect(self, machine: Machine) -> None:
        """Refuse the node; what it holds stays its own until its lease has ended."""
        if self._members.get(machine.node) == machine.incarnation:
            del self._members[machine.node]
            self._leaving[machine.node] = machine.incarnation
            if self._members:
                self._propose()
        self.after(self.around(self.faults.lease_s), lambda: self._bury(machine))

    def _bury(self, machine: Machine) -> None:
        if machine.alive:
            self._end(machine)
        del self._leaving[machine.node]
        if self._members:
            self._propose()
        self.after(self.around(self.faults.absence_s), lambda: self._rejoin(machine.node))

    def _rejoin(self, node: int) -> None:
        if node not in self.machines and node not in self._leaving:
            self._start(node)
            self.met["join"] += 1
            self._propose()

    def _note(self, text: str) -> None:
        self.trace.append(f"{self.now_s:.6f} {text}")
