"""A whole cluster in one thread: the production core, a seeded network, seeded crashes and views.

One `random.Random(seed)` takes every decision, so a seed and a commit are a complete bug report:
`python -m dlm.sim --seed 7 --nodes 5` replays the run message by message.

Links are ordered and lossless while both starts of the two nodes live; a crash loses what was still
under way from some point on. Each member learns of a view in its own time and may skip some.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable

import msgspec

from dlm.core.lockspace import LockspaceCore
from dlm.core.mastery import KEEP_S
from dlm.effects import Complete, Effect, Notify, Send
from dlm.errors import LockError
from dlm.events import Enter, Event, Lose, Received, Tick
from dlm.messages import Epoch, decode, encode
from dlm.sim.checkers import Checker

TRACE_LINES = 3000


class Faults(msgspec.Struct, frozen=True):
    """How hostile the world is. Times are means of exponential distributions."""

    delay_s: float = 0.001
    view_delay_s: float = 0.005
    detection_s: float = 0.02
    absence_s: float = 0.05
    crash_interval_s: float = 0.1  # between two crashes or removals; infinite: none
    second_crash_probability: float = 0.3  # soon after another one, so during its recovery
    removal_probability: float = 0.3  # of being removed alive instead of crashing


class Machine:
    """One start of one node."""

    def __init__(self, node: int, incarnation: int) -> None:
        self.node = node
        self.incarnation = incarnation
        self.core = LockspaceCore(node, incarnation)
        self.alive = True
        self.alarm_s = float("inf")  # when it will look at the clock
        self.removed_epoch: Epoch | None = None  # the view in which it is no longer a member


Listener = Callable[[Machine, Effect], None]


class World:
    """The nodes, the network, the membership, and the queue of what happens next."""

    def __init__(self, seed: int, node_count: int, faults: Faults) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.now_s = 0.0
        self.events_run = 0
        self.quiet = False  # no more faults
        self.machines: dict[int, Machine] = {}  # live ones, by node
        self.checker = Checker()
        self.checker.waits.machines = self.machines
        self.trace: deque[str] = deque(maxlen=TRACE_LINES)
        self.listener: Listener | None = None
        self.started: Callable[[Machine], None] | None = None
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self.epoch = 0
        self._view: dict[int, int] = {}  # its members
        self._members: dict[int, int] = {}
        self._starts: dict[int, Machine] = {}  # every start ever, by incarnation
        self._link_free_s: dict[tuple[int, int], float] = {}
        self._incarnation = 0
        self._node_count = node_count

    # -- running ---------------------------------------------------------------------------------

    def boot(self) -> None:
        """Start all nodes and form the first view."""
        for node in range(1, self._node_count + 1):
            self._start(node)
        self._propose()
        self._schedule_fault()

    def run(self, until_s: float) -> None:
        """Run events in time order until none is left or `until_s` is reached."""
        while self._agenda and self._agenda[0][0] <= until_s:
            self.now_s, _, happen = heapq.heappop(self._agenda)
            self.events_run += 1
            happen()

    def after(self, delay_s: float, happen: Callable[[], None]) -> None:
        """Let `happen` be called later."""
        self._sequence += 1
        heapq.heappush(self._agenda, (self.now_s + delay_s, self._sequence, happen))

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
        self._note(f"n{machine.node} {event}")
        try:
            effects = machine.core.handle(event, self.now_s)
        except LockError as error:
            self._note(f"n{machine.node} refused: {error!r}")
            return False
        for effect in effects:
            self._carry_out(machine, effect)
        machine.core.validate()
        assert not machine.core.here.misdirected, "no correct peer sends that"
        self.checker.after_event(list(self.machines.values()), self.now_s)
        self._arm(machine)
        return True

    def _arm(self, machine: Machine) -> None:
        """Let a Tick come at the machine's deadline, or a little later."""
        deadline_s = machine.core.deadline_s
        if deadline_s < machine.alarm_s:
            machine.alarm_s = deadline_s + self.around(self.faults.delay_s)
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
        if isinstance(effect, Complete):
            self._note(f"n{machine.node} {effect.lock!r} {effect.status.name}")
        elif isinstance(effect, Notify):
            self._note(f"n{machine.node} {effect.lock!r} blocks {effect.mode.name}")
        assert self.listener is not None
        self.listener(machine, effect)

    def _transmit(self, source: Machine, target: int, body: bytes) -> None:
        """Deliver after a random delay, never overtaking earlier messages on the same link."""
        link = source.incarnation, target
        at_s = max(self.now_s + self.around(self.faults.delay_s), self._link_free_s.get(link, 0.0))
        self._link_free_s[link] = at_s
        self.after(at_s - self.now_s, lambda: self._arrive(source, self._starts[target], body))

    def _arrive(self, source: Machine, target: Machine, body: bytes) -> None:
        if not source.alive and self._is_lost_in_crash(source, target):
            return
        gone = source.removed_epoch
        if target.alive and (gone is None or target.core.here.epoch < gone):
            message = decode(body)
            self.act(target, Received(source.node, message))

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
        machine.core.mastery.keep_s = self.random.choice((0.0, 0.002, KEEP_S))
        self.machines[node] = self._starts[machine.incarnation] = machine
        self._members[node] = machine.incarnation
        self.checker.waits.watch(machine)
        if self.started is not None:
            self.started(machine)

    def _propose(self) -> None:
        """Make the present members the next view; each learns of it in its own time."""
        self.epoch += 1
        epoch, members = self.epoch, dict(self._members)
        self._view = members
        for machine in self._starts.values():
            if members.get(machine.node) != machine.incarnation and machine.removed_epoch is None:
                machine.removed_epoch = epoch
        self._note(f"view {epoch}: {members}")
        for incarnation in members.values():
            self._announce(self._starts[incarnation], epoch, members)

    def _announce(self, machine: Machine, epoch: int, members: dict[int, int]) -> None:
        def enter() -> None:
            newest, who = epoch, members
            if self.likely(0.5) and self._view.get(machine.node) == machine.incarnation:
                newest, who = self.epoch, self._view
            if machine.alive and machine.core.here.epoch < newest:
                self.act(machine, Enter(newest, who))

        self.after(self.around(self.faults.view_delay_s), enter)

    def _schedule_fault(self) -> None:
        if self.faults.crash_interval_s != float("inf"):
            self.after(self.around(self.faults.crash_interval_s), self._fault)

    def _fault(self) -> None:
        if self.quiet:
            return
        if len(self.machines) > 1:
            machine = self.machines[self.random.choice(sorted(self.machines))]
            self._take_down(machine)
        self._schedule_fault()
        if self.random.random() < self.faults.second_crash_probability:
            self.after(self.faults.detection_s + self.around(self.faults.view_delay_s), self._again)

    def _again(self) -> None:
        if not self.quiet and len(self.machines) > 1:
            self._take_down(self.machines[self.random.choice(sorted(self.machines))])

    def _take_down(self, machine: Machine) -> None:
        if self.random.random() < self.faults.removal_probability:
            self.act(machine, Lose())
            self._note(f"n{machine.node} removed")
        else:
            self._note(f"n{machine.node} crashes")
        machine.alive = False
        del self.machines[machine.node]
        self.after(self.around(self.faults.detection_s), lambda: self._bury(machine))

    def _bury(self, machine: Machine) -> None:
        if self._members.get(machine.node) == machine.incarnation:
            del self._members[machine.node]
            if self._members:
                self._propose()
        self.after(self.around(self.faults.absence_s), lambda: self._rejoin(machine.node))

    def _rejoin(self, node: int) -> None:
        if node not in self.machines:
            self._start(node)
            self._propose()

    def _note(self, text: str) -> None:
        self.trace.append(f"{self.now_s:.6f} {text}")
