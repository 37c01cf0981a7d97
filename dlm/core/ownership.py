"""This node's own locks: asked for, held, converting, told that they block somebody. PURE.

What a lock's holder says about it is the truth: a weaker mode or a release counts from the moment
its user said so, a stronger one from the moment the master's word arrived here.

A first request goes to the master if another lock of the same root already knows it; else to whom
we remember as the master, who passes it to the directory node if that is no longer so; else to the
directory node. The answer tells who the master is. Until then nothing else is sent for that lock.

A root whose master is gone is frozen, and no other one is: requests and conversions wait; releases
and demotions take effect at once. We tell our locks to whoever may become the new master. When one
says that it has, as of what we told it then, we tell it what we have weakened or released since,
and ask for what is still open. What a master says in another term than that of the root is void; if
the term is to come, it waits.
"""

from collections.abc import Callable
from typing import Any

from dlm.core.holding import Holding
from dlm.core.mastery import Mastery
from dlm.core.own_lock import Answer, Root, merged, note_written, settled, writes
from dlm.core.situation import Situation
from dlm.core.tree import Tree
from dlm.core.waits import LOCK
from dlm.effects import Complete, Notify
from dlm.errors import LockBusy
from dlm.events import Acquire, Change, Lock, Release, Withdraw
from dlm.messages import (
    ASK,
    CANCELLED,
    DEADLOCK,
    DIRECT,
    GRANTED,
    LOST,
    Blocking,
    Cancel,
    Claimed,
    Convert,
    Demote,
    Denied,
    Granted,
    Mastered,
    Queued,
    Request,
    Route,
    Status,
    Unlock,
)
from dlm.modes import CR, CW, EX, NL, PW, Flags, Mode, floor, is_down, may_queue_conversion

