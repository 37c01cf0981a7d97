"""Users who lock, convert, cancel, write value blocks and hold on until they are told to yield.

Each user has at most one lock, so that none can wait for itself through another; then whoever waits
for ever has been forgotten. Many keep a lock until a BAST, so a lost BAST leaves somebody waiting.

Who holds a lock that lets it write may make up a new root and write its name down under that lock;
who holds one that lets it read may take a name from there, and ask for it later on.
"""

from typing import Final

from dlm.effects import Complete, Effect, Notify
from dlm.events import Acquire, Change, Lock, Name, Release, Withdraw
from dlm.messages import Status
from dlm.modes import LVB_TRANSFER, Flags, Mode, Transfer, is_down, may_queue_conversion
from dlm.sim.checkers import Violation
from dlm.sim.world import Machine, World

NAMES: Final = tuple(Name(root, leaf) for root in (b"a", b"b", b"c") for leaf in (b"", b"x"))
_NOQUEUE, _VALBLK, _IVVALBLK = int(Flags.NOQUEUE), int(Flags.VALBLK), int(Flags.IVVALBLK)
_NODLCKWT, _CONVDEADLK, _QUECVT = int(Flags.NODLCKWT), int(Flags.CONVDEADLK), int(Flags.QUECVT)
_NOQUEUEBAST, _HEADQUE = int(Flags.NOQUEUEBAST), int(Flags.HEADQUE)
_NAMES_IN_MIND = 3
_EXPEDITE, _NOORDER = int(Flags.EXPEDITE), int(Flags.NOORDER)
_ALTPR, _ALTCW = int(Flags.ALTPR), int(Flags.ALTCW)


class Workload:
    """All users of a world."""

    def __init__(self, world: World, users_per_node: int = 3) -> None:
        self.world = world
        self.closing = False  # nobody asks for anything new
        self.completed = 0
        self.values_written = 0
        self.names_made = 0
        self.written_down: dict[Name, list[Name]] = {}  # under which lock, which new names
        self._users_per_node = users_per_node
        world.listener = self._hear

    def populate(self, machine: Machine) -> None:
        """Let this start of a node have its users."""
        for _ in range(self._users_per_node):
            User(self, machine).rest()

    def _hear(self, machine: Machine, effect: Effect) -> None:
        if isinstance(effect, Complete):
            user = effect.lock.context
            assert isinstance(user, User)
            user.completed(effect)
        elif isinstance(effect, Notify):
            user = effect.lock.context
            assert isinstance(user, User)
            assert user.machine is machine
            user.told()


