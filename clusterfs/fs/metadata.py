"""Attributes changed on request: setattr, access.

A change of times, or any change while the store lacks something of the file anyway, is like a
write: it goes to the replicas with what is dirty, at fsync, when the lock is given up, or soon. So
what a file that was just made gets (its contents, owner, mode and times) costs one transaction.
"""

import msgspec

from clusterfs.errors import InvalidArgument, IsADirectory
from clusterfs.fs import acl, asking
from clusterfs.fs.attributes import ACCESS_ACL, Record
from clusterfs.fs.files import Files
from clusterfs.fs.gate import Attempt
from clusterfs.fs.inodes import Inode
from clusterfs.fs.keys import XATTR
from clusterfs.fs.locks import EX, PR
from clusterfs.fs.parts import Parts
from clusterfs.fs.permissions import (
    allowed_mode,
    check_access,
    check_change,
    mode_after_change,
    mode_after_chown,
)
from clusterfs.fs.results import Caller, Changes, Status, attributes_of
from clusterfs.fs.transactions import Edit
from clusterfs.fs.xattrs import Xattrs
from clusterfs.store.objects import Put

_TYPE = 0o170000
_TIMES = {"atime_ns", "mtime_ns", "ctime_ns"}


class Metadata:
    """Changes attributes."""

    def __init__(self, parts: Parts, files: Files, xattrs: Xattrs) -> None:
        self._xattrs = xattrs
        self._inodes = parts.inodes
        self._files = files
        self._transactions = parts.transactions
        self._writeback = parts.writeback
        self._coherence = parts.coherence
        self._now_ns = parts.now_ns

    async def change(
        self, attempt: Attempt, number: int, changes: Changes, caller: Caller
    ) -> Status:
        """Apply changes of attributes, the size first among them, and return the result."""
        inode = self._inodes.get(number)
        if await self._transactions.settle(attempt):
            return Status(attributes_of(number, await self._transactions.peek(inode)), 0.0)
        async with inode.lock.excluding():
            record = await self._files.load_for_change(inode)
            check_change(record, changes, caller)
            fields = _fields(record, changes, caller, self._now_ns())
            mode = changes.mode if record.flags & ACCESS_ACL else None  # that the ACL must follow
            if changes.size is not None:
                await self._resize(attempt, inode, changes.size, fields)
            elif mode is not None or not self._take_later(inode, record, fields):
                edit = Edit(inode, record.changed(**fields))
                if mode is not None:
                    edit.operations.append(await self._acl_with(inode, mode))
                await self._transactions.commit(edit, attempt=attempt)
            inode.lock.require(PR)
            return self._coherence.status(inode)

    def _take_later(self, inode: Inode, record: Record, fields: dict[str, int]) -> bool:
        """Change the attributes in memory only, if they may be written back like data."""
        may = record.is_regular and not record.atomic_fsync and not self._transactions.read_only
        like_data = inode.needs_flush or fields.keys() <= _TIMES
        if not may or not like_data or self._writeback.crowded:
            return False
        inode.lock.require(EX)
        asking.changing()
        for name, value in fields.items():
            setattr(record, name, value)  # a flush that is under way has this very record
        if "atime_ns" in fields:
            inode.accessed_ns = 0
        self._writeback.mark_dirty(inode)
        return True

    async def access(self, number: int, mask: int, caller: Caller) -> None:
        """Raise PermissionDenied unless the caller may."""
        inode = self._inodes.get(number)
        async with inode.lock.sharing():
            record = await self._transactions.load(inode)
            value = await self._xattrs.value(inode, acl.ACCESS)
            check_access(record, mask, caller, acl.decode(value) if value else None)

    async def _acl_with(self, inode: Inode, mode: int) -> Put:
        """Return what gives the access ACL this mode."""
        value = await self._xattrs.value(inode, acl.ACCESS)
        assert value is not None
        changed = acl.encode(acl.with_mode(acl.decode(value), mode))
        del inode.xattrs[acl.ACCESS]  # read anew, if the commit should fail
        return Put(XATTR + acl.ACCESS, changed)

    async def _resize(
        self, attempt: Attempt, inode: Inode, size: int, fields: dict[str, int]
    ) -> None:
        assert inode.record is not None
        if inode.record.is_directory:
            raise IsADirectory
        if not inode.record.is_regular:
            raise InvalidArgument
        now_ns = fields["ctime_ns"]
        await self._files.truncation.truncate(inode, size, now_ns, attempt=attempt, **fields)


def _fields(record: Record, changes: Changes, caller: Caller, now_ns: int) -> dict[str, int]:
    """Return the fields of the record to replace."""
    if changes.size is not None and changes.mtime_ns is not None:
        changes = msgspec.structs.replace(changes, mtime_ns=now_ns)  # the kernel's clock, no more
    fields = {"ctime_ns": now_ns if changes.ctime_ns is None else changes.ctime_ns}
    for name in ("uid", "gid", "atime_ns", "mtime_ns"):
        value = getattr(changes, name)
        if value is not None:
            fields[name] = value
    mode = record.mode
    if changes.uid is not None or changes.gid is not None:
        mode = mode_after_chown(record, caller)
    elif changes.size is not None:
        mode = mode_after_change(record, caller)
    if changes.mode is not None:
        mode = record.mode & _TYPE | allowed_mode(record, changes.mode & ~_TYPE, caller)
    if mode != record.mode:
        fields["mode"] = mode
    return fields
