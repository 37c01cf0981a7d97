"""Extended attributes: keys of the inode object, cached while the inode's lock is held.

user.*, trusted.*, security.* and the two POSIX ACLs of system.* are stored.
`user.clusterfs.atomic_fsync` also sets a flag of the inode's record ("1", or "0"), and what is made
in a directory that has it inherits it. An access ACL sets the mode, too, and one that says no more
than a mode is not kept. Flags of the record say whether there are ACLs and a security.capability,
so whoever has none pays nothing for them. `user.clusterfs.quota.*` are not stored as attributes
(quota_settings.py). Only root sees trusted.* in a list.
"""

import stat

from clusterfs.errors import (
    EntryExists,
    InvalidArgument,
    NoSuchAttribute,
    NotSupported,
    PermissionDenied,
    ResultTooLarge,
)
from clusterfs.fs import acl
from clusterfs.fs.attributes import ACCESS_ACL, ATOMIC_FSYNC, CAPABILITY, DEFAULT_ACL, Record
from clusterfs.fs.gate import Attempt
from clusterfs.fs.inodes import Inode
from clusterfs.fs.keys import NAME_BYTES, XATTR
from clusterfs.fs.locks import PR
from clusterfs.fs.parts import Parts
from clusterfs.fs.quota_settings import PREFIX, QuotaSettings
from clusterfs.fs.results import Caller
from clusterfs.fs.transactions import Edit
from clusterfs.store.objects import Put, Remove
from dlm.errors import LockLost

CREATE = 1
REPLACE = 2
VALUE_BYTES = 64 << 10

ATOMIC_FSYNC_NAME = b"user.clusterfs.atomic_fsync"

CAPABILITY_NAME = b"security.capability"
_OURS = b"user.clusterfs."

_NAMESPACES = (b"user.", b"trusted.", b"security.")
_FLAGS = {acl.ACCESS: ACCESS_ACL, acl.DEFAULT: DEFAULT_ACL, CAPABILITY_NAME: CAPABILITY}
_PAGE = 256


class Xattrs:
    """Reads and changes extended attributes."""

    def __init__(self, parts: Parts, quotas: QuotaSettings) -> None:
        self._quotas = quotas
        self._volume = parts.volume
        self._inodes = parts.inodes
        self._transactions = parts.transactions
        self._now_ns = parts.now_ns

    async def get(self, number: int, name: bytes) -> bytes:
        """Return a value. Raises NoSuchAttribute."""
        _check(name)
        if name.startswith(PREFIX):
            return await self._quotas.get(number, name)
        inode = self._inodes.get(number)
        async with inode.lock.sharing():
            value = await self.value(inode, name)
        if value is None:
            raise NoSuchAttribute
        return value

    async def names(self, number: int, caller: Caller) -> list[bytes]:
        """Return all names that the caller may see."""
        inode = self._inodes.get(number)
        names: list[bytes] = []
        async with inode.lock.sharing():
            await self._transactions.load(inode)
            after = XATTR
            while True:
                rows = await self._volume.scan(inode.object_id, inode.group, XATTR, after, _PAGE)
                names.extend(key[len(XATTR) :] for key, _ in rows)
                if len(rows) < _PAGE:
                    break
                after = rows[-1][0]
        return [name for name in names if caller.uid == 0 or not name.startswith(b"trusted.")]

    async def set(
        self,
        attempt: Attempt,
        number: int,
        name: bytes,
        value: bytes,
        flags: int,
        caller: Caller,
    ) -> None:
        """Set a value; CREATE: it must not exist, REPLACE: it must."""
        _check(name)
        if name.startswith(PREFIX):
            await self._quotas.set(number, name, value, caller)
            return
        if name.startswith(_OURS) and name != ATOMIC_FSYNC_NAME:
            raise NotSupported(f"{name!r} means nothing, and could only be mistaken for a setting")
        if len(value) > VALUE_BYTES:
            raise ResultTooLarge
        inode = self._inodes.get(number)
        if await self._transactions.settle(attempt):
            return
        async with inode.lock.excluding():
            before = await self.value(inode, name)
            if attempt.tried and before == value:
                return
            if flags & CREATE and before is not None:
                raise EntryExists
            if flags & REPLACE and before is None:
                raise NoSuchAttribute
            changed, kept = _with_value(inode, name, value, caller)
            await self._commit(attempt, inode, changed, name, value if kept else None)

    async def remove(self, attempt: Attempt, number: int, name: bytes, caller: Caller) -> None:
        """Remove a value. Raises NoSuchAttribute."""
        _check(name)
        if name.startswith(PREFIX):
            await self._quotas.remove(number, name, caller)
            return
        inode = self._inodes.get(number)
        if await self._transactions.settle(attempt):
            return
        async with inode.lock.excluding():
            if await self.value(inode, name) is None:
                if attempt.tried:
                    return
                raise NoSuchAttribute
            await self._commit(attempt, inode, _without_value(inode, name), name, None)

    async def _commit(
        self, attempt: Attempt, inode: Inode, changed: Record, name: bytes, value: bytes | None
    ) -> None:
        changed.ctime_ns = self._now_ns()
        key = XATTR + name
        operation = Remove(key) if value is None else Put(key, value)
        await self._transactions.commit(Edit(inode, changed, operation), attempt=attempt)
        if inode.lock.level >= PR:  # else it was lost just now
            inode.xattrs[name] = value

    async def value(self, inode: Inode, name: bytes) -> bytes | None:
        """Return a value of an inode whose lock is held, None if there is none."""
        record = await self._transactions.load(inode)
        flag = _FLAGS.get(name)
        if flag and not record.flags & flag:
            return None
        try:
            return inode.xattrs[name]
        except KeyError:
            pass
        stamp = inode.lock.stamp
        _, (value,) = await self._transactions.fetch(inode, (XATTR + name,))
        if inode.lock.stamp != stamp:
            raise LockLost
        inode.xattrs[name] = value
        return value


