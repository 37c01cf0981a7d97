"""Users that hold several locks at once, taken in any order: what the search for deadlocks is for.

A transaction locks some names one after the other, or two at once, converts some, and releases all;
if it is told to give way it releases all it has and starts again as the same owner. Bystanders hold
one lock at a time, for a short while, and are no owners. So whoever waits for ever is in a deadlock
that nobody found.
"""

from typing import Final

from dlm.effects import Complete, Effect
from dlm.events import Acquire, Change, Lock, Name, Owner, Release, Withdraw
from dlm.messages import Status
from dlm.modes import Flags, Mode
from dlm.sim.checkers import Violation
from dlm.sim.world import Machine, World

NAMES: Final = tuple(Name(root, leaf) for root in (b"a", b"b", b"c") for leaf in (b"", b"x"))
_NOQUEUE, _HEADQUE, _NOORDER = int(Flags.NOQUEUE), int(Flags.HEADQUE), int(Flags.NOORDER)
_ALTPR, _ALTCW = int(Flags.ALTPR), int(Flags.ALTCW)


class Transactions:
    """All users of a world."""

    def __init__(self, world: World, users_per_node: int = 3) -> None:
        self.world = world
        self.closing = False  # nobody begins anything
        self.completed = 0
        self.committed = 0
        self._users_per_node = users_per_node
        world.listener = self._hear

    def populate(self, machine: Machine) -> None:
        """Let this start of a node have its users."""
        for number in range(self._users_per_node):
            Transaction(self, machine, f"t{machine.incarnation}.{number}").rest()
        Transaction(self, machine, "").rest()

    def _hear(self, machine: Machine, effect: Effect) -> None:
        if isinstance(effect, Complete):
            user = effect.lock.context
            assert isinstance(user, Transaction)
            if user.machine is not machine:
                raise Violation(("answered elsewhere", effect))
            user.completed(effect)


class Transaction:
    """Somebody on one start of a node, again and again; without a label, a bystander."""

    def __init__(self, load: Transactions, machine: Machine, label: str) -> None:
        self.load = load
        self.world = load.world
        self.machine = machine
        self.label = label
        self.locks: list[Lock] = []
        self.owner: Owner | str = ""
        self._plan: list[tuple[Name, Mode]] = []
        self._outstanding: dict[Lock, None] = {}  # in their order, in every run
        self._failed = False
        self._scheduled = False

    def rest(self) -> None:
        """Begin something later."""
        self.world.after(self.world.around(0.02), self._begin)

    def completed(self, effect: Complete) -> None:
        """An operation ended; it must have been under way."""
        if effect.lock not in self._outstanding:
            raise Violation(("completed without a request", effect))
        del self._outstanding[effect.lock]
        self.load.completed += 1
        self._failed = self._failed or effect.status is not Status.GRANTED
        if effect.lock.granted is None:
            self.locks.remove(effect.lock)
        if effect.status is not Status.LOST and not self._outstanding and not self._scheduled:
            self._scheduled = True
            self.world.after(self.world.around(0.005), self._go_on)

    def _begin(self) -> None:
        if not self.machine.alive or self.load.closing:
            return
        pick = self.world.random
        count = pick.randint(2, 4) if self.label else 1
        modes = (Mode.EX, Mode.EX, Mode.PR, Mode.PW, Mode.CW, Mode.CR)
        self._plan = [(name, pick.choice(modes)) for name in pick.sample(NAMES, count)]
        if not self._failed and self.label:  # else it is the same one, which has grown older
            self.owner = Owner(self.label, priority=pick.choice((0, 0, 0, 1)))
        self._failed = False
        self._go_on()

    def _go_on(self) -> None:
        self._scheduled = False
        if not self.machine.alive or self._outstanding:
            return
        if self._failed or not self._plan:
            self._end()
            return
        self._ask()
        if self._plan and self.world.likely(0.2):
            self._ask()
        if self.world.likely(0.1):
            self.world.after(self.world.around(0.05), self._lose_patience)
        if self.world.likely(0.2):
            self.world.after(self.world.around(0.2), self._make_way)

    def _ask(self) -> None:
        name, mode = self._plan.pop()
        pick = self.world.random
        held = [lock for lock in self.locks if lock.granted is not None and not lock.requested]
        weak = [lock for lock in held if lock.granted in (Mode.CR, Mode.PR, Mode.CW)]
        if weak and self.world.likely(0.4):
            lock = pick.choice(weak)
            self._start(Change(lock, Mode.EX))
            return
        flags = pick.choice((0, 0, 0, 0, 0, _HEADQUE, _NOQUEUE, _NOORDER, _ALTPR, _ALTCW))
        lock = Lock(name, self.owner, self)
        self.locks.append(lock)
        self._start(Acquire(lock, mode, flags))

    def _start(self, event: Acquire | Change) -> None:
        self._outstanding[event.lock] = None
        if not self.world.act(self.machine, event):
            raise Violation(("refused", event))

    def _lose_patience(self) -> None:
        for lock in tuple(self._outstanding):
            self.world.act(self.machine, Withdraw(lock))

    def _make_way(self) -> None:
        """Give up what one lock allows while waiting for another."""
        held = [lock for lock in self.locks if lock.granted and not lock.requested]
        if self.machine.alive and self._outstanding and held:
            self._start(Change(self.world.random.choice(held), Mode.NL))

    def _end(self) -> None:
        assert not self._outstanding
        self.load.committed += not self._failed
        for lock in self.locks:
            self.world.act(self.machine, Release(lock))
        self.locks = []
        self.rest()
