"""What a lockspace is told: by its members' list, by its peers, by its users. PURE."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from dlm.messages import Message
from dlm.modes import Mode
from dlm.range_messages import Held, How, Verdict

Key = tuple[int, int]  # a thing that is waited for: its kind, and its number there


class Name(NamedTuple):
    """Names a resource. All leaves of one root share one master."""

    root: bytes
    leaf: bytes = b""

    def spelt(self) -> str:
        """Return it as people can read it."""
        root, leaf = (part.decode("utf-8", "backslashreplace") for part in self)
        return f"{root}/{leaf}" if leaf else root


class Owner:
    """A transaction: somebody who holds and awaits locks, and must not wait for itself.

    Locks that are taken for an owner take part in the search for deadlocks; see core/deadlock.py.
    Of a cycle's owners the one with the lowest priority gives way, then the youngest.
    """

    __slots__ = ("label", "number", "priority", "waits")

    def __init__(self, label: str = "", *, priority: int = 0) -> None:
        self.label = label  # who, for people
        self.priority = priority
        self.number = 0  # given at its first wait; higher is younger
        self.waits: dict[Key, Wait] = {}

    def __repr__(self) -> str:
        return f"<Owner {self.label!r} {self.number}>"


class Wait:
    """One owner waits for one thing."""

    __slots__ = ("key", "owner", "search_s", "stamp")

    def __init__(self, key: Key, owner: Owner, stamp: int, search_s: float) -> None:
        self.key = key
        self.owner = owner
        self.stamp = stamp
        self.search_s = search_s  # when to look next whether it is part of a cycle


class Lock:
    """This node's own lock: the handle its user keeps, and the truth about it.

    `mode` is what the user may rely on. It is None before the first grant and after the end. While
    `parting` is set it is weaker than what others must still believe (`granted`).
    """

    __slots__ = (
        "asked_s",
        "blocked_for",
        "cancelling",
        "context",
        "deadlock",
        "demoted",
        "flags",
        "granted",
        "granted_s",
        "id",
        "known_sequence",
        "lvb",
        "lvb_sequence",
        "lvb_valid",
        "mode",
        "name",
        "offered",
        "owner",
        "parting",
        "requested",
        "sequence",
        "transaction",
        "turn",
        "users",
        "uses_lvb",
    )

    def __init__(self, name: Name, owner: str | Owner = "", context: object = None) -> None:
        self.id = 0  # given when it is first asked for; unique in this incarnation
        self.name = name
        self.transaction = owner if isinstance(owner, Owner) else None
        self.owner = owner.label if isinstance(owner, Owner) else owner  # for people's dumps
        self.users: dict[Owner, int] | None = None  # further transactions that use it, since when
        self.turn = 0  # stamp of its last change
        self.deadlock = ""  # why it was, or is being, refused as a deadlock's victim
        self.context = context  # the shell's own
        self.mode: Mode | None = None
        self.granted: Mode | None = None  # as the master last said; `mode` may be weaker meanwhile
        self.requested: Mode | None = None  # what is being asked for
        self.asked_s = 0.0  # when the master was asked, until its first answer
        self.granted_s = 0.0  # when it got its mode
        self.sequence = 0  # our place in the master's queue, once it told us
        self.flags = 0  # of the last operation
        self.cancelling = False
        self.parting: Change | Release | None = None  # done for its user, not yet for the master
        self.demoted = False  # CONVDEADLK gave up what we held on the way to the last grant
        self.offered: bytes | None = None  # LVB that the conversion under way is to write
        self.lvb: bytes | None = None
        self.lvb_sequence = 0  # of what is in `lvb`; 0: none of the resource's
        self.known_sequence = 0  # of the resource's, at our last grant or write
        self.lvb_valid = True
        self.uses_lvb = False  # some operation had VALBLK or IVVALBLK
        self.blocked_for: Mode | None = None  # the strongest mode others want since our last grant

    def __repr__(self) -> str:
        mode = "--" if self.mode is None else self.mode.name
        wanted = "" if self.requested is None else f" ({self.requested.name})"
        return f"<Lock {self.id:x} {self.name.root!r}/{self.name.leaf!r} {mode}{wanted}>"


class Party:
    """Somebody of this node who holds and wants ranges of one name; never in its own way."""

    __slots__ = ("freed", "name", "number", "pid", "transaction", "turn", "who")

    def __init__(
        self, name: Name, who: str = "", pid: int = 0, transaction: Owner | None = None
    ) -> None:
        self.name = name
        self.who = who  # for people
        self.pid = pid  # for those who ask who is in the way
        self.transaction = transaction  # takes part in the search for deadlocks
        self.number = 0  # given at its first request
        self.turn = 0  # stamp of the last change of what it holds
        self.freed = 0  # how often it has told that it freed something, modulo 2**32

    def __repr__(self) -> str:
        return f"<Party {self.number} {self.who!r} of {self.name.spelt()}>"


class RangeRequest:
    """What a party asks for: the bytes from `start` to `last` in PR or EX, in some way."""

    __slots__ = (
        "asked_s",
        "cancelling",
        "conflict",
        "context",
        "how",
        "last",
        "mode",
        "number",
        "party",
        "start",
        "story",
        "verdict",
    )

    def __init__(
        self, party: Party, start: int, last: int, mode: Mode, how: How, context: object = None
    ) -> None:
        assert 0 <= start <= last, (start, last)
        self.party = party
        self.start = start
        self.last = last
        self.mode = mode
        self.how = how
        self.context = context  # the shell's own
        self.number = 0  # given when it is asked
        self.asked_s = 0.0
        self.cancelling = False
        self.verdict: Verdict | None = None
        self.conflict: Held | None = None  # who is in the way, if that was asked, or TRY fails
        self.story = ""  # why it was refused as a deadlock's victim

    def __repr__(self) -> str:
        return f"<RangeRequest {self.number} {self.mode.name}[{self.start}..{self.last}]>"


class Hearing:
    """Whether others may have had what parties hold that held it before this node was removed.

    `since` is the last epoch that it knew then. What is found: `unsure`, or the numbers of the
    parties that are `clashing`; nothing of this counts if the node was `lost` once more.
    """

    __slots__ = (
        "clashing",
        "context",
        "ended",
        "lost",
        "number",
        "parties",
        "since",
        "unsure",
    )

    def __init__(self, parties: Sequence[Party], since: int, context: object = None) -> None:
        self.parties = parties
        self.since = since
        self.context = context  # the shell's own
        self.number = 0
        self.clashing: set[int] = set()
        self.unsure = self.lost = self.ended = False

    def __repr__(self) -> str:
        return f"<Hearing {self.number} {sorted(self.clashing)} unsure={self.unsure}>"

    def stands(self, party: Party) -> bool:
        """Tell whether nobody else had what a party holds, for sure."""
        return not (self.lost or self.unsure or party.number in self.clashing)


Nodes = Mapping[int, int]  # node to incarnation
NONE: Nodes = MappingProxyType({})


class Enter(msgspec.Struct, frozen=True, gc=False):
    """A new list of members, node to incarnation, is in force; we are one of them.

    Those in `leaving` are refused by all, but may still hold what they held. `before` is the epoch
    before this one; if that is not our last one (or not known: -1), we have missed some, and all
    that we share with others is told anew.
    """

    epoch: int
    members: dict[int, int]
    leaving: dict[int, int] = {}
    before: int = -1


class Lose(msgspec.Struct, frozen=True, gc=False):
    """This node was removed: all its locks are void."""


class Received(msgspec.Struct, frozen=True, gc=False):
    """A peer's message has arrived, after all that it sent before."""

    sender: int
    message: Message