def _with_value(inode: Inode, name: bytes, value: bytes, caller: Caller) -> tuple[Record, bool]:
    """Return the record once `name` has this value, and whether the value is kept at all.

    Raises InvalidArgument.
    """
    assert inode.record is not None
    record = inode.record.changed(flags=inode.record.flags | _FLAGS.get(name, 0))
    if name == ATOMIC_FSYNC_NAME:
        if value not in (b"0", b"1"):
            raise InvalidArgument("atomic_fsync is 0 or 1")
        record.flags = record.flags & ~ATOMIC_FSYNC | (ATOMIC_FSYNC if value == b"1" else 0)
    elif name == acl.DEFAULT:
        acl.decode(value)
        if not record.is_directory:
            raise PermissionDenied
    elif name == acl.ACCESS:
        found = acl.decode(value)
        record.mode = record.mode & ~0o777 | acl.mode_of(found)
        if caller.uid != 0 and record.gid not in (caller.gid, *caller.groups):
            record.mode &= ~stat.S_ISGID
        if acl.is_minimal(found):
            record.flags &= ~ACCESS_ACL
            return record, False
    return record, True


def _without_value(inode: Inode, name: bytes) -> Record:
    """Return the record once `name` is gone."""
    assert inode.record is not None
    gone = ATOMIC_FSYNC if name == ATOMIC_FSYNC_NAME else _FLAGS.get(name, 0)
    return inode.record.changed(flags=inode.record.flags & ~gone)


def inherited_xattrs(record: Record, default: bytes | None) -> list[Put]:
    """Return what a new inode has; its directory's default ACL changes the record, too."""
    operations = []
    if record.flags & ATOMIC_FSYNC:
        operations.append(Put(XATTR + ATOMIC_FSYNC_NAME, b"1"))
    if default is None:
        return operations
    record.mode, found = acl.inherit(acl.decode(default), record.mode)
    if not acl.is_minimal(found):
        record.flags |= ACCESS_ACL
        operations.append(Put(XATTR + acl.ACCESS, acl.encode(found)))
    if record.is_directory:
        record.flags |= DEFAULT_ACL
        operations.append(Put(XATTR + acl.DEFAULT, default))
    return operations


def _check(name: bytes) -> None:
    if not name.startswith(_NAMESPACES) and name not in _FLAGS:
        raise NotSupported(f"extended attribute {name!r}")
    if name in _NAMESPACES:
        raise InvalidArgument("a namespace is no name")
    if len(name) > NAME_BYTES:
        raise ResultTooLarge
