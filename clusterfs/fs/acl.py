"""POSIX access control lists in the kernel's format, and what they make of modes. PURE.

An ACL is a value of `system.posix_acl_access` or, of a directory, `system.posix_acl_default`: a
version, then entries in the order that POSIX.1e draft 17 checks them (acl(5), and
include/uapi/linux/posix_acl_xattr.h for the bytes). The kernel checks what it is given, and
enforces it; here is what a filesystem has to do: keep mode and ACL in step, and hand the default
ACL down.
"""

import struct
from typing import Final, NamedTuple

from clusterfs.errors import InvalidArgument
from clusterfs.fs.attributes import Record
from clusterfs.fs.results import Caller

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"

_VERSION = 2
_HEAD = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_NO_ID = 0xFFFFFFFF

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NAMED = USER | GROUP
_SHIFTS = {USER_OBJ: 6, GROUP_OBJ: 3, MASK: 3, OTHER: 0}


class Item(NamedTuple):
    """One entry: for whom (id: for USER and GROUP only), and 4 read, 2 write, 1 execute."""

    tag: int
    allowed: int
    id: int = _NO_ID


Acl = tuple[Item, ...]


def decode(value: bytes) -> Acl:
    """Return the entries of an attribute's value. Raises InvalidArgument."""
    if (
        len(value) < _HEAD.size
        or (len(value) - _HEAD.size) % _ENTRY.size
        or _HEAD.unpack_from(value)[0] != _VERSION
    ):
        raise InvalidArgument("not a POSIX ACL")
    acl = tuple(Item(*entry) for entry in _ENTRY.iter_unpack(value[_HEAD.size :]))
    _check(acl)
    return acl


def encode(acl: Acl) -> bytes:
    """Return the value that `decode` understands."""
    return _HEAD.pack(_VERSION) + b"".join(_ENTRY.pack(*item) for item in acl)


def _check(acl: Acl) -> None:
    tags = [item.tag for item in acl]
    single = [tag for tag in tags if tag not in {USER, GROUP}]
    needed = [USER_OBJ, GROUP_OBJ, OTHER]
    if any(tag & _NAMED for tag in tags):
        needed.append(MASK)
    if (
        tags != sorted(tags)
        or len(single) != len(set(single))
        or not set(needed) <= set(single) <= {*needed, MASK}
        or any(item.allowed & ~7 for item in acl)
    ):
        raise InvalidArgument("not a valid POSIX ACL")


def is_minimal(acl: Acl) -> bool:
    """Tell whether it says no more than a mode does."""
    return all(item.tag in {USER_OBJ, GROUP_OBJ, OTHER} for item in acl)


def mode_of(acl: Acl) -> int:
    """Return the permission bits that go with an access ACL."""
    found = {item.tag: item.allowed for item in acl}
    group = found.get(MASK, found[GROUP_OBJ])
    return found[USER_OBJ] << 6 | group << 3 | found[OTHER]


def with_mode(acl: Acl, mode: int) -> Acl:
    """Return an access ACL after chmod: the group's bits are those of the mask, if there is one."""
    masked = any(item.tag == MASK for item in acl)
    return tuple(
        item._replace(allowed=mode >> _SHIFTS[item.tag] & 7)
        if item.tag in _SHIFTS and not (masked and item.tag == GROUP_OBJ)
        else item
        for item in acl
    )


def inherit(default: Acl, mode: int) -> tuple[int, Acl]:
    """Return (mode, access ACL) of something made with `mode` where this is the default ACL.

    As with chmod, the group's part of the mode restricts the mask, if there is one.
    """
    masked = any(item.tag == MASK for item in default)
    restricted = tuple(
        item._replace(allowed=item.allowed & mode >> _SHIFTS[item.tag] & 7)
        if item.tag in _SHIFTS and not (masked and item.tag == GROUP_OBJ)
        else item
        for item in default
    )
    return mode & ~0o777 | mode_of(restricted), restricted


def allows(acl: Acl, record: Record, mask: int, caller: Caller) -> bool:
    """Tell whether an access ACL allows all of `mask` to somebody who is not root."""
    groups = {caller.gid, *caller.groups}
    limit = next((item.allowed for item in acl if item.tag == MASK), 7)
    found = False
    for item in acl:
        if item.tag == USER_OBJ and caller.uid == record.uid:
            return not mask & ~item.allowed
        if item.tag == USER and caller.uid == item.id:
            return not mask & ~(item.allowed & limit)
        if (item.tag == GROUP_OBJ and record.gid in groups) or (
            item.tag == GROUP and item.id in groups
        ):
            found = True
            if not mask & ~(item.allowed & limit):
                return True
        if item.tag == OTHER and not found:
            return not mask & ~item.allowed
    return False
