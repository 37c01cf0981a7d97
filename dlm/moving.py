"""What nodes say to each other while a tree of locks moves to another master. PURE.

See docs/protocols/lock-migration.md; dlm/messages.py says how it is encoded.
"""

import msgspec

from dlm.fields import (
    Count,
    Epoch,
    FlagBits,
    LockId,
    NamePart,
    NodeId,
    Owner,
    Sequence,
    Term,
    Value,
)
from dlm.modes import Mode


class Freeze(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=30):
    """Master to owner: the tree is to move; say nothing more about it until somebody reigns."""

    term: Term  # to come
    root: NamePart
    former: Term  # that ends
    target: NodeId
    incarnation: Count  # of the target


class Frozen(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=31):
    """Owner to master: you have heard all; but go on yourself unless I consent."""

    term: Term
    root: NamePart
    consents: bool


class Worth(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The value block of one resource."""

    leaf: NamePart
    lvb: Value | None
    lvb_sequence: Count
    lvb_valid: bool


class Carried(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One lock as its master knows it."""

    leaf: NamePart
    node: NodeId
    incarnation: Count
    lock: LockId
    granted: Mode | None
    requested: Mode | None
    flags: FlagBits
    owner: Owner
    sequence: Sequence
    told: Mode  # the strongest that its holder was told of
    demoted: bool
    uses_lvb: bool
    lvb: Value | None  # that a conversion is to write
    waited_ms: Count


class Start(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One start of a node."""

    node: NodeId
    incarnation: Count


class Handover(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=32):
    """Master to the next one: a page of the tree; with the `last` one you are its master."""

    term: Term
    root: NamePart
    worths: tuple[Worth, ...]
    copies: tuple[Carried, ...]
    last: bool
    owners: tuple[Start, ...] = ()  # who waits for your word, on the last page
    pinned: Count = 0  # the node to which the tree is pinned; 0: none


class Settled(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=33):
    """New master to the former one: I have the tree."""

    term: Term
    root: NamePart


class Move(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=34):
    """Former master to directory node: forget me; this one has it now."""

    epoch: Epoch
    root: NamePart
    term: Term  # of the new master
    target: NodeId
    incarnation: Count


class Noted(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=35):
    """Directory node to former master: I forward nothing more to you."""

    epoch: Epoch
    root: NamePart
    term: Term


class Abandon(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=37):
    """Master to the one that was to be the next: I stay; forget what I handed over."""

    term: Term
    root: NamePart
