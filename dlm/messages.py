"""What nodes say to each other about locks: MessagePack arrays that start with a tag. PURE.

A lock is named by its owner's node and the number that node gave it; the master keeps its copy
under that pair, so only a first request carries the resource's name. What passes between a lock's
owner and its master belongs to a term, one reign of one master over one tree, and is void in any
other; everything else carries its sender's lock epoch. See docs/protocols/locks.md and
docs/protocols/lock-recovery.md.

Fields are only ever appended, with defaults: an older node then still reads a newer one.
"""

import enum
from collections.abc import Callable

import msgspec

from dlm.fields import (
    Count,
    Epoch,
    FlagBits,
    Kind,
    LockId,
    NamePart,
    NodeId,
    Owner,
    Priority,
    Sequence,
    State,
    Story,
    Term,
    Thing,
    Value,
    Words,
)
from dlm.modes import Mode
from dlm.moving import Abandon, Freeze, Frozen, Handover, Move, Noted, Settled
from dlm.range_messages import RangeMessage


class BadMessage(ValueError):
    """The bytes are no message of this protocol."""


class Route(enum.IntEnum):
    """How a request reached its reader."""

    ASK = 0  # requester to directory node: whoever masters it
    DIRECT = 1  # requester to master, which the requester knows
    FORWARDED = 2  # directory node to master
    MAKER = 3  # directory node to whoever may have made the root up: do you master it?
    UNMADE = 4  # and back: no


class Status(enum.IntEnum):
    """How a request or conversion ended."""

    GRANTED = 0
    WOULD_BLOCK = 1
    DEADLOCK = 2
    CANCELLED = 3
    LOST = 4  # this node was removed


# As for modes: what every transition looks at has a name of the module.
ASK, DIRECT, FORWARDED, MAKER, UNMADE = Route
GRANTED, WOULD_BLOCK, DEADLOCK, CANCELLED, LOST = Status


class Request(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=1):
    """Queue a new lock of `origin` for root/leaf in `mode`."""

    epoch: Epoch
    origin: NodeId
    lock: LockId
    root: NamePart
    leaf: NamePart
    mode: Mode
    flags: FlagBits
    owner: Owner
    route: Route
    incarnation: Count = 0  # of the origin
    term: Term = 0  # forwarded: of the master's reign


class Convert(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=2):
    """Owner to master: change the mode; answered."""

    term: Term
    lock: LockId
    mode: Mode
    flags: FlagBits
    lvb: Value | None


class Demote(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=3):
    """Owner to master: I have weakened my lock to `mode`; not answered."""

    term: Term
    lock: LockId
    mode: Mode
    flags: FlagBits
    lvb: Value | None


class Unlock(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=4):
    """Owner to master: I have dropped my lock; not answered."""

    term: Term
    lock: LockId
    flags: FlagBits
    lvb: Value | None


class Cancel(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=5):
    """Owner to master: if this lock still waits, it shall not."""

    term: Term
    lock: LockId


class Granted(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=6):
    """Master to owner: your request or conversion is done, you hold `mode`."""

    term: Term
    lock: LockId
    mode: Mode
    demoted: bool
    lvb_valid: bool
    lvb_sequence: Count
    lvb: Value | None  # None: keep what you have


class Queued(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=7):
    """Master to owner: you wait, at this place; meanwhile you hold `granted`."""

    term: Term
    lock: LockId
    sequence: Sequence
    granted: Mode | None


class Denied(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=8):
    """Master to owner: no; you hold what you held."""

    term: Term
    lock: LockId
    status: Status
    granted: Mode | None
    story: Story = ""  # of a deadlock: who waits for whom


class Blocking(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=9):
    """Master to owner: somebody waits for `mode` because of your lock (a BAST)."""

    term: Term
    lock: LockId
    mode: Mode


class Mastered(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=10):
    """Directory node to requester: nobody has this root; you are its master now."""

    epoch: Epoch
    lock: LockId
    root: NamePart
    term: Term


class Remove(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=11):
    """Master to directory node: forget this root unless you forwarded more than I have seen."""

    epoch: Epoch
    root: NamePart
    term: Term
    forwards: Count  # requests, of all roots, that this start of yours has forwarded to me


class Removed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=12):
    """Directory node to master: forgotten; you may forget it too."""

    epoch: Epoch
    root: NamePart
    term: Term


