"""Extended attributes: keys of the inode object, cached while the inode's lock is held.

user.*, trusted.* and security.* are stored. `user.clusterfs.atomic_fsync` also sets a flag of the
inode's record ("1", or "0"), and what is made in a directory that has it inherits it. POSIX ACLs
(system.*) are refused: the kernel would have to enforce them.
"""

from clusterfs.errors import (
    EntryExists,
    InvalidArgument,
    NoSuchAttribute,
    NotSupported,
    ResultTooLarge,
)
from clusterfs.fs.attributes import ATOMIC_FSYNC
from clusterfs.fs.gate import Attempt
from clusterfs.fs.inodes import Inode
from clusterfs.fs.keys import NAME_BYTES, XATTR
from clusterfs.fs.parts import Parts
from clusterfs.fs.transactions import Edit
from clusterfs.store.objects import Put, Remove
from dlm.errors import LockLost

CREATE = 1
REPLACE = 2
VALUE_BYTES = 64 << 10

ATOMIC_FSYNC_NAME = b"user.clusterfs.atomic_fsync"

_NAMESPACES = (b"user.", b"trusted.", b"security.")
_PAGE = 256


class Xattrs:
    """Reads and changes extended attributes."""

    def __init__(self, parts: Parts) -> None:
        self._volume = parts.volume
        self._inodes = parts.inodes
        self._transactions = parts.transactions
        self._now_ns = parts.now_ns

    async def get(self, number: int, name: bytes) -> bytes:
        """Return a value. Raises NoSuchAttribute."""
        _check(name)
        inode = self._inodes.get(number)
        async with inode.lock.sharing():
            value = await self._value(inode, name)
        if value is None:
            raise NoSuchAttribute
        return value

    async def names(self, number: int) -> list[bytes]:
        """Return all names."""
        inode = self._inodes.get(number)
        names: list[bytes] = []
        async with inode.lock.sharing():
            await self._transactions.load(inode)
            after = XATTR
            while True:
                rows = await self._volume.scan(inode.object_id, inode.group, XATTR, after, _PAGE)
                names.extend(key[len(XATTR) :] for key, _ in rows)
                if len(rows) < _PAGE:
                    return names
                after = rows[-1][0]

    async def set(
        self, attempt: Attempt, number: int, name: bytes, value: bytes, flags: int
    ) -> None:
        """Set a value; CREATE: it must not exist, REPLACE: it must."""
        _check(name)
        if len(value) > VALUE_BYTES:
            raise ResultTooLarge
        inode = self._inodes.get(number)
        async with inode.lock.excluding():
            before = await self._value(inode, name)
            if attempt.tried and before == value:
                return
            if flags & CREATE and before is not None:
                raise EntryExists
            if flags & REPLACE and before is None:
                raise NoSuchAttribute
            flags = _flags(inode, name, value)
            await self._commit(attempt, inode, flags, Put(XATTR + name, value))
            inode.xattrs[name] = value

    async def remove(self, attempt: Attempt, number: int, name: bytes) -> None:
        """Remove a value. Raises NoSuchAttribute."""
        _check(name)
        inode = self._inodes.get(number)
        async with inode.lock.excluding():
            if await self._value(inode, name) is None:
                if attempt.tried:
                    return
                raise NoSuchAttribute
            flags = _flags(inode, name, b"0")
            await self._commit(attempt, inode, flags, Remove(XATTR + name))
            inode.xattrs[name] = None

    async def _commit(
        self, attempt: Attempt, inode: Inode, flags: int, operation: Put | Remove
    ) -> None:
        record = await self._transactions.load(inode)
        attempt.tried = True
        changed = record.changed(ctime_ns=self._now_ns(), flags=flags)
        await self._transactions.commit(Edit(inode, changed, operation))

    async def _value(self, inode: Inode, name: bytes) -> bytes | None:
        await self._transactions.load(inode)
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


def _flags(inode: Inode, name: bytes, value: bytes) -> int:
    """Return the record's flags once `name` has this value. Raises InvalidArgument."""
    assert inode.record is not None
    flags = inode.record.flags
    if name != ATOMIC_FSYNC_NAME:
        return flags
    if value not in (b"0", b"1"):
        raise InvalidArgument("atomic_fsync is 0 or 1")
    return flags | ATOMIC_FSYNC if value == b"1" else flags & ~ATOMIC_FSYNC


def inherited_xattrs(flags: int) -> list[Put]:
    """Return what an inode made with these flags has."""
    return [Put(XATTR + ATOMIC_FSYNC_NAME, b"1")] if flags & ATOMIC_FSYNC else []


def _check(name: bytes) -> None:
    if not name.startswith(_NAMESPACES):
        raise NotSupported(f"extended attribute {name!r}")
    if len(name) > NAME_BYTES:
        raise ResultTooLarge
