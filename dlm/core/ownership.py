"""This node's own locks: asked for, held, converting, told that they block somebody. PURE.

What a lock's holder says about it is the truth: a weaker mode or a release counts from the moment
its user said so, a stronger one from the moment the master's word arrived here.

A first request goes to the master if another lock of the same root already knows it; else to whom
we remember as the master, who passes it to the directory node if that is no longer so; else to the
directory node. The answer tells who the master is. Until then nothing else is sent for that lock.
While locks are frozen (a recovery is running), requests and conversions wait here; releases and
demotions take effect at once and are passed on as described at `_tell_master`.
"""

import msgspec

from dlm.core.mastery import Mastery
from dlm.core.situation import Situation
from dlm.core.waits import LOCK
from dlm.effects import Complete, Notify
from dlm.errors import LockBusy
from dlm.events import Acquire, Change, Lock, Release, Withdraw
from dlm.messages import (
    Blocking,
    Cancel,
    Claimed,
    Convert,
    Demote,
    Denied,
    Granted,
    Mastered,
    Queued,
    Record,
    Request,
    Route,
    Status,
    Unlock,
)
from dlm.modes import (
    LVB_TRANSFER,
    Flags,
    Mode,
    Transfer,
    floor,
    is_down,
    may_queue_conversion,
)

_NOQUEUE = int(Flags.NOQUEUE)
_VALBLK = int(Flags.VALBLK)
_QUECVT = int(Flags.QUECVT)
_IVVALBLK = int(Flags.IVVALBLK)
_LVB = _VALBLK | _IVVALBLK
_CONVDEADLK = int(Flags.CONVDEADLK)
_EXPEDITE = int(Flags.EXPEDITE)
_REMEMBERED = 10_000
_WRITERS = (Mode.CW, Mode.PW, Mode.EX)


class Root:
    """A root under which we have locks, and who masters it."""

    __slots__ = ("as_of", "incarnation", "locks", "master", "next_incarnation", "next_master")

    def __init__(self, master: int, incarnation: int, as_of: int) -> None:
        self.master = master
        self.incarnation = incarnation
        self.as_of = as_of  # the epoch in which we knew that and locks moved
        self.next_master = master  # whom our records went to last; the next thaw confirms it
        self.next_incarnation = incarnation
        self.locks: dict[int, Lock] = {}  # those the master knows: held or queued there