_NOQUEUE = int(Flags.NOQUEUE)
_VALBLK, _IVVALBLK = int(Flags.VALBLK), int(Flags.IVVALBLK)
_QUECVT = int(Flags.QUECVT)
_LVB = _VALBLK | _IVVALBLK
_CONVDEADLK, _EXPEDITE = int(Flags.CONVDEADLK), int(Flags.EXPEDITE)
_ALTERNATE = int(Flags.ALTPR | Flags.ALTCW)
_REMEMBERED = 10_000
_WRITERS = (CW, PW, EX)


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
        self.holding = Holding(here, self._tell_user)
        self._last_id = 0

    # -- what the user does ----------------------------------------------------------------------

    def acquire(self, event: Acquire) -> None:
        """Ask for a new lock."""
        lock, flags = event.lock, event.flags
        assert not lock.id, "a lock is asked for once"
        assert not flags & (_QUECVT | _CONVDEADLK), "only conversions take these flags"
        assert not flags & _EXPEDITE or (event.mode is NL and not flags & _NOQUEUE)
        self._last_id += 1
        lock.id, lock.requested, lock.flags = self._last_id, event.mode, flags
        lock.uses_lvb = bool(flags & _LVB)
        self.locks[lock.id] = self.pending[lock.id] = lock
        if lock.transaction is not None:
            self._here.waits.begin_lock(lock, self._here.now_s)
        if self._here.frozen:
            return
        root = lock.name.root
        if event.new and root not in self._mastery.trees:
            self._serve(self._mastery.make(root), lock)
        else:
            self.ask(lock)

    def change(self, event: Change) -> None:
        """Convert a held lock. Weakening completes here and now."""
        lock, mode, flags = event.lock, event.mode, event.flags
        held = settled(lock)
        if self.must_wait(lock, mode, flags):
            raise LockBusy(repr(lock))
        assert not flags & _EXPEDITE
        assert not flags & _ALTERNATE or held <= CR, "the other mode may be weaker"
        assert not flags & _QUECVT or may_queue_conversion(held, mode)
        assert not (flags & _CONVDEADLK and flags & _NOQUEUE)
        lock.flags, lock.demoted = flags, False
        lock.turn = self._here.waits.next_stamp()
        lock.uses_lvb = lock.uses_lvb or bool(flags & _LVB)
        if is_down(held, mode):
            self._here.effects.append(Complete(lock, GRANTED))
            self.holding.made_way(lock)
            lock.mode, lock.blocked_for = mode, None
            if not self._parts(lock, event):
                self._weaken(event)
            return
        lock.offered = event.lvb
        lock.requested, lock.sequence = mode, 0
        lock.mode = floor(held, mode, flags)
        self.pending[lock.id] = lock
        if lock.transaction is not None:
            self._here.waits.begin_lock(lock, self._here.now_s)
        self.convert(lock)

    def release(self, event: Release) -> None:
        """Drop a held lock."""
        lock = event.lock
        settled(lock)
        self.holding.made_way(lock)
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
        if lock.sequence or lock.granted is not None:
            self.cancel(lock)

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
        lock = self.pending.get(message.lock)
        if lock is None:
            if message.lock not in self.locks:  # asked for twice: we have had it, or gave it up
                self._here.send(sender, Unlock(message.term, message.lock, 0, None))
            return
        if not self._attach(lock, sender, message):
            return
        if message.lvb is not None:
            lock.lvb, lock.lvb_sequence = message.lvb, message.lvb_sequence
        elif lock.offered is not None and writes(lock, message.mode):
            lock.lvb, lock.lvb_sequence = lock.offered, message.lvb_sequence
        lock.mode = lock.granted = message.mode
        lock.demoted = lock.demoted or message.demoted
        lock.known_sequence, lock.lvb_valid = message.lvb_sequence, message.lvb_valid
        self.holding.granted(lock, sender)
        self._complete(lock, GRANTED)

    def queued(self, sender: int, message: Queued) -> None:
        """Learn our place in the queue, and the master."""
        lock = self.pending.get(message.lock)
        if lock is None:
            if message.lock not in self.locks:
                self._here.send(sender, Cancel(message.term, message.lock))
            return
        if not self._attach(lock, sender, message):
            return
        self.holding.answered(lock, sender)
        lock.sequence = message.sequence
        if lock.granted is not None:
            lock.granted = message.granted
        if lock.cancelling:
            self.cancel(lock)

    def denied(self, sender: int, message: Denied) -> None:
        """Take a no: a new lock is gone, a held one is as before.

        That no master has a lock counts whoever says it: the one that was asked may have given the
        root up since, and we may know the next master already, by another lock.
        """
        lock = self.pending.get(message.lock)
        if lock is None:
            return
        unknown = lock.granted is None and not lock.sequence
        if not unknown and not self._is_of_present_term(lock, sender, message):
            return
        if lock.granted is not None:
            lock.mode = lock.granted = message.granted
        status = message.status
        if status is CANCELLED and lock.deadlock:
            status = DEADLOCK
        elif status is DEADLOCK:
            lock.deadlock = message.story
        self._complete(lock, status)
        if lock.granted is None:
            self._forget(lock)

    def blocking(self, sender: int, message: Blocking) -> None:
        """Pass on that we block somebody, unless we have meanwhile made way."""
        lock = self.locks.get(message.lock)
        self._mastery.claims.flush()  # whatever is given up soon will wait for these
        if lock is None or not self._is_of_present_term(lock, sender, message):
            return
        held = lock.granted if lock.parting is None else lock.mode
        if held is not None and not held.compatible(message.mode):
            self.holding.told(lock, message.mode)

    def mastered(self, sender: int, message: Mastered) -> None:
        """Become the master of the root of our own first request, and serve that."""
        here, root = self._here, message.root
        lock = self.pending.get(message.lock)
        if message.epoch != here.epoch or sender != here.directory_of(root):
            if here.directory_of(root) == sender:
                self._mastery.disown(sender, root, message.term)
            if lock is not None:
                self.ask(lock)  # the directory has moved: only its present word counts
            return
        tree = self._mastery.adopt(root, message.term)
        if lock is not None:
            self._serve(tree, lock)
        self._mastery.keep_or_remove(tree)

    def claimed(self, sender: int, message: Claimed) -> None:
        """Learn that the directory knows names made here: what waited for that may go."""
        self._mastery.claims.acknowledged(sender, message)
        self.part()

    # -- a new master ----------------------------------------------------------------------------

    def lose(self) -> None:
        """Void everything."""
        for lock in tuple(self.pending.values()):
            self._complete(lock, LOST)
        for lock in self.locks.values():
            lock.mode = lock.granted = lock.parting = None
        self.locks.clear()
        self.roots.clear()
        self.parting.clear()
        self.holding.clear()

    def ask_again(self, root: bytes | None = None) -> None:
        """Ask for what nobody has been asked for, or members that are lost may have taken along."""
        for lock in tuple(self.pending.values()):
            if root is not None and lock.name.root != root:
                continue
            if lock.granted is None and not lock.sequence:
                self.ask(lock)

    def hear(self, early: list[tuple[int, Answer]]) -> None:
        """Take what came before its term had begun here."""
        hear: dict[type, Callable[[int, Any], None]] = {
            Granted: self.granted,
            Queued: self.queued,
            Denied: self.denied,
            Blocking: self.blocking,
        }
        for sender, message in early:
            if sender in self._here.members:
                hear[type(message)](sender, message)

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
            assert root.locks or root.marks
            assert root.marks or not root.log
        self.holding.validate()

    # -- below -----------------------------------------------------------------------------------

    def _tell_user(self, lock: Lock, mode: Mode) -> None:
        if lock.blocked_for is None or lock.blocked_for < mode:
            lock.blocked_for = mode
        self._here.effects.append(Notify(lock, mode))

    def _reveals(self, lock: Lock) -> bool:
        """Tell whether others might now learn a name that its directory node does not know.

        The name may have been written wherever a lock let us write.
        """
        return lock.granted in _WRITERS and self._mastery.claims.pending

    def _parts(self, lock: Lock, event: Change | Release) -> bool:
        """Tell whether the master hears of this later; until then we hold what we held."""
        if lock.parting is None and not self._reveals(lock):
            return False
        lock.parting = event if lock.parting is None else merged(lock.parting, event)
        self.parting.pop(lock.id, None)
        self.parting[lock.id] = self._mastery.claims.last
        self._mastery.claims.flush()
        return True

    def part(self) -> None:
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
        if writes(lock, mode):
            note_written(lock, event.flags, event.lvb)
        lock.granted = mode
        self._tell_master(lock, event.flags, event.lvb, mode)

    def _drop(self, event: Release) -> None:
        self._tell_master(event.lock, event.flags, event.lvb, None)
        self._forget(event.lock)

    def ask(self, lock: Lock) -> None:
        """Send the first request, unless its root is frozen."""
        self.holding.asked(lock)
        name, here = lock.name, self._here
        if here.frozen:
            return
        tree = self._mastery.mastered(name.root)
        if tree is not None:
            self._serve(tree, lock)
            return
        root = self.roots.get(name.root)
        if root is not None:
            if not self._is_frozen(root):
                here.send(root.master, self._request(lock, DIRECT))
            return
        master = self._remembered.get(name.root)
        if master in here.members:
            here.send(master, self._request(lock, DIRECT))
        else:
            here.send(here.directory_of(name.root), self._request(lock, ASK))

    def _serve(self, tree: Tree, lock: Lock) -> None:
        """Put our own request before the master, which we are."""
        assert lock.requested is not None
        self._mastery.serve(
            tree, self._here.me, lock.id, lock.name.leaf, lock.requested, lock.flags, lock.owner
        )

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
            here.incarnation,
        )

    def convert(self, lock: Lock) -> None:
        """Send the conversion, unless its root is frozen."""
        self.holding.asked(lock)
        root = self.roots[lock.name.root]
        assert lock.requested is not None
        if not self._is_frozen(root):
            message = Convert(root.term, lock.id, lock.requested, lock.flags, lock.offered)
            self._here.send(root.master, message)

    def cancel(self, lock: Lock) -> None:
        """Send the cancellation, unless its root is frozen."""
        root = self.roots[lock.name.root]
        if not self._is_frozen(root):
            self._here.send(root.master, Cancel(root.term, lock.id))

    def _tell_master(self, lock: Lock, flags: int, lvb: bytes | None, mode: Mode | None) -> None:
        """Send a demotion (or, without a mode, a release) that has just taken effect.

        If the root is frozen it waits for the new master; if nobody has been told of the lock
        either, there is nothing to take back.
        """
        root = self.roots[lock.name.root]
        message = (
            Unlock(root.term, lock.id, flags, lvb)
            if mode is None
            else Demote(root.term, lock.id, mode, flags, lvb)
        )
        if not self._is_frozen(root):
            self._here.send(root.master, message)
        elif root.marks:
            root.log.append(message)

    def _is_frozen(self, root: Root) -> bool:
        return root.moving is not None or not self._here.alive(root.master, root.incarnation)

    def _is_of_present_term(self, lock: Lock, sender: int, message: Answer) -> bool:
        """Tell whether the master's word counts; one of a term to come is kept for it."""
        root = self.roots.get(lock.name.root)
        if root is None or root.term == message.term:
            return True
        if message.term > root.term:
            root.early.append((sender, message))
        return False

    def _attach(self, lock: Lock, master: int, message: Granted | Queued) -> bool:
        """Note that the master knows the lock, if its word counts; see above."""
        root = self.roots.get(lock.name.root)
        if root is None:
            root = Root(master, self._here.members[master], message.term)
            self.roots[lock.name.root] = root
        elif root.term != message.term:
            return self._is_of_present_term(lock, master, message)
        assert root.master == master, (lock, root.master, master)
        root.locks[lock.id] = lock
        return True

    def _complete(self, lock: Lock, status: Status) -> None:
        del self.pending[lock.id]
        lock.requested, lock.sequence, lock.cancelling = None, 0, False
        lock.offered = None
        lock.turn = self._here.waits.next_stamp()
        if lock.transaction is not None:
            self._here.waits.end(LOCK, lock.id)
        if status is not DEADLOCK:
            lock.deadlock = ""
        if status is GRANTED:
            lock.blocked_for = None  # the master will say it again if it is still so
        self._here.effects.append(Complete(lock, status))

    def _forget(self, lock: Lock) -> None:
        del self.locks[lock.id]
        lock.mode = lock.granted = None
        root = self.roots.get(lock.name.root)
        if root is None or root.locks.pop(lock.id, None) is None:
            return
        if not root.locks and not root.marks:
            del self.roots[lock.name.root]
            if self._is_frozen(root):
                self.ask_again(lock.name.root)
            elif root.master != self._here.me:
                self._remember(lock.name.root, root.master)
            self.hear(root.early)

    def _remember(self, root: bytes, master: int) -> None:
        self._remembered.pop(root, None)
        if len(self._remembered) >= _REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[root] = master
