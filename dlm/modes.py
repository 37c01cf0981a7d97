"""Lock modes and flags: what excludes what, which conversions exist, who moves the LVB. PURE.

The six modes are the classic VMS ones. Numbers, matrices, flag values and the table of value block
transfers are those of Linux fs/dlm, because tools, tests and people know them. Where fs/dlm says
"invalid mode" (-1: nothing granted, nothing requested), we say None.
"""

import enum


class Mode(enum.IntEnum):
    """How strongly a lock excludes others, weakest first."""

    NL = 0
    CR = 1
    CW = 2
    PR = 3
    PW = 4
    EX = 5

    def compatible(self, other: "Mode") -> bool:
        """Tell whether two owners may hold `self` and `other` on one resource."""
        return bool(_COMPATIBLE[self] >> other & 1)


# For what runs at every transition: a name of the module is found ten times as fast as a member of
# an Enum (Python 3.11).
NL, CR, CW, PR, PW, EX = Mode


class Flags(enum.IntFlag):
    """How a request, a conversion or a release is to be treated."""

    NOQUEUE = 0x1  # fail with WouldBlock instead of waiting
    CANCEL = 0x2
    CONVERT = 0x4
    VALBLK = 0x8  # move the lock value block (LVB) as LVB_TRANSFER says
    QUECVT = 0x10  # a conversion that waits behind other conversions
    IVVALBLK = 0x20  # where VALBLK would write, invalidate instead
    CONVDEADLK = 0x40  # in a conversion deadlock: demote what we hold to NL and wait
    PERSISTENT = 0x80  # outlives the process that took it (see dlm/dialect.py)
    NODLCKWT = 0x100  # wait also in a conversion deadlock; this wait is no part of any deadlock
    NODLCKBLK = 0x200  # what is held by this keeps nobody in a deadlock
    EXPEDITE = 0x400  # a new NL request, granted whatever the queues say
    NOQUEUEBAST = 0x800  # with NOQUEUE: tell the holders although we do not wait
    HEADQUE = 0x1000  # wait at the head of the queue
    NOORDER = 0x2000  # be granted as soon as nothing granted conflicts
    ORPHAN = 0x4000  # take over a lock that outlived its process (see dlm/dialect.py)
    ALTPR = 0x8000  # be content with PR if that can be had earlier
    ALTCW = 0x10000  # be content with CW if that can be had earlier


class Transfer(enum.IntEnum):
    """Where the LVB goes when a mode is granted."""

    NOTHING = 0
    READ = 1  # resource to holder
    WRITE = 2  # holder to resource


def is_middle(held: Mode, wanted: Mode) -> bool:
    """Tell whether this conversion neither strengthens nor weakens: PR to CW or back."""
    return (held is PR and wanted is CW) or (held is CW and wanted is PR)


def is_down(held: Mode, wanted: Mode) -> bool:
    """Tell whether this conversion only gives up something, so that it cannot fail or wait."""
    return wanted < held and not (held is PR and wanted is CW)


def may_queue_conversion(held: Mode, wanted: Mode) -> bool:
    """Tell whether Flags.QUECVT is legal for this conversion."""
    return bool(_QUECVT[held] >> wanted & 1)


def alternate(wanted: Mode, flags: int) -> Mode | None:
    """Return the other mode that a request with ALTPR or ALTCW is content with."""
    if flags & _ALTPR and wanted is not PR:
        return PR
    return CW if flags & _ALTCW and wanted is not CW else None


def floor(held: Mode, wanted: Mode, flags: int) -> Mode:
    """Return what the holder surely still has while its conversion is undecided.

    The master may have granted a middle conversion, or demoted a CONVDEADLK one, and have granted
    others accordingly, before the holder learns of it.
    """
    if flags & _CONVDEADLK:
        return NL
    return CR if is_middle(held, wanted) else held


# Row = held mode, bit n = requested mode n. The matrix is symmetric.
_COMPATIBLE = (0b111111, 0b011111, 0b000111, 0b001011, 0b000011, 0b000001)

# Row = requested mode: the held modes that forbid it.
INCOMPATIBLE: tuple[tuple[Mode, ...], ...] = tuple(
    tuple(held for held in Mode if not held.compatible(wanted)) for wanted in Mode
)

_CONVDEADLK = int(Flags.CONVDEADLK)
_ALTPR, _ALTCW = int(Flags.ALTPR), int(Flags.ALTCW)
_QUECVT = (0b111110, 0b111100, 0b111000, 0b110100, 0b100000, 0b000000)

_N, _R, _W = Transfer.NOTHING, Transfer.READ, Transfer.WRITE

# Row = mode held before, column = mode being granted.
LVB_TRANSFER: tuple[tuple[Transfer, ...], ...] = (
    (_R, _R, _R, _R, _R, _R),  # NL
    (_N, _R, _R, _R, _R, _R),  # CR
    (_N, _N, _R, _R, _R, _R),  # CW
    (_N, _N, _N, _R, _R, _R),  # PR
    (_W, _W, _W, _W, _W, _R),  # PW
    (_W, _W, _W, _W, _W, _W),  # EX
)