class Ownership:
    """All locks of this node's users."""

    def __init__(self, here: Situation, mastery: Mastery) -> None:
        self._here = here
        self._mastery = mastery
        self.locks: dict[int, Lock] = {}
        self.pending: dict[int, Lock] = {}  # those with a request or conversion under way
        self.roots: dict[bytes, Root] = {}
        self.parting: dict[int, int] = {}  # by lock: the claim that it waits for
        self._remembered: dict[bytes, int] = {}  # who mastered roots that we had locks under
        self._last_id = 0

    # -- what the user does ----------------------------------------------------------------------

    def acquire(self, event: Acquire) -> None:
        """Ask for a new lock."""
        lock, flags = event.lock, event.flags
        assert not lock.id, "a lock is asked for once"
        assert not flags & (_QUECVT | _CONVDEADLK), "only conversions take these flags"
        assert not flags & _EXPEDITE or (event.mode is Mode.NL and not flags & _NOQUEUE)
        self._last_id += 1
        lock.id, lock.requested, lock.flags = self._last_id, event.mode, flags
        lock.uses_lvb = bool(flags & _LVB)
        self.locks[lock.id] = self.pending[lock.id] = lock
        self._here.waits.begin_lock(lock, self._here.now_s)
        if self._here.frozen:
            return
        root = lock.name.root
        if event.new and root not in self._mastery.trees:
            self._mastery.serve(self._mastery.make(root), self._request(lock, Route.DIRECT))
        else:
            self._ask(lock)

    def change(self, event: Change) -> None:
        """Convert a held lock. Weakening completes here and now."""
        lock, mode, flags = event.lock, event.mode, event.flags
        held = _settled(lock)
        if self.must_wait(lock, mode, flags):
            raise LockBusy(repr(lock))
        assert not flags & _EXPEDITE
        assert not flags & _QUECVT or may_queue_conversion(held, mode)
        assert not (flags & _CONVDEADLK and flags & _NOQUEUE)
        lock.flags, lock.demoted = flags, False
        lock.turn = self._here.waits.next_stamp()
        lock.uses_lvb = lock.uses_lvb or bool(flags & _LVB)
        if is_down(held, mode):
            self._here.effects.append(Complete(lock, Status.GRANTED))
            lock.mode, lock.blocked_for = mode, None
            if not self._parts(lock, event):
                self._weaken(event)
            return
        lock.offered = event.lvb
        lock.requested, lock.sequence = mode, 0
        lock.mode = floor(held, mode, flags)
        self.pending[lock.id] = lock
        self._here.waits.begin_lock(lock, self._here.now_s)
        if not self._here.frozen:
            self._convert(lock)

    def release(self, event: Release) -> None:
        """Drop a held lock."""
        lock = event.lock
        _settled(lock)
        lock.mode = None
        if not self._parts(lock, event):
            self._drop(event)

    def withdraw(self, event: Withdraw) -> None:
        """Ask the master not to let this lock wait any longer; it still answers once."""
        lock = event.lock
        if lock.requested is None or lock.cancelling:
            return
        lock.cancelling = True
        self._here.waits.end(LOCK, lock.id)
        if not self._here.frozen and (lock.sequence or lock.granted is not None):
            self._cancel(lock)

    def must_wait(self, lock: Lock, mode: Mode, flags: int) -> bool:
        """Tell whether this conversion is refused because names made here are not known yet.

        So it is for a lock that parts, unless it is weakened further; and where the master may
        weaken what we hold before it grants what we want.
        """
        held = lock.granted
        assert held is not None
        if lock.parting is not None:
            return lock.mode is None or not is_down(lock.mode, mode)
        undecided = floor(held, mode, flags) is not held and not is_down(held, mode)
        return undecided and self._reveals(lock)

    # -- what the master says --------------------------------------------------------------------

    def granted(self, sender: int, message: Granted) -> None:
        """Take a grant."""
        lock = self._pending(message.lock)
        if lock is None:
            return
        self._attach(lock, sender)
        if message.lvb is not None:
            lock.lvb, lock.lvb_sequence = message.lvb, message.lvb_sequence
        elif lock.offered is not None and _writes(lock, message.mode):
            lock.lvb, lock.lvb_sequence = lock.offered, message.lvb_sequence
        lock.mode = lock.granted = message.mode
        lock.demoted = lock.demoted or message.demoted
        lock.known_sequence, lock.lvb_valid = message.lvb_sequence, message.lvb_valid
        self._complete(lock, Status.GRANTED)

    def queued(self, sender: int, message: Queued) -> None:
        """Learn our place in the queue, and the master."""
        lock = self._pending(message.lock)
        if lock is None:
            return
        self._attach(lock, sender)
        lock.sequence = message.sequence
        if lock.granted is not None:
            lock.granted = message.granted
        if lock.cancelling:
            self._cancel(lock)

    def denied(self, _sender: int, message: Denied) -> None:
        """Take a no: a new lock is gone, a held one is as before."""
        lock = self._pending(message.lock)
        if lock is None:
            return
        if lock.granted is not None:
            lock.mode = lock.granted = message.granted
        status = message.status
        if status is Status.CANCELLED and lock.deadlock:
            status = Status.DEADLOCK
        elif status is Status.DEADLOCK:
            lock.deadlock = message.story
        self._complete(lock, status)
        if lock.granted is None:
            self._forget(lock)

    def blocking(self, _sender: int, message: Blocking) -> None:
        """Pass on that we block somebody, unless we have meanwhile made way."""
        lock = self.locks.get(message.lock)
        self._mastery.claims.flush()  # whatever is given up soon will wait for these
        if lock is None or lock.granted is None:
            return
        held = lock.granted if lock.parting is None else lock.mode
        if held is None or held.compatible(message.mode):
            return
        if lock.blocked_for is None or lock.blocked_for < message.mode:
            lock.blocked_for = message.mode
        self._here.effects.append(Notify(lock, message.mode))

    def mastered(self, _sender: int, message: Mastered) -> None:
        """Become the master of the root of our own first request, and serve that."""
        lock = self._pending(message.lock)
        if lock is not None:
            tree = self._mastery.adopt(lock.name.root)
            self._mastery.serve(tree, self._request(lock, Route.DIRECT))

    def claimed(self, sender: int, message: Claimed) -> None:
        """Learn that the directory knows names made here: what waited for that may go."""
        self._mastery.claims.acknowledged(sender, message)
        self._part()

    # -- recovery --------------------------------------------------------------------------------

    def lose(self) -> None:
        """Void everything."""
        for lock in tuple(self.pending.values()):
            self._complete(lock, Status.LOST)
        for lock in self.locks.values():
            lock.mode = lock.granted = lock.parting = None
        self.locks.clear()
        self.roots.clear()
        self.parting.clear()

    def records(self, root: bytes) -> list[Record]:
        """Return our locks under `root` for its master: what it cannot know otherwise.

        What the master has not acknowledged is asked again after the recovery, except that a
        conversion that may have changed the mode at the master is told with sequence 0.
        """
        return [_record(lock) for lock in self.roots[root].locks.values()]

    def resume(self) -> None:
        """Locks move again: under their new masters, ask for everything not yet acknowledged."""
        here = self._here
        for root in self.roots.values():
            root.master, root.as_of = root.next_master, here.epoch
            root.incarnation = root.next_incarnation
        self._part()
        for lock in tuple(self.pending.values()):
            if lock.granted is None and not lock.sequence:
                self._ask(lock)
            elif not lock.sequence:
                lock.demoted = bool(lock.flags & _CONVDEADLK)  # perhaps, and nobody knows
                self._convert(lock)
            if lock.cancelling and (lock.sequence or lock.granted is not None):
                self._cancel(lock)

    def validate(self) -> None:
        """Assert the invariants of this node's own locks."""
        for number, lock in self.locks.items():
            assert lock.id == number
            assert (lock.requested is not None) == (number in self.pending)
            known = lock.granted is not None or lock.sequence != 0
            root = self.roots.get(lock.name.root)
            assert known == (root is not None and number in root.locks), lock
            assert (lock.parting is not None) == (number in self.parting)
            if lock.granted is not None and lock.requested is None and lock.parting is None:
                assert lock.mode is lock.granted
            assert lock.requested is not None or (LOCK, number) not in self._here.waits.by_key
        for root in self.roots.values():
            assert root.locks

    # -- below -----------------------------------------------------------------------------------

    def _reveals(self, lock: Lock) -> bool:
        """Tell whether others might now learn a name that its directory node does not know.

        The name may have been written wherever a lock let us write.
        """
        return lock.granted in _WRITERS and self._mastery.claims.pending

    def _parts(self, lock: Lock, event: Change | Release) -> bool:
        """Tell whether the master hears of this later; until then we hold what we held."""
        if lock.parting is None and not self._reveals(lock):
            return False
        lock.parting = event if lock.parting is None else _merged(lock.parting, event)
        self.parting.pop(lock.id, None)
        self.parting[lock.id] = self._mastery.claims.last
        self._mastery.claims.flush()
        return True

    def _part(self) -> None:
        """Do what was put off, as far as the names made before it are known."""
        claims = self._mastery.claims
        while self.parting:
            number, claim = next(iter(self.parting.items()))
            if not claims.reached(claim):
                return
            del self.parting[number]
            lock = self.locks[number]
            event, lock.parting = lock.parting, None
            if isinstance(event, Release):
                self._drop(event)
            else:
                assert event is not None
                self._weaken(event)

    def _weaken(self, event: Change) -> None:
        lock, mode = event.lock, event.mode
        if _writes(lock, mode):
            _note_written(lock, event.flags, event.lvb)
        lock.granted = mode
        self._tell_master(lock, event.flags, event.lvb, mode)

    def _drop(self, event: Release) -> None:
        self._tell_master(event.lock, event.flags, event.lvb, None)
        self._forget(event.lock)

    def _ask(self, lock: Lock) -> None:
        name, here = lock.name, self._here
        if self._mastery.masters(name.root):
            tree = self._mastery.trees[name.root]
            self._mastery.serve(tree, self._request(lock, Route.DIRECT))
            return
        root = self.roots.get(name.root)
        if root is not None:
            here.send(root.master, self._request(lock, Route.DIRECT))
            return
        master = self._remembered.get(name.root)
        if master in here.members:
            here.send(master, self._request(lock, Route.DIRECT))
        else:
            here.send(here.directory_of(name.root), self._request(lock, Route.ASK))

    def _request(self, lock: Lock, route: Route) -> Request:
        here, name = self._here, lock.name
        assert lock.requested is not None
        return Request(
            here.epoch,
            here.me,
            lock.id,
            name.root,
            name.leaf,
            lock.requested,
            lock.flags,
            lock.owner,
            route,
        )

    def _convert(self, lock: Lock) -> None:
        here = self._here
        assert lock.requested is not None
        master = self.roots[lock.name.root].master
        here.send(master, Convert(here.epoch, lock.id, lock.requested, lock.flags, lock.offered))

    def _cancel(self, lock: Lock) -> None:
        here = self._here
        here.send(self.roots[lock.name.root].master, Cancel(here.epoch, lock.id))

    def _tell_master(self, lock: Lock, flags: int, lvb: bytes | None, mode: Mode | None) -> None:
        """Send a demotion (or, without a mode, a release) that has just taken effect.

        It goes to the master whom our records went to last, in that epoch. If another recovery has
        begun since, it arrives before our next records, which show the new state; then the master
        needs it for the LVB only. If that master is gone, the new one will doubt the LVB.
        """
        here, root = self._here, self.roots[lock.name.root]
        epoch, master = here.told_epoch, root.next_master
        if not here.alive(master, root.next_incarnation):
            return
        if mode is None:
            here.send(master, Unlock(epoch, lock.id, flags, lvb))
        else:
            here.send(master, Demote(epoch, lock.id, mode, flags, lvb))

    def _pending(self, number: int) -> Lock | None:
        lock = self.pending.get(number)
        if lock is None:
            self._here.misdirected += 1
        return lock

    def _attach(self, lock: Lock, master: int) -> None:
        root = self.roots.get(lock.name.root)
        if root is None:
            here = self._here
            root = Root(master, here.members[master], here.epoch)
            self.roots[lock.name.root] = root
        assert root.master == master, (lock, root.master, master)
        root.locks[lock.id] = lock

    def _complete(self, lock: Lock, status: Status) -> None:
        del self.pending[lock.id]
        lock.requested, lock.sequence, lock.cancelling = None, 0, False
        lock.offered = None
        lock.turn = self._here.waits.next_stamp()
        self._here.waits.end(LOCK, lock.id)
        if status is not Status.DEADLOCK:
            lock.deadlock = ""
        if status is Status.GRANTED:
            lock.blocked_for = None  # the master will say it again if it is still so
        self._here.effects.append(Complete(lock, status))

    def _forget(self, lock: Lock) -> None:
        del self.locks[lock.id]
        lock.mode = lock.granted = None
        root = self.roots.get(lock.name.root)
        if root is not None and root.locks.pop(lock.id, None) is not None and not root.locks:
            del self.roots[lock.name.root]
            if root.master != self._here.me:
                self._remember(lock.name.root, root.master)

    def _remember(self, root: bytes, master: int) -> None:
        self._remembered.pop(root, None)
        if len(self._remembered) >= _REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[root] = master