class User:
    """Somebody on one start of a node."""

    def __init__(self, load: Workload, machine: Machine) -> None:
        self.load = load
        self.world = load.world
        self.machine = machine
        self.lock: Lock | None = None
        self.outstanding = False
        self._before: Mode | None = None
        self._guest = False  # goes away with its lock

    def rest(self) -> None:
        """Do something later."""
        if self._guest and self.lock is None:
            return
        self.world.after(self.world.around(0.01), self._act)

    def completed(self, effect: Complete) -> None:
        """An operation ended; exactly one must have been under way."""
        if not self.outstanding or effect.lock is not self.lock:
            raise Violation(("completed without a request", effect))
        self.outstanding = False
        self.load.completed += 1
        lock = self.lock
        if effect.status is Status.GRANTED:
            self._check_value(lock)
            self._read_names(lock)
        if lock.mode is None:
            self.lock = None
        if effect.status is not Status.LOST:
            self.rest()
            if lock.blocked_for is not None:
                self.told()

    def told(self) -> None:
        """Somebody wants our lock: yield soon."""
        self.world.after(self.world.around(0.002), self._yield)

    def _act(self) -> None:
        if not self.machine.alive or self.outstanding:
            return
        lock = self.lock
        deed = self.world.random.choice("rrrcccddkknn")
        if lock is None:
            if not self.load.closing:
                self._ask()
        elif deed == "r":
            self._release(lock)
        elif deed == "c" and not self.load.closing:
            self._convert(lock)
        elif deed == "d" and not self.load.closing:
            self._weaken(lock, self.world.random.choice(tuple(Mode)))
        elif deed == "n" and not self.load.closing:
            self._make(lock)
            self.rest()
        # else: keep it until somebody wants it

    def _make(self, lock: Lock) -> None:
        """Make a new name known to whoever may read what we may write."""
        load = self.load
        if lock.mode in (Mode.CW, Mode.PW, Mode.EX):
            load.names_made += 1
            name = Name(b"new%d@%d" % (load.names_made, self.machine.incarnation))
            User(load, self.machine).visit(name, new=True)
            load.written_down.setdefault(lock.name, []).append(name)
            if self.world.names_tell and self.world.likely(0.3):
                self._gossip(name)

    def _gossip(self, name: Name) -> None:
        """Let another node hear of a new name although no lock tells it."""
        machines = self.world.machines
        machine = machines[self.world.random.choice(sorted(machines))]

        def hear() -> None:
            if not machine.cut and not self.machine.cut:  # nothing goes in or out
                User(self.load, machine).visit(name, new=False)

        self.world.after(self.world.around(0.001), hear)

    def visit(self, name: Name, *, new: bool) -> None:
        """Have one lock, and go away with it."""
        self._guest = True
        self.lock = Lock(name, "guest", self)
        mode = self.world.random.choice((Mode.PR, Mode.EX))
        if self.machine.alive:
            self._start(Acquire(self.lock, mode, _VALBLK, new))

    def _read_names(self, lock: Lock) -> None:
        """Look what was written down here lately, and ask for some of it."""
        if lock.mode is None or lock.mode < Mode.PR:
            return
        for name in self.load.written_down.get(lock.name, [])[-_NAMES_IN_MIND:]:
            if self.world.likely(0.3) and not self.load.closing:
                User(self.load, self.machine).visit(name, new=False)

    def _ask(self) -> None:
        pick = self.world.random
        mode = pick.choice(tuple(Mode))
        flags = _VALBLK if self.world.likely(0.7) or mode >= Mode.PW else 0
        if mode is Mode.NL and self.world.likely(0.3):
            flags |= _EXPEDITE
        else:
            flags |= pick.choice((0, 0, 0, _NOQUEUE, _NOQUEUE | _NOQUEUEBAST, _HEADQUE, _NOORDER))
            flags |= pick.choice((0, 0, 0, 0, _ALTPR, _ALTCW))
        self.lock = Lock(pick.choice(NAMES), "user", self)
        self._before = None
        self._start(Acquire(self.lock, mode, flags))

    def _convert(self, lock: Lock) -> None:
        pick = self.world.random
        mode = pick.choice(tuple(Mode))
        assert lock.mode is not None
        if is_down(lock.mode, mode):
            self._weaken(lock, mode)
            return
        flags = _VALBLK | pick.choice((0, 0, 0, _NOQUEUE, _NODLCKWT, _CONVDEADLK, _HEADQUE))
        if self.world.likely(0.2) and may_queue_conversion(lock.mode, mode):
            flags |= _QUECVT
        if self.machine.core.ownership.must_wait(lock, mode, flags):
            self.rest()
            return
        self._before = lock.mode
        value = self._new_value()
        if LVB_TRANSFER[lock.mode][mode] is Transfer.WRITE:
            self.world.checker.values.may_write(lock.name, value)
        self._start(Change(lock, mode, flags, value))
        if flags & _NODLCKWT or self.world.likely(0.1):
            self.world.after(self.world.around(0.02), lambda: self._lose_patience(lock))

    def _start(self, event: Acquire | Change) -> None:
        self.outstanding = True
        if not self.world.act(self.machine, event):
            raise Violation(("refused", event))
        if isinstance(event, Acquire) and self.world.likely(0.1):
            lock = event.lock
            self.world.after(self.world.around(0.005), lambda: self._lose_patience(lock))

    def _lose_patience(self, lock: Lock) -> None:
        if self.outstanding and self.lock is lock:
            self.world.act(self.machine, Withdraw(lock))
            if lock.flags & _NODLCKWT:  # it may have been the patience with an earlier one
                self.world.after(self.world.around(0.02), lambda: self._lose_patience(lock))

    def _yield(self) -> None:
        lock = self.lock
        if lock is None or self.outstanding or not self.machine.alive or lock.blocked_for is None:
            return
        if self.world.likely(0.2) and not self.load.closing:
            self._make(lock)
        assert lock.mode is not None
        fitting = [
            mode for mode in Mode if mode.compatible(lock.blocked_for) and is_down(lock.mode, mode)
        ]
        if fitting and self.world.likely(0.6):
            self._weaken(lock, self.world.random.choice(fitting))
        else:
            self._release(lock)

    def _weaken(self, lock: Lock, mode: Mode) -> None:
        assert lock.mode is not None
        if not is_down(lock.mode, mode):
            self.rest()
            return
        flags, value = self._writing()
        if LVB_TRANSFER[lock.mode][mode] is Transfer.WRITE:
            self._wrote(lock, flags, value)
        self._before = lock.mode
        self.outstanding = True
        self.world.act(self.machine, Change(lock, mode, flags, value))

    def _release(self, lock: Lock) -> None:
        flags, value = self._writing()
        assert lock.mode is not None
        if lock.mode >= Mode.PW:
            self._wrote(lock, flags, value)
        self.lock = None
        self.world.act(self.machine, Release(lock, flags, value))
        self.rest()

    def _writing(self) -> tuple[int, bytes | None]:
        if self.world.likely(0.1):
            return _VALBLK | _IVVALBLK, None
        return (_VALBLK, self._new_value()) if self.world.likely(0.8) else (0, None)

    def _wrote(self, lock: Lock, flags: int, value: bytes | None) -> None:
        if flags & _IVVALBLK:
            self.world.checker.values.wrote(lock.name, None)
        elif flags & _VALBLK:
            self.world.checker.values.wrote(lock.name, value)

    def _new_value(self) -> bytes:
        self.load.values_written += 1
        return self.load.values_written.to_bytes(8, "big")

    def _check_value(self, lock: Lock) -> None:
        """Compare what a grant read; note what it wrote."""
        before, now = self._before, lock.mode
        assert now is not None
        if not lock.flags & _VALBLK or now <= Mode.CR:
            return
        transfer = Transfer.READ if before is None else LVB_TRANSFER[before][now]
        if lock.demoted:  # or perhaps not, if the master has changed meanwhile
            if transfer is Transfer.WRITE:
                self.world.checker.values.may_have_written(lock.name)
            return
        if transfer is Transfer.READ:
            self.world.checker.values.was_granted(lock)
        elif transfer is Transfer.WRITE and before is not None and not is_down(before, now):
            assert lock.lvb is not None
            self.world.checker.values.wrote(lock.name, lock.lvb)
