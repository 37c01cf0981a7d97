"""The dialects of DLM that people know, fs/dlm and o2dlm, as settings of one lock manager. PURE.

A profile says what may be asked for (modes, names, flags), by what rules it is granted, what
becomes of a value block that was lost, and by which numbers flags and outcomes go. All differences
are in docs/protocols/dialects.md. Sources, in Linux: include/uapi/linux/dlmconstants.h,
fs/dlm/lock.c, fs/ocfs2/dlm/dlmapi.h and the files beside it, fs/ocfs2/stack_o2cb.c.

All members of a lockspace must use the same profile and the same length of value blocks.
"""

import errno
from types import MappingProxyType
from typing import Final

import msgspec

from dlm.core.overtaking import OvertakingResource
from dlm.core.resource import Resource
from dlm.errors import (
    DeadlockVictim,
    LockBusy,
    LockCancelled,
    LockError,
    LockLost,
    NotOffered,
    WouldBlock,
)
from dlm.events import Lock, Name
from dlm.modes import Flags, Mode, may_queue_conversion

ECANCEL: Final = 0x10001  # DLM_ECANCEL
EUNLOCK: Final = 0x10002  # DLM_EUNLOCK

_CONVERSION_ONLY: Final = Flags.QUECVT | Flags.CONVDEADLK
_NEW_ONLY: Final = Flags.EXPEDITE


class Profile(msgspec.Struct, frozen=True):
    """How one lockspace behaves, and how it spells that."""

    name: str
    modes: frozenset[Mode]
    name_bytes: int  # of root and leaf together
    value_bytes: int  # of a value block, unless the lockspace says otherwise
    value_multiple: int  # what that length must be a multiple of; 0: it is fixed
    rules: type[Resource]
    zeroes_lost_values: bool  # else they are kept and flagged
    reads_value_at_null: bool  # a conversion from NL to NL with VALBLK reads
    flags: MappingProxyType[Flags, int]  # what may be given, and its number there
    local: int  # the number that says that a name was made up here; 0: there is none
    outcomes: MappingProxyType[type[LockError], int]
    success: int
    unlocked: int  # what an unlock reports when it is done
    too_late: int  # what a cancel reports when nothing waits any more
    cancel_waits: bool  # a cancel reports how it ended, not only that it has begun
    errnos: MappingProxyType[int, int]  # of outcomes, where those are not errnos

    # -- asking ----------------------------------------------------------------------------------

    def check_value_bytes(self, length: int) -> None:
        """Raise NotOffered unless value blocks may have this length."""
        if self.value_multiple == 0 and length != self.value_bytes:
            raise NotOffered(f"{self.name}: value blocks have {self.value_bytes} bytes")
        if self.value_multiple and (length % self.value_multiple or length <= 0):
            raise NotOffered(f"{self.name}: a value block has {self.value_multiple}n bytes")

    def check_request(self, name: Name, mode: Mode, flags: Flags) -> None:
        """Raise NotOffered unless a new lock may be asked for like that."""
        if not 0 < len(name.root) + len(name.leaf) <= self.name_bytes:
            raise NotOffered(f"{self.name}: a name has 1 to {self.name_bytes} bytes: {name}")
        self._check(mode, flags)
        if flags & _CONVERSION_ONLY:
            raise NotOffered(f"{flags & _CONVERSION_ONLY!r}: for conversions only")
        if flags & Flags.EXPEDITE and (mode is not Mode.NL or flags & Flags.NOQUEUE):
            raise NotOffered("EXPEDITE: for new NL locks only, and not with NOQUEUE")

    def check_conversion(self, held: Mode, mode: Mode, flags: Flags) -> Flags:
        """Return the flags that count for this conversion; raises NotOffered if it may not be."""
        self._check(mode, flags)
        if flags & _NEW_ONLY:
            raise NotOffered(f"{flags & _NEW_ONLY!r}: for new locks only")
        if flags & Flags.QUECVT and not may_queue_conversion(held, mode):
            raise NotOffered(f"QUECVT: not from {held.name} to {mode.name}")
        if flags & Flags.CONVDEADLK and flags & Flags.NOQUEUE:
            raise NotOffered("CONVDEADLK: not with NOQUEUE")
        if flags & (Flags.ALTPR | Flags.ALTCW) and held > Mode.CR:
            raise NotOffered(f"ALTPR, ALTCW: not for a lock that is held in {held.name}")
        if held is mode is Mode.NL and not self.reads_value_at_null:
            return flags & ~Flags.VALBLK
        return flags

    def check_release(self, flags: Flags) -> None:
        """Raise NotOffered unless a lock may be dropped like that."""
        unknown = flags & ~(Flags.VALBLK | Flags.IVVALBLK)
        if unknown:
            raise NotOffered(f"{unknown!r}: not for a release")

    def to_flags(self, number: int) -> Flags:
        """Return the flags that the dialect writes as `number`; raises NotOffered for others."""
        flags, rest = Flags(0), number
        for flag, bit in self.flags.items():
            if number & bit:
                flags, rest = flags | flag, rest & ~bit
        if rest:
            raise NotOffered(f"{self.name}: flags {rest:#x} are not offered")
        return flags

    def to_number(self, flags: Flags) -> int:
        """Return flags as the dialect writes them; raises NotOffered for those it has not."""
        number = 0
        for flag in flags:
            if flag not in self.flags:
                raise NotOffered(f"{self.name}: no {flag!r}")
            number |= self.flags[flag]
        return number

    # -- hearing ---------------------------------------------------------------------------------

    def outcome(self, error: LockError | None) -> int:
        """Return how the dialect reports the end of an operation; None is success."""
        if error is None:
            return self.success
        for kind in type(error).__mro__:
            if kind in self.outcomes:
                return self.outcomes[kind]
        raise AssertionError(error)

    def errno_of(self, outcome: int) -> int:
        """Return an outcome as 0 or a negative errno."""
        return self.errnos.get(outcome, outcome)

    def result_flags(self, lock: Lock, wanted: Mode) -> int:
        """Return the flags of a status block: DEMOTED 1, VALNOTVALID 2, ALTMODE 4."""
        if self.zeroes_lost_values:
            return 0
        altered = lock.mode is not None and lock.mode is not wanted
        return lock.demoted * 1 + (not lock.lvb_valid) * 2 + altered * 4

    def value(self, lock: Lock, length: int) -> bytes | None:
        """Return the value block that the lock has read; None: there has never been one."""
        if self.zeroes_lost_values and (lock.lvb is None or not lock.lvb_valid):
            return bytes(length)
        return lock.lvb

    def cancelled(self, *, waited: bool) -> int:
        """Return what a cancel reports: whether there still was a wait to be ended."""
        return self.success if waited else self.too_late

    def _check(self, mode: Mode, flags: Flags) -> None:
        if mode not in self.modes:
            raise NotOffered(f"{self.name}: no mode {mode.name}")
        unknown = flags & ~_all(self.flags)
        if unknown:
            raise NotOffered(f"{self.name}: no {unknown!r}")