def _settled(lock: Lock) -> Mode:
    """Return the mode of a lock that is held and not changing; raises LockBusy if it is."""
    assert lock.granted is not None or lock.requested is not None, "the lock is not held"
    if lock.requested is not None or lock.granted is None:
        raise LockBusy(repr(lock))
    assert lock.mode is not None, "the lock was released"
    return lock.mode


def _merged(before: Change | Release, event: Change | Release) -> Change | Release:
    """Return one weakening in place of two; the later one writes the value if it can and wants."""
    assert isinstance(before, Change)
    if before.mode < Mode.PW or not event.flags & _LVB:
        return msgspec.structs.replace(event, flags=before.flags, lvb=before.lvb)
    return event


def _writes(lock: Lock, mode: Mode) -> bool:
    """Tell whether a grant of `mode` moves the LVB from the holder to the resource."""
    return lock.granted is not None and LVB_TRANSFER[lock.granted][mode] is Transfer.WRITE


def _note_written(lock: Lock, flags: int, lvb: bytes | None) -> None:
    """Do with our LVB what the master will do with the resource's."""
    if flags & _IVVALBLK:
        lock.lvb_valid = False
    elif flags & _VALBLK and lvb is not None:
        lock.lvb, lock.lvb_valid = lvb, True
        lock.known_sequence += 1
        lock.lvb_sequence = lock.known_sequence


def _record(lock: Lock) -> Record:
    undecided = lock.granted is not None and lock.requested is not None
    told = lock.sequence != 0 or (undecided and lock.mode is not lock.granted)
    return Record(
        lock.id,
        lock.name.root,
        lock.name.leaf,
        lock.granted,
        lock.requested if told else None,
        lock.sequence,
        lock.flags,
        lock.owner,
        lock.uses_lvb,
        lock.lvb if lock.lvb_sequence else None,
        lock.lvb_sequence,
        lock.known_sequence,
        lock.lvb_valid,
    )