class Reign(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One root, and the term of its master."""

    root: NamePart
    term: Term


class Seat(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Who masters a root."""

    root: NamePart
    term: Term
    master: NodeId
    incarnation: Count


class Seats(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=13):
    """Master to directory node: what I master under you. `last`: that and my Locks are all."""

    epoch: Epoch
    seats: tuple[Seat, ...]
    last: bool


class Reigns(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=14):
    """New master to owner: I master these, as of what you told under `tag`; term 0: nobody.

    The tag is the epoch in which the owner told its locks, or the term of a Freeze.
    """

    epoch: Epoch
    tag: Epoch | Term
    reigns: tuple[Reign, ...]


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One lock as its owner knows it."""

    lock: LockId
    root: NamePart
    leaf: NamePart
    granted: Mode | None
    requested: Mode | None
    sequence: Sequence
    flags: FlagBits
    owner: Owner
    uses_lvb: bool
    lvb: Value | None  # as it last read or wrote it
    lvb_sequence: Count  # of that value
    known_sequence: Count  # of the resource's value at its last grant or write
    lvb_valid: bool  # at that time


class Locks(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=15):
    """Owner to new master: these are my locks under `roots`.

    `tag` is the epoch, `roots` carry the term that ended, and the `last` of Seats ends it.
    """

    tag: Epoch
    roots: tuple[Reign, ...]
    records: tuple[Record, ...]


class Blocker(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One thing that is in the way of a wait, as the node that queues the wait sees it."""

    kind: Kind
    number: Thing
    state: State  # what is held of it, says that node; the thing's home knows whether that is so
    place: Sequence = 0  # of the one that goes first and is the one kept waiting; 0: none
    behind: Words = ""  # that one, for people
    behind_node: Count = 0  # its home, and its number there
    behind_number: Thing = 0


class Hop(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One wait on a path of waits, and by what it is in the way of the wait before it."""

    node: NodeId
    priority: Priority
    owner: Count  # its number on `node`
    kind: Kind
    number: Thing
    stamp: Count  # which wait for that thing
    who: Words
    wants: Words
    blocker: Blocker | None = None  # None at the start of a path, until it has become a cycle
    blocker_stamp: Count = 0
    holds: Words = ""


class Probe(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=40):
    """Home to the queue's node: who is in the way of the path's last wait?"""

    epoch: Epoch
    search: Count
    path: tuple[Hop, ...]


class Chase(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=41):
    """The queue's node to a blocker's home: these are in the way; what do they wait for?"""

    epoch: Epoch
    search: Count
    path: tuple[Hop, ...]
    blockers: tuple[Blocker, ...]


class Confirm(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=42):
    """Once more around the cycle: is hop `at` still as it was, at its home or in its queue?

    Or, at the home of the wait that hop `at` stands behind: does that one still wait?
    """

    epoch: Epoch
    cycle: tuple[Hop, ...]
    at: Count
    home: bool
    behind: bool = False
    held: State | None = None  # by that one, if hop `at` waits for this, too


class Claim(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=16):
    """Master to directory node: I made these roots and master them; acknowledged."""

    epoch: Epoch
    reigns: tuple[Reign, ...]


class Claimed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=17):
    """Directory node to master: I know the `count` oldest of the roots that you claimed."""

    epoch: Epoch
    count: Count


class Verify(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=36):
    """Directory node to master: I have missed a view; ask me to remove what you do not master."""

    epoch: Epoch
    reigns: tuple[Reign, ...]


Message = (
    Request
    | Convert
    | Demote
    | Unlock
    | Cancel
    | Granted
    | Queued
    | Denied
    | Blocking
    | Mastered
    | Remove
    | Removed
    | Seats
    | Reigns
    | Locks
    | Probe
    | Chase
    | Confirm
    | Claim
    | Claimed
    | Verify
    | Freeze
    | Frozen
    | Handover
    | Settled
    | Move
    | Noted
    | Abandon
    | RangeMessage
)

_encoder = msgspec.msgpack.Encoder()
_message: Callable[[bytes], Message] = msgspec.msgpack.Decoder(Message).decode
_batch = msgspec.msgpack.Decoder(list[Message]).decode
_FAILURES = (ValueError, RecursionError)
_HEADERS = {0xDC: 3, 0xDD: 5}  # bytes of the header of a long array; of a short one, 1
_ARRAYS = {*range(0x90, 0xA0), *_HEADERS}  # what arrays begin with


def encode(message: Message) -> bytes:
    """Return the message as MessagePack."""
    return _encoder.encode(message)


def decode(body: bytes) -> Message:
    """Return the message in `body`; raises BadMessage if it is none."""
    try:
        return _message(body)
    except _FAILURES as error:
        raise BadMessage(str(error)) from error


def encode_all(messages: list[Message]) -> bytes:
    """Return a batch: one message as itself, several as an array of them."""
    return _encoder.encode(messages[0] if len(messages) == 1 else messages)


def decode_all(body: bytes) -> list[Message]:
    """Return the messages of a batch, in order; raises BadMessage if any of them is none."""
    try:
        return _batch(body) if _holds_arrays(body) else [_message(body)]
    except _FAILURES as error:
        raise BadMessage(str(error)) from error


def _holds_arrays(body: bytes) -> bool:
    """Tell a batch from a message, which begins with its tag, by the first byte within."""
    within = _HEADERS.get(body[0], 1) if body else 0
    return len(body) > within and body[within] in _ARRAYS
