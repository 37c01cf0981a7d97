"""Who may do what, where the kernel does not decide it for us. PURE.

The mount runs with default_permissions: the kernel checks mode bits, ownership and the sticky rule
against the attributes that it caches under our lock. What is checked here again is what depends on
state that another node may have changed between the kernel's check and our lock.
"""

import stat

from clusterfs.errors import OperationNotPermitted, PermissionDenied
from clusterfs.fs import acl
from clusterfs.fs.attributes import Record
from clusterfs.fs.results import Caller, Changes

_READ, _WRITE = 4, 2
_CAP_CHOWN, _CAP_FOWNER, _CAP_FSETID = 0, 3, 4  # capabilities(7)
_O_ACCMODE, _O_TRUNC = 0o3, 0o1000
_SET_ID = stat.S_ISUID | stat.S_ISGID


def check_sticky(directory: Record, victim: Record, caller: Caller) -> None:
    """In a sticky directory only the owner of it, or of the file, removes or renames a name."""
    if directory.mode & stat.S_ISVTX and caller.uid not in (0, directory.uid, victim.uid):
        raise OperationNotPermitted


def check_access(record: Record, mask: int, caller: Caller, access: acl.Acl | None = None) -> None:
    """Raise PermissionDenied unless all of `mask` (4 read, 2 write, 1 execute) is allowed."""
    if caller.uid == 0:
        if mask & 1 and not record.is_directory and not record.mode & 0o111:
            raise PermissionDenied
        return
    if access is not None:
        if not acl.allows(access, record, mask, caller):
            raise PermissionDenied
        return
    if caller.uid == record.uid:
        allowed = record.mode >> 6
    elif record.gid == caller.gid or record.gid in caller.groups:
        allowed = record.mode >> 3
    else:
        allowed = record.mode
    if mask & ~allowed & 7:
        raise PermissionDenied


def check_change(record: Record, changes: Changes, caller: Caller) -> None:
    """Raise OperationNotPermitted if the caller does not own what it wants to change.

    The kernel has checked it already, but against an owner that it may have heard of before another
    node changed it. When others write to a file it clears setuid and setgid in their name.
    """
    if caller.uid in (0, record.uid):
        return
    if changes.mode is not None and (changes.mode ^ record.mode) & 0o7777 & ~_SET_ID:
        _require(caller, _CAP_FOWNER)
    if changes.uid is not None or changes.gid is not None:
        _require(caller, _CAP_CHOWN)


def _require(caller: Caller, capability: int) -> None:
    if not caller.capabilities >> capability & 1:
        raise OperationNotPermitted


def allowed_mode(record: Record, mode: int, caller: Caller) -> int:
    """Return a mode without setgid if the caller may not give that group's rights away."""
    is_ours = caller.uid == 0 or record.gid in (caller.gid, *caller.groups)
    if is_ours or caller.capabilities >> _CAP_FSETID & 1:
        return mode
    return mode & ~stat.S_ISGID


def access_of(flags: int) -> int:
    """Return what open(2) with these flags needs, as a mask for `check_access`."""
    needed = {0: _READ, 1: _WRITE}.get(flags & _O_ACCMODE, _READ | _WRITE)
    return needed | _WRITE if flags & _O_TRUNC else needed


def without_privileges(mode: int) -> int:
    """Return a mode as it is after somebody unprivileged changed the file's contents or owner."""
    if not stat.S_ISREG(mode):
        return mode
    kept = mode & ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        kept &= ~stat.S_ISGID
    return kept


def mode_after_change(record: Record, caller: Caller) -> int:
    """Return a file's mode once this caller changed its contents.

    As Linux's setattr_should_drop_suidgid: setgid without the group's right to execute stays if the
    caller is in the group.
    """
    if caller.uid == 0 or caller.capabilities >> _CAP_FSETID & 1:
        return record.mode
    return mode_after_chown(record, caller)


def mode_after_chown(record: Record, caller: Caller) -> int:
    """Return a file's mode once this caller changed its owner or group."""
    mode = without_privileges(record.mode)
    return mode if not record.is_regular else allowed_mode(record, mode, caller)


def has_privileges(mode: int) -> bool:
    """Tell whether a mode has bits that `without_privileges` may take away."""
    return bool(mode & _SET_ID)


def inherited(directory: Record, mode: int, caller: Caller) -> tuple[int, int]:
    """Return (mode, gid) of something made in a directory: a setgid one hands down its group."""
    if not directory.mode & stat.S_ISGID:
        return mode, caller.gid
    if stat.S_ISDIR(mode):
        mode |= stat.S_ISGID
    return mode, directory.gid
