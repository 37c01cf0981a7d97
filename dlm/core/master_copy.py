"""The master's copy of one lock, as it stands in a resource's queues. PURE."""

from typing import TYPE_CHECKING

from dlm.modes import CW, EX, NL, PR, PW, Flags, Mode, alternate

if TYPE_CHECKING:
    from dlm.core.resource import Resource

LVB_FLAGS = int(Flags.VALBLK | Flags.IVVALBLK)
_NODLCKWT = int(Flags.NODLCKWT)


class Copy:
    """The master's copy of a lock. Waiting: nothing granted; converting: both modes are set."""

    __slots__ = (
        "demoted",
        "flags",
        "granted",
        "highbast",
        "lock",
        "lvb",
        "node",
        "owner",
        "requested",
        "resource",
        "sequence",
        "since_s",
        "uses_lvb",
    )

    def __init__(self, node: int, lock: int, resource: "Resource", owner: str = "") -> None:
        self.node = node
        self.lock = lock
        self.resource = resource
        self.owner = owner
        self.granted: Mode | None = None
        self.requested: Mode | None = None
        self.flags = 0
        self.lvb: bytes | None = None  # what a conversion brings along, to be written
        self.sequence = 0  # order within the queue it is in
        self.highbast = NL  # strongest mode its holder was told of since its last grant
        self.demoted = False
        self.uses_lvb = False  # some operation had VALBLK or IVVALBLK
        self.since_s = 0.0  # when it began to wait

    def __repr__(self) -> str:
        return f"<Copy {self.node}:{self.lock} {self.granted!r} -> {self.requested!r}>"


def must_be_told(holder: Copy, wanted: Mode) -> bool:
    """Tell whether a holder does not know yet that it keeps somebody from `wanted`."""
    assert holder.granted is not None
    if holder.granted + wanted == PR + CW and holder.granted in (PR, CW):
        return holder.highbast is not EX
    return holder.highbast < wanted and not holder.granted.compatible(wanted)


def loses_lvb(copy: Copy) -> bool:
    """Tell whether the LVB is doubtful if this holder vanished without a word."""
    return copy.granted is not None and copy.granted >= PW and copy.uses_lvb


def place(copy: Copy) -> int:
    """Return the place in its queue, to sort by."""
    return copy.sequence


def is_in_the_way(held: Mode, waiter: Copy) -> bool:
    """Tell whether a waiter can have neither its mode nor the other one that it is content with."""
    assert waiter.requested is not None
    if held.compatible(waiter.requested):
        return False
    other = alternate(waiter.requested, waiter.flags)
    return other is None or not held.compatible(other)


def is_for_good(copy: Copy) -> bool:
    """Tell whether nothing but a grant is to end this wait."""
    return not copy.flags & _NODLCKWT
