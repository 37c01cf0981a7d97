"""One lockable resource on its master: who holds, converts and waits, and its LVB. PURE.

The rules and their order are those of Linux fs/dlm (`_can_be_granted`, `do_convert`,
`grant_pending_locks`). New requests are strictly first come, first served: a compatible one behind
an incompatible one waits too, so a stream of readers cannot starve a writer. Conversions are tried
before new requests and, unless QUECVT, overtake the conversions that wait.

A holder is told once per rising mode that it blocks somebody; a grant forgets what it was told.

Invariants: see `validate`.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import combinations

from dlm.core import conversion_deadlock
from dlm.core.master_copy import (
    LVB_FLAGS,
    Copy,
    is_for_good,
    is_in_the_way,
    loses_lvb,
    must_be_told,
    place,
)
from dlm.events import Name
from dlm.messages import Blocking, Denied, Granted, Message, Queued, Status
from dlm.modes import INCOMPATIBLE, LVB_TRANSFER, NL, Flags, Mode, Transfer, alternate, is_down

Send = Callable[[int, Message], None]

_NOQUEUE, _NOQUEUEBAST = int(Flags.NOQUEUE), int(Flags.NOQUEUEBAST)
_VALBLK, _IVVALBLK = int(Flags.VALBLK), int(Flags.IVVALBLK)
_QUECVT, _EXPEDITE = int(Flags.QUECVT), int(Flags.EXPEDITE)
_CONVDEADLK, _NODLCKWT = int(Flags.CONVDEADLK), int(Flags.NODLCKWT)
_HEADQUE, _NOORDER = int(Flags.HEADQUE), int(Flags.NOORDER)
_ALTERNATE = int(Flags.ALTPR | Flags.ALTCW)

_READ, _WRITE = Transfer.READ, Transfer.WRITE


class Resource:
    """Queues and value block of one resource."""

    __slots__ = (
        "_head",
        "_held",
        "_tail",
        "converting",
        "granted",
        "leaf",
        "lvb",
        "lvb_sequence",
        "lvb_valid",
        "root",
        "term",
        "waiting",
    )

    def __init__(self, root: bytes, leaf: bytes, term: int) -> None:
        self.root = root
        self.leaf = leaf
        self.term = term  # the term of its tree
        self.granted: dict[Copy, None] = {}
        self.converting: list[Copy] = []
        self.waiting: list[Copy] = []
        self.lvb: bytes | None = None
        self.lvb_sequence = 0
        self.lvb_valid = True
        self._held = [0, 0, 0, 0, 0, 0]  # how many copies hold each mode, converting ones included
        self._tail = 0
        self._head = 0

    def request(self, copy: Copy, send: Send) -> None:
        """Grant, queue or refuse a new lock, and say which; `copy.requested` and flags are set."""
        if self._grantable(copy, now=True):
            self._grant(copy, send)
            self.settle(send)  # it may have overtaken some, and has to hear of them
        elif copy.flags & _NOQUEUE:
            send(copy.node, Denied(self.term, copy.lock, Status.WOULD_BLOCK, None))
            self._tell_blockers_of_refused(copy, send)
        else:
            self._enqueue(self.waiting, copy, send)
            self._tell_blockers(self._told(), copy, send)

    def convert(self, copy: Copy, mode: Mode, flags: int, lvb: bytes | None, send: Send) -> None:
        """Grant, queue or refuse a change of a granted lock's mode, and say which."""
        assert copy.granted is not None
        assert copy.requested is None, "a conversion is already in progress"
        copy.requested, copy.flags, copy.lvb, copy.demoted = mode, flags, lvb, False
        copy.uses_lvb = copy.uses_lvb or bool(flags & LVB_FLAGS)
        if self._grantable(copy, now=True):
            self._grant(copy, send)
            self.settle(send)
        elif not flags & _NOQUEUE and (other := self._deadlocked(copy)):
            self._convert_in_deadlock(copy, other, send)
        elif other := conversion_deadlock.jammed_by(self.converting, copy):
            self._refuse_in_deadlock(copy, other, send)
        else:
            self._queue_conversion(copy, send)

    def demote(self, copy: Copy, mode: Mode, flags: int, lvb: bytes | None, send: Send) -> None:
        """Weaken a granted lock; that cannot fail, and its holder has already done it."""
        assert copy.granted is not None
        assert copy.requested is None
        assert is_down(copy.granted, mode)
        self.weaken(copy, mode, flags, lvb)
        self.settle(send)

    def weaken(self, copy: Copy, mode: Mode, flags: int, lvb: bytes | None) -> None:
        """Note a weaker mode and take the holder's LVB, without looking who may go on."""
        assert copy.granted is not None
        if flags & LVB_FLAGS:
            copy.uses_lvb = True
            if LVB_TRANSFER[copy.granted][mode] is _WRITE:
                self._write_lvb(flags, lvb)
        self._held[copy.granted] -= 1
        self._held[mode] += 1
        copy.granted, copy.flags, copy.highbast = mode, flags, NL

    def unlock(self, copy: Copy, flags: int, lvb: bytes | None, send: Send) -> None:
        """Forget a granted lock."""
        self.drop(copy, flags, lvb)
        self.settle(send)

    def drop(self, copy: Copy, flags: int, lvb: bytes | None) -> None:
        """Forget a granted lock and take its LVB, without looking who may go on."""
        assert copy.granted is not None
        assert copy.requested is None
        if flags & LVB_FLAGS and copy.granted >= Mode.PW:
            self._write_lvb(flags, lvb)
        self._held[copy.granted] -= 1
        del self.granted[copy]

    def cancel(self, copy: Copy, send: Send) -> bool:
        """Take back what the lock waits for, if it waits; tell whether the lock is thereby gone."""
        if copy.requested is None:
            return False
        self.stop_waiting(copy)
        send(copy.node, Denied(self.term, copy.lock, Status.CANCELLED, copy.granted))
        self.settle(send)
        return copy.granted is None

    def stop_waiting(self, copy: Copy) -> None:
        """Forget what the lock waits for, without a word; what it holds stays."""
        assert copy.requested is not None
        if copy.granted is None:
            self.waiting.remove(copy)
        else:
            self.converting.remove(copy)
            self.granted[copy] = None
        copy.requested = None

    def bury(self, copy: Copy) -> None:
        """Forget a granted lock whose holder is gone without a word; call `settle` then."""
        assert copy.granted is not None
        if loses_lvb(copy):
            self.lvb_valid = False
        self._held[copy.granted] -= 1
        del self.granted[copy]

    def settle(self, send: Send, *, recover: bool = False) -> None:
        """Grant what has become grantable, then tell the holders whom they still block.

        With `recover`, waiting conversions are granted out of order, as queues that a recovery has
        put together may otherwise not get going.
        """
        if not self.converting and not self.waiting:
            return
        blocked, cw = self._grant_conversions(send, recover=recover)
        for copy in tuple(self.waiting):
            if self._grantable(copy, now=False):
                self.waiting.remove(copy)
                self._grant(copy, send)
            else:
                assert copy.requested is not None
                cw = cw or copy.requested is Mode.CW
                blocked = copy.requested if blocked is None else max(blocked, copy.requested)
        if blocked is not None:
            self._tell_holders(blocked, send, cw=cw)

    def blockers(self, copy: Copy) -> Iterator[tuple[Copy, Copy | None]]:
        """Yield each holder that must give way before a waiting copy is granted.

        It stands beside None if the two modes conflict, else beside one that goes before this copy
        and is kept waiting by that holder.
        """
        holders = dict.fromkeys((*self.granted, *self.converting))
        first: list[Copy | None] = [None]
        if not copy.flags & _NOORDER:
            first.extend(other for other in self._queued_before(copy) if is_for_good(other))
        for through in first:
            waiter = through or copy
            for holder in tuple(holders):
                assert holder.granted is not None
                if holder is not waiter and is_in_the_way(holder.granted, waiter):
                    del holders[holder]
                    yield holder, through

    @property
    def name(self) -> Name:
        """What it is called."""
        return Name(self.root, self.leaf)

    @property
    def empty(self) -> bool:
        """No lock is left, not even a waiting one."""
        return not (self.granted or self.converting or self.waiting)

    def copies(self) -> Iterable[Copy]:
        """Return all copies, in the order granted, converting, waiting."""
        return (*self.granted, *self.converting, *self.waiting)

    def restore(self, copies: Iterable[Copy]) -> None:
        """Fill the empty queues with copies that other nodes reported; then call `settle`."""
        for copy in copies:
            if copy.requested is None:
                self.granted[copy] = None
            elif copy.granted is not None:
                self.converting.append(copy)
            else:
                self.waiting.append(copy)
            if copy.granted is not None:
                self._held[copy.granted] += 1
        self.converting.sort(key=place)
        self.waiting.sort(key=place)
        places = [copy.sequence for copy in (*self.converting, *self.waiting)]
        self._tail = max(places, default=0)
        self._head = min(places, default=0)
        self._tail, self._head = max(self._tail, 0), min(self._head, 0)

    def validate(self, *, settled: bool = True) -> None:
        """Assert the invariants (slow); unless `settled`, somebody may wait without need."""
        holders = [c.granted for c in (*self.granted, *self.converting) if c.granted is not None]
        assert all(a.compatible(b) for a, b in combinations(holders, 2)), self
        assert self._held == [holders.count(mode) for mode in Mode], self
        assert all(c.granted is not None and c.requested is None for c in self.granted)
        assert all(c.granted is not None and c.requested is not None for c in self.converting)
        assert all(c.granted is None and c.requested is not None for c in self.waiting)
        for queue in (self.converting, self.waiting):
            places = [copy.sequence for copy in queue]
            assert places == sorted(set(places)), places
            if settled and queue:
                assert not self._grantable(queue[0], now=False), self
        if settled:
            self._validate_told()

    def _validate_told(self) -> None:
        """Whoever keeps a waiter from its mode has been told of a mode at least as strong.

        As in fs/dlm, conversions that wait in a deadlock because of NODLCKWT are left out.
        """
        converting = [copy for copy in self.converting if not self._deadlocked(copy)]
        for blocked in (*converting, *self.waiting):
            assert blocked.requested is not None
            for holder in self.granted:
                assert holder.granted is not None
                if holder.node > 0 and not holder.granted.compatible(blocked.requested):
                    assert not holder.granted.compatible(holder.highbast), (holder, blocked)

    def __repr__(self) -> str:
        queues = list(self.granted), self.converting, self.waiting
        return f"<Resource {self.root!r}/{self.leaf!r} {queues}>"

    def _queued_before(self, copy: Copy) -> Iterator[Copy]:
        """Yield whom the order lets go first."""
        queue = self.converting
        if copy.granted is None:
            yield from self.converting
            queue = self.waiting
        for other in queue:
            if other is copy:
                return
            yield other

    # -- granting --------------------------------------------------------------------------------

    def _grantable(self, copy: Copy, *, now: bool, recover: bool = False) -> bool:
        """Decide whether a copy may have its mode, or another that it is content with.

        If it is the other one, that is what it requests from here on.
        """
        if self._fits(copy, now=now, recover=recover):
            return True
        if not copy.flags & _ALTERNATE or (copy.granted is not None and self._deadlocked(copy)):
            return False
        wanted, other = copy.requested, alternate(copy.requested or NL, copy.flags)
        if other is not None:
            copy.requested = other
            if self._fits(copy, now=now):
                return True
            copy.requested = wanted
        return False

    def _fits(  # noqa: PLR0911  one return a rule, as in the original
        self, copy: Copy, *, now: bool, recover: bool = False
    ) -> bool:
        """Decide by the tests of fs/dlm's _can_be_granted, in its order.

        Unlike there, HEADQUE is as good as being at the head of the queue already; fs/dlm would put
        it there and not look again before something else changes, perhaps never.
        """
        if copy.flags & _EXPEDITE:
            return True
        if self._conflicts(copy):
            return False
        if copy.granted is not None:
            if recover or (now and not copy.flags & _QUECVT):
                return True
            if now:
                return not self.converting or bool(copy.flags & _HEADQUE)
            return bool(copy.flags & _NOORDER) or self.converting[0] is copy
        if copy.flags & _NOORDER:
            return True
        if self.converting:
            return False
        if now:
            return not self.waiting or bool(copy.flags & _HEADQUE)
        return self.waiting[0] is copy

    def _conflicts(self, copy: Copy) -> bool:
        held, own = self._held, copy.granted
        assert copy.requested is not None
        for mode in INCOMPATIBLE[copy.requested]:  # noqa: SIM110  twice as fast as any()
            if held[mode] > (mode is own):
                return True
        return False

    def _grant(self, copy: Copy, send: Send) -> None:
        mode, before, held = copy.requested, copy.granted, self._held
        assert mode is not None
        lvb: bytes | None = None
        if copy.flags & LVB_FLAGS:
            lvb = self._transfer_lvb(copy, _READ if before is None else LVB_TRANSFER[before][mode])
        if before is not None:
            held[before] -= 1
        held[mode] += 1
        self.granted[copy] = None
        copy.granted, copy.requested, copy.highbast, copy.lvb = mode, None, NL, None
        valid, sequence = self.lvb_valid, self.lvb_sequence
        send(copy.node, Granted(self.term, copy.lock, mode, copy.demoted, valid, sequence, lvb))

    def _grant_conversions(self, send: Send, *, recover: bool) -> tuple[Mode | None, bool]:
        """Grant what can be; return the strongest mode still blocked, and whether CW is blocked."""
        demotions_left = 1
        while True:
            blocked: Mode | None = None
            granted = demoted = cw = False
            for copy in tuple(self.converting):
                assert copy.requested is not None
                if self._grantable(copy, now=False, recover=recover):
                    self.converting.remove(copy)
                    self._grant(copy, send)
                    granted = True
                elif self._deadlocked(copy):
                    demoted = self._break_pending_deadlock(copy, send) or demoted
                else:
                    blocked = copy.requested if blocked is None else max(blocked, copy.requested)
                    cw = cw or copy.requested is Mode.CW
            if not granted and not (demoted and demotions_left):
                return blocked, cw
            demotions_left -= demoted and not granted

    def _enqueue(self, queue: list[Copy], copy: Copy, send: Send) -> None:
        if copy.flags & _HEADQUE:
            self._head -= 1
            copy.sequence = self._head
            queue.insert(0, copy)
        else:
            self._tail += 1
            copy.sequence = self._tail
            queue.append(copy)
        send(copy.node, Queued(self.term, copy.lock, copy.sequence, copy.granted))

    def _queue_conversion(self, copy: Copy, send: Send) -> None:
        if copy.flags & _NOQUEUE:
            send(copy.node, Denied(self.term, copy.lock, Status.WOULD_BLOCK, copy.granted))
            self._tell_blockers_of_refused(copy, send)
            copy.requested = None
            return
        del self.granted[copy]
        self._enqueue(self.converting, copy, send)
        self._tell_blockers(self._told(), copy, send)

    # -- conversion deadlock ---------------------------------------------------------------------

    def _deadlocked(self, copy: Copy) -> Copy | None:
        return conversion_deadlock.opponent(self.converting, copy)

    def _convert_in_deadlock(self, copy: Copy, other: Copy, send: Send) -> None:
        if copy.flags & _CONVDEADLK:
            self._demote_to_null(copy)
            self._grant_conversions(send, recover=False)
            if self._grantable(copy, now=True):
                self._grant(copy, send)
            else:
                if conversion_deadlock.jammed_by(self.converting, copy):
                    copy.flags &= ~_HEADQUE
                self._queue_conversion(copy, send)
            self.settle(send)  # what was given up may be all that others wait for
        elif copy.flags & _NODLCKWT:
            self._queue_conversion(copy, send)
            if copy.flags & _HEADQUE:
                self.settle(send)  # in front of the other it may be content with its other mode
        else:
            self._refuse_in_deadlock(copy, other, send)

    def _refuse_in_deadlock(self, copy: Copy, other: Copy, send: Send) -> None:
        story = conversion_deadlock.tell(copy, other)
        copy.requested = None
        send(copy.node, Denied(self.term, copy.lock, Status.DEADLOCK, copy.granted, story))

    def _break_pending_deadlock(self, copy: Copy, send: Send) -> bool:
        """Tell whether the waiting conversion gave up what it held."""
        assert copy.requested is not None
        if copy.flags & _CONVDEADLK:
            if copy.granted is NL:
                return False
            self._demote_to_null(copy)
            return True
        if copy.flags & _NODLCKWT and copy.highbast < copy.requested:
            copy.highbast = copy.requested
            send(copy.node, Blocking(self.term, copy.lock, copy.requested))
        return False

    def _demote_to_null(self, copy: Copy) -> None:
        assert copy.granted is not None
        self._held[copy.granted] -= 1
        self._held[NL] += 1
        copy.granted, copy.demoted = NL, True

    # -- telling holders -------------------------------------------------------------------------

    def _told(self) -> Iterable[Copy]:
        """Return whom it is of use to tell that they are in the way."""
        return self.granted

    def _tell_blockers(self, holders: Iterable[Copy], blocked: Copy, send: Send) -> None:
        """Tell those whom this one request waits for, when it begins to wait."""
        wanted = blocked.requested
        assert wanted is not None
        for holder in holders:
            if holder is not blocked and must_be_told(holder, wanted):
                holder.highbast = wanted
                send(holder.node, Blocking(self.term, holder.lock, wanted))

    def _tell_blockers_of_refused(self, copy: Copy, send: Send) -> None:
        if copy.flags & _NOQUEUEBAST:
            self._tell_blockers((*self.granted, *self.converting), copy, send)

    def _tell_holders(self, blocked: Mode, send: Send, *, cw: bool) -> None:
        """Tell all holders of the strongest mode that anybody still waits for."""
        for holder in self._told():
            assert holder.granted is not None
            if holder.granted is Mode.PR and cw:
                told = holder.highbast >= Mode.EX
            else:
                told = holder.highbast >= blocked or holder.granted.compatible(blocked)
            if not told:
                wanted = Mode.CW if cw and blocked is Mode.PR is holder.granted else blocked
                holder.highbast = wanted
                send(holder.node, Blocking(self.term, holder.lock, wanted))

    # -- value block -----------------------------------------------------------------------------

    def _transfer_lvb(self, copy: Copy, transfer: Transfer) -> bytes | None:
        """Move the LVB as a grant demands; return what the holder is to get, None for nothing."""
        if transfer is _READ:
            return self.lvb if copy.flags & _VALBLK else None
        if transfer is _WRITE:
            self._write_lvb(copy.flags, copy.lvb)
        return None

    def _write_lvb(self, flags: int, lvb: bytes | None) -> None:
        if flags & _IVVALBLK:
            self.lvb_valid = False
        elif flags & _VALBLK and lvb is not None:
            self.lvb, self.lvb_valid = lvb, True
            self.lvb_sequence += 1
