"""What nodes say to each other about ranges: who may have which bytes of what. PURE.

The ranges of one name are kept in one table, by the node that also is the directory node of the
name's root; see docs/protocols/ranges.md. A holder is named by its node and the number that node
gave it; so is a request. All carry their sender's lock epoch, and are void in any other.

Fields are only ever appended, with defaults: an older node then still reads a newer one.
"""

import enum

import msgspec

from dlm.fields import Count, Epoch, NamePart, NodeId, State, Thing, Words
from dlm.modes import Mode


class How(enum.IntEnum):
    """What is asked of a range."""

    TRY = 0  # now or not at all
    WAIT = 1
    TEST = 2  # nothing: only whether it would be granted, and who is in the way


class Verdict(enum.IntEnum):
    """How a request for a range ended."""

    GRANTED = 0
    WOULD_BLOCK = 1
    FREE = 2  # a test found nothing in the way
    CANCELLED = 3
    DEADLOCK = 4  # never sent: a victim is found at home
    LOST = 5  # never sent: this node was removed


class Held(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A range that somebody holds."""

    root: NamePart
    leaf: NamePart
    holder: Thing
    start: Count
    last: Count  # the last byte of it
    mode: Mode  # PR or EX
    pid: Count
    who: Words
    freed: State  # how often the holder has freed anything
    node: NodeId | None = None  # of the holder, where that is not the sender


class Wanted(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A request for a range."""

    root: NamePart
    leaf: NamePart
    number: Thing
    holder: Thing
    start: Count
    last: Count
    mode: Mode  # PR or EX
    how: How
    pid: Count
    who: Words
    freed: State
    pending: tuple[Thing, ...] = ()  # other requests of that holder that are not answered


class RangeAsk(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=50):
    """Holder to keeper: may I? Answered with RangeAnswer, or by RangeLent."""

    epoch: Epoch
    wanted: Wanted


class RangeAnswer(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=51):
    """Keeper to holder: that is how your request ended."""

    epoch: Epoch
    number: Thing
    verdict: Verdict
    conflict: Held | None = None


class RangeFree(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=52):
    """Holder to keeper: I hold at most `left` there now; acknowledged.

    What the requests in `pending` were granted is not meant: I had not heard of that.
    """

    epoch: Epoch
    root: NamePart
    leaf: NamePart
    holder: Thing
    start: Count
    last: Count
    freed: State
    serial: Thing
    pending: tuple[Thing, ...] = ()
    left: Mode = Mode.NL  # or PR


class RangeFreed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=53):
    """Keeper to holder: these are free for others."""

    epoch: Epoch
    serials: tuple[Thing, ...]


class RangeCancel(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=54):
    """Holder to keeper: if this request still waits, it shall not; only then answered."""

    epoch: Epoch
    root: NamePart
    leaf: NamePart
    number: Thing


class RangeLent(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=55):
    """Keeper to the only user: decide by yourself, also what you asked of me, until I recall it."""

    epoch: Epoch
    root: NamePart
    leaf: NamePart


class RangeRecall(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=56):
    """Keeper to borrower: somebody else wants to use the table."""

    epoch: Epoch
    root: NamePart
    leaf: NamePart


class RangeReturn(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=57):
    """Borrower to keeper: have the table back; this is in it, and these wait, in this order."""

    epoch: Epoch
    root: NamePart
    leaf: NamePart
    held: tuple[Held, ...]
    wanted: tuple[Wanted, ...]


class Names(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One name."""

    root: NamePart
    leaf: NamePart


class RangeTell(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=58):
    """To each keeper of a new epoch: what I hold, want and have borrowed of what you keep.

    What was freed under `serials` is in none of it. `last`: that was all.
    """

    epoch: Epoch
    borrowed: tuple[Names, ...]
    held: tuple[Held, ...]
    wanted: tuple[Wanted, ...]
    serials: tuple[Thing, ...]
    last: bool


class RangeHurry(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=59):
    """Let this request go before those it waits behind: else they all wait for ever.

    To the home of the request, which knows where it is queued, and from there to that node.
    """

    epoch: Epoch
    node: NodeId
    number: Thing


class RangeWitness(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=60):
    """Who is back, to each member: was any of this granted to yours after epoch `since`?

    I hold it now, and held it when I was last a member, in that epoch.
    """

    epoch: Epoch
    number: Thing
    since: Epoch
    held: tuple[Held, ...]


class RangeWitnessed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=61):
    """The answer: I am a member since epoch `first`; to these holders I know of something.

    `left`: the last epoch of any start of a node that I know to be gone, the asker's own not
    counted.
    """

    epoch: Epoch
    number: Thing
    first: Epoch
    left: Epoch
    clashing: tuple[Thing, ...]


RangeMessage = (
    RangeAsk
    | RangeAnswer
    | RangeFree
    | RangeFreed
    | RangeCancel
    | RangeLent
    | RangeRecall
    | RangeReturn
    | RangeTell
    | RangeHurry
    | RangeWitness
    | RangeWitnessed
)