class Acquire(msgspec.Struct, frozen=True, gc=False):
    """The user asks for a new lock."""

    lock: Lock
    mode: Mode
    flags: int = 0
    new: bool = False  # nobody else can know the root, or ask for it: it was made up just now


class Change(msgspec.Struct, frozen=True, gc=False):
    """The user converts a lock it holds, up, down or sideways."""

    lock: Lock
    mode: Mode
    flags: int = 0
    lvb: bytes | None = None


class Release(msgspec.Struct, frozen=True, gc=False):
    """The user drops a lock it holds."""

    lock: Lock
    flags: int = 0
    lvb: bytes | None = None


class Withdraw(msgspec.Struct, frozen=True, gc=False):
    """The user no longer wants what it is waiting for."""

    lock: Lock


class Tick(msgspec.Struct, frozen=True, gc=False):
    """Time has passed: the deadline that the lockspace named is reached, or a later moment."""


class Migrate(msgspec.Struct, frozen=True, gc=False):
    """Let another member master this root, if we do and it can be moved now."""

    root: bytes
    target: int


class Place(msgspec.Struct, frozen=True, gc=False):
    """By command: send this root, which is mastered here, to a member, now or when it can go.

    With `pin`, keep it there as well; on node 0: nowhere, and it goes by its use again.
    """

    root: bytes
    target: int
    pin: bool


class Depart(msgspec.Struct, frozen=True, gc=False):
    """This node is about to leave: let others master what they use here."""


class Publish(msgspec.Struct, frozen=True, gc=False):
    """Somebody waits for the directory to know the names made here: tell it now."""


class AskRange(msgspec.Struct, frozen=True, gc=False):
    """A party asks for a range, or whether it could have it."""

    request: RangeRequest


class FreeRange(msgspec.Struct, frozen=True, gc=False):
    """A party holds nothing there any more."""

    party: Party
    start: int
    last: int


class CancelRange(msgspec.Struct, frozen=True, gc=False):
    """A party no longer wants what it waits for; it hears how that ended."""

    request: RangeRequest


class GiveBack(msgspec.Struct, frozen=True, gc=False):
    """Nobody here is going to use the ranges of a name soon."""

    name: Name


class AskWitnesses(msgspec.Struct, frozen=True, gc=False):
    """Somebody who is back asks whether others had what it holds again."""

    hearing: Hearing


class Opened(msgspec.Struct, frozen=True, gc=False):
    """A gate has opened: what somebody who is gone may have held may be used, see Situation."""


RangeEvent = AskRange | FreeRange | CancelRange | GiveBack | AskWitnesses
Event = (
    Enter
    | Lose
    | Received
    | Acquire
    | Change
    | Release
    | Withdraw
    | Tick
    | Publish
    | Opened
    | Migrate
    | Place
    | Depart
    | RangeEvent
)
