"""What is true of one lock of this node's own, and of the root that it is under. PURE."""

import msgspec

from dlm.errors import LockBusy
from dlm.events import Change, Lock, Release
from dlm.messages import Blocking, Demote, Denied, Granted, Queued, Record, Unlock
from dlm.modes import LVB_TRANSFER, Flags, Mode, Transfer

Answer = Granted | Queued | Denied | Blocking

_VALBLK = int(Flags.VALBLK)
_IVVALBLK = int(Flags.IVVALBLK)
_LVB = _VALBLK | _IVVALBLK


class Root:
    """A root under which we have locks, and who masters it."""

    __slots__ = ("early", "incarnation", "locks", "log", "marks", "master", "moving", "term")

    def __init__(self, master: int, incarnation: int, term: int) -> None:
        self.master = master
        self.incarnation = incarnation
        self.term = term
        self.locks: dict[int, Lock] = {}  # those the master knows: held or queued there
        self.marks: dict[int, int] = {}  # where the log began when we told our locks, by tag
        self.log: list[Demote | Unlock] = []  # done since we first told our locks to anybody
        self.early: list[tuple[int, Answer]] = []  # of a term to come
        self.moving: tuple[int, int] | None = None  # to this start of a node; until it reigns


def settled(lock: Lock) -> Mode:
    """Return the mode of a lock that is held and not changing; raises LockBusy if it is."""
    assert lock.granted is not None or lock.requested is not None, "the lock is not held"
    if lock.requested is not None or lock.granted is None:
        raise LockBusy(repr(lock))
    assert lock.mode is not None, "the lock was released"
    return lock.mode


def merged(before: Change | Release, event: Change | Release) -> Change | Release:
    """Return one weakening in place of two; the later one writes the value if it can and wants."""
    assert isinstance(before, Change)
    if before.mode < Mode.PW or not event.flags & _LVB:
        return msgspec.structs.replace(event, flags=before.flags, lvb=before.lvb)
    return event


def writes(lock: Lock, mode: Mode) -> bool:
    """Tell whether a grant of `mode` moves the LVB from the holder to the resource."""
    return lock.granted is not None and LVB_TRANSFER[lock.granted][mode] is Transfer.WRITE


def note_written(lock: Lock, flags: int, lvb: bytes | None) -> None:
    """Do with our LVB what the master will do with the resource's."""
    if flags & _IVVALBLK:
        lock.lvb_valid = False
    elif flags & _VALBLK and lvb is not None:
        lock.lvb, lock.lvb_valid = lvb, True
        lock.known_sequence += 1
        lock.lvb_sequence = lock.known_sequence


def record(lock: Lock) -> Record:
    """Return what a new master must be told of this lock."""
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