def _all(flags: MappingProxyType[Flags, int]) -> Flags:
    every = Flags(0)
    for flag in flags:
        every |= flag
    return every


_FSDLM_FLAGS = MappingProxyType({flag: int(flag) for flag in Flags})

_FSDLM_OUTCOMES: MappingProxyType[type[LockError], int] = MappingProxyType(
    {
        WouldBlock: -errno.EAGAIN,
        DeadlockVictim: -errno.EDEADLK,
        LockCancelled: -ECANCEL,
        LockBusy: -errno.EBUSY,
        NotOffered: -errno.EINVAL,
        LockLost: -errno.ESTALE,
        LockError: -errno.EIO,
    }
)

NATIVE = Profile(
    name="native",
    modes=frozenset(Mode),
    name_bytes=512,
    value_bytes=64,
    value_multiple=1,
    rules=Resource,
    zeroes_lost_values=False,
    reads_value_at_null=True,
    flags=_FSDLM_FLAGS,
    local=0,
    outcomes=_FSDLM_OUTCOMES,
    success=0,
    unlocked=-EUNLOCK,
    too_late=-errno.EBUSY,
    cancel_waits=False,
    errnos=MappingProxyType({}),
)

FSDLM = msgspec.structs.replace(
    NATIVE, name="fsdlm", name_bytes=64, value_bytes=32, value_multiple=8
)

O2DLM = Profile(
    name="o2dlm",
    modes=frozenset((Mode.NL, Mode.PR, Mode.EX)),
    name_bytes=31,
    value_bytes=64,
    value_multiple=0,
    rules=OvertakingResource,
    zeroes_lost_values=True,
    reads_value_at_null=False,
    flags=MappingProxyType(
        {
            Flags.VALBLK: 0x100,  # LKM_VALBLK
            Flags.NOQUEUE: 0x200,  # LKM_NOQUEUE
            Flags.CONVERT: 0x400,  # LKM_CONVERT
            Flags.CANCEL: 0x2000,  # LKM_CANCEL
            Flags.IVVALBLK: 0x8000,  # LKM_INVVALBLK
        }
    ),
    local=0x80,  # LKM_LOCAL
    outcomes=MappingProxyType(
        {
            WouldBlock: 21,  # DLM_NOTQUEUED
            DeadlockVictim: 30,  # DLM_DEADLOCK
            LockCancelled: 28,  # DLM_CANCEL
            LockBusy: 2,  # DLM_DENIED
            NotOffered: 19,  # DLM_BADARGS
            LockLost: 26,  # DLM_REJECTED
            LockError: 8,  # DLM_SYSERR
        }
    ),
    success=0,  # DLM_NORMAL
    unlocked=0,
    too_late=10,  # DLM_CANCELGRANT
    cancel_waits=True,
    errnos=MappingProxyType(
        {
            2: -errno.EACCES,
            8: -errno.ENOMEM,
            10: -errno.EBUSY,  # DLM_CANCELGRANT
            19: -errno.EINVAL,
            21: -errno.EAGAIN,
            26: -errno.EPERM,
            28: -ECANCEL,
            30: -errno.EDEADLK,
        }
    ),
)

PROFILES: Final = MappingProxyType({p.name: p for p in (NATIVE, FSDLM, O2DLM)})
