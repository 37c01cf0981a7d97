"""Names: lookup, create, mkdir, mknod, symlink, link, unlink, rmdir; renames.py has rename.

Every change is one transaction over the directory's object and the child's. Names are looked up
first, then all inode locks are taken in number order, and what was looked up is checked again;
if it changed, everything is dropped and done over.

A request that may run twice carries an Attempt: if its first transaction took place after all,
the second run finds the result and says so instead of EEXIST or ENOENT.
"""

import stat
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec

from clusterfs.errors import (
    CrossDevice,
    EntryExists,
    FilesystemError,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NoSuchEntry,
    NotADirectory,
    OperationNotPermitted,
    StaleHandle,
    TooManyLinks,
    Vanished,
)
from clusterfs.fs import acl, keys
from clusterfs.fs.attributes import (
    ATOMIC_FSYNC,
    DEFAULT_ACL,
    MAXIMUM_LINKS,
    UNNAMED,
    Record,
    fresh,
)
from clusterfs.fs.directories import Directories
from clusterfs.fs.events import Event, Kind
from clusterfs.fs.gate import Attempt
from clusterfs.fs.inodes import Inode, excluding_all
from clusterfs.fs.keys import ENTRY, TARGET, check_name, encode_entry
from clusterfs.fs.parts import Parts
from clusterfs.fs.permissions import check_sticky, inherited
from clusterfs.fs.results import Caller, Entry, Status, attributes_of
from clusterfs.fs.transactions import Edit
from clusterfs.fs.truncation import only_stripe_deleted, stripes_of
from clusterfs.fs.xattrs import Xattrs, inherited_xattrs
from clusterfs.store.objects import Put, Remove


class Newborn(msgspec.Struct, frozen=True):
    """What is to be made, by whom."""

    mode: int
    caller: Caller
    rdev: int = 0
    target: bytes | None = None  # of a symlink
    group: int | None = None  # of a clone: where its origin is


class Namespace:
    """What can be done with names."""

    def __init__(self, parts: Parts, directories: Directories, xattrs: Xattrs) -> None:
        self._xattrs = xattrs
        self._volume = parts.volume
        self._inodes = parts.inodes
        self._transactions = parts.transactions
        self._directories = directories
        self._coherence = parts.coherence
        self._access_times = parts.access_times
        self._events = parts.events
        self._writeback = parts.writeback
        self._locks = parts.locks
        self._now_ns = parts.now_ns

    # -- looking

    async def lookup(self, number: int, name: bytes) -> Entry:
        """Return what a name leads to; no attributes: the name does not exist."""
        directory = self._inodes.get(number)
        gone = None
        while True:
            found, stamp = await self._find(directory, name)
            if found is None:
                return self._coherence.absent(directory, stamp)
            if found == gone:
                raise FilesystemError(f"{name!r} leads to inode {found.inode:#x}, which is gone")
            gone = found  # if it is: numbers are never reused, so the name must be gone too
            inode = self._inodes.get(found.inode)
            if inode is directory:
                return await self._entry_of_itself(directory, stamp)
            async with inode.lock.sharing():
                try:
                    record = await self._transactions.load(inode)
                except NoSuchEntry:
                    continue  # unlinked since; look again
                if record.nlink:
                    return self._coherence.entry(directory, stamp, inode)

    async def find(self, number: int, name: bytes) -> keys.Entry:
        """Return where a name leads now. Raises NoSuchEntry."""
        found, _ = await self._find(self._inodes.get(number), name)
        if found is None:
            raise NoSuchEntry
        return found

    async def look(self, directory: Inode, name: bytes) -> keys.Entry | None:
        """Return where a name leads, None: nowhere. Raises NoSuchEntry: the directory is gone."""
        return (await self._find(directory, name))[0]

    async def _find(self, directory: Inode, name: bytes) -> tuple[keys.Entry | None, int]:
        record = directory.record
        if record is not None and name in directory.entries and directory.lock.shared_nowait():
            directory.lock.release()  # what follows does not await
            if record.is_directory and record.nlink:
                return directory.entries[name], directory.lock.stamp
        if len(name) > keys.NAME_BYTES:
            raise NameTooLong
        async with directory.lock.sharing():
            record = await self._transactions.load_directory(directory)
            if name == b".":
                return keys.Entry(directory.number, keys.DIRECTORY), directory.lock.stamp
            if name == b"..":
                parent = record.parent or directory.number
                return keys.Entry(parent, keys.DIRECTORY), directory.lock.stamp
            return await self._directories.find(directory, name), directory.lock.stamp

    async def _entry_of_itself(self, directory: Inode, stamp: int) -> Entry:
        async with directory.lock.sharing():
            await self._transactions.load_directory(directory)
            return self._coherence.entry(directory, stamp, directory)

    async def status(self, number: int) -> Status:
        """Return an inode's attributes."""
        inode = self._inodes.get(number)
        async with inode.lock.sharing():
            await self._transactions.load(inode)
            return self._coherence.status(inode)

    async def readlink(self, number: int) -> bytes:
        """Return a symlink's target."""
        inode = self._inodes.get(number)
        async with inode.lock.sharing():
            record = await self._transactions.load(inode)
            if not stat.S_ISLNK(record.mode):
                raise InvalidArgument
            if inode.target is None:
                _, (inode.target,) = await self._transactions.fetch(inode, (TARGET,))
            self._access_times.note(inode)
            return inode.target or b""

    # -- making

    async def make(
        self,
        attempt: Attempt,
        number: int,
        name: bytes,
        newborn: Newborn,
        hold: Callable[[Inode], Awaitable[None]] | None = None,
    ) -> tuple[Inode, Entry]:
        """Make what does not exist yet; `hold` is told of the inode before others can see it.

        Its lock is held in EX from the beginning: its name is new, so that costs no message.
        """
        check_name(name)
        directory = self._inodes.get(number)
        if await self._transactions.settle(attempt):
            return await self._made_before(attempt)
        async with directory.lock.excluding():
            record = await self._transactions.load_directory(directory)
            found = await self._directories.find(directory, name)
            if found is not None:
                if attempt.tried and found.inode == attempt.inode:
                    return await self._made_before(attempt)
                raise EntryExists
            child = self._new_child(attempt, directory, newborn)
            await child.lock.make()
            async with child.lock.excluding():
                if hold is not None:
                    await hold(child)
                made, xattrs = await self._child_record(record, directory, child, newborn)
                entry = keys.Entry(child.number, newborn.mode >> 12)
                parent_edit = self._entering(directory, record, made, name, entry)
                child_edit = Edit(child, made)
                child_edit.creates = True
                child_edit.operations += xattrs
                if newborn.target is not None:
                    child_edit.operations.append(Put(TARGET, newborn.target))
                await self._transactions.commit(parent_edit, child_edit, attempt=attempt)
                self._directories.remember(directory, name, entry)
                await self._tell("create", directory, name, entry)
                return child, self._made(directory, child, made)

    async def make_unnamed(
        self,
        number: int,
        newborn: Newborn,
        hold: Callable[[Inode], Awaitable[None]],
        *,
        may_be_named: bool,
    ) -> tuple[Inode, Entry]:
        """Make a file that has no name: an orphan that goes when nobody has it open.

        may_be_named: `link` may give it a name.
        """
        directory = self._inodes.get(number)
        async with directory.lock.sharing():
            record = await self._transactions.load_directory(directory)
            child = self._new_child(Attempt(), directory, newborn)
            await child.lock.make()
            async with child.lock.excluding():
                await hold(child)
                made, xattrs = await self._child_record(record, directory, child, newborn)
                made.nlink = 0
                made.flags |= UNNAMED if may_be_named else 0
                edit = Edit(child, made, *xattrs)
                edit.creates = True
                edit.mark = keys.ORPHAN
                await self._transactions.commit(edit)
                return child, self._made(directory, child, made)

    def _made(self, directory: Inode, child: Inode, made: Record) -> Entry:
        if child.record is not None:
            return self._coherence.entry(directory, directory.lock.stamp, child)
        timeout_s = self._coherence.entry_timeout_s(directory, directory.lock.stamp)
        return Entry(attributes_of(child.number, made), timeout_s, 0.0)  # the lock was lost

    async def _made_before(self, attempt: Attempt) -> tuple[Inode, Entry]:
        """Return what an earlier run has made; its name may lead elsewhere by now."""
        child = self._inodes.get(attempt.inode)
        try:
            record = await self._transactions.peek(child)
        except NoSuchEntry:
            raise StaleHandle(
                "it was made; another node removed it while this one was out"
            ) from None
        return child, Entry(attributes_of(child.number, record), 0.0, 0.0)

    def _new_child(self, attempt: Attempt, directory: Inode, newborn: Newborn) -> Inode:
        group = newborn.group
        if group is None and not stat.S_ISDIR(newborn.mode):
            group = directory.group
        attempt.inode = self._volume.new_inode(group)
        return self._inodes.get(attempt.inode)

    async def _child_record(
        self, parent: Record, directory: Inode, child: Inode, newborn: Newborn
    ) -> tuple[Record, list[Put]]:
        """Return the record of what is made, and the attributes that it inherits."""
        mode, gid = inherited(parent, newborn.mode, newborn.caller)
        record = fresh(mode, newborn.caller.uid, gid, self._now_ns(), seed=child.number)
        record.rdev = newborn.rdev
        if record.is_regular or record.is_directory:
            record.flags = parent.flags & ATOMIC_FSYNC
        record.size = len(newborn.target or b"")
        record.quota = parent.quota
        if record.is_directory:
            record.parent = directory.number
        default = None
        if newborn.target is None:
            if parent.flags & DEFAULT_ACL:
                default = await self._xattrs.value(directory, acl.DEFAULT)
            else:
                record.mode &= ~newborn.caller.umask
        return record, inherited_xattrs(record, default)

    def _entering(
        self, directory: Inode, record: Record, made: Record, name: bytes, entry: keys.Entry
    ) -> Edit:
        if made.is_directory and record.nlink >= MAXIMUM_LINKS:
            raise TooManyLinks
        changed = record.changed(nlink=record.nlink + made.is_directory)
        changed.touch(made.btime_ns)
        return Edit(directory, changed, Put(ENTRY + name, encode_entry(entry)))

    async def link(self, attempt: Attempt, number: int, parent: int, name: bytes) -> Entry:
        """Give an inode one more name."""
        check_name(name)
        inode, directory = self._inodes.get(number), self._inodes.get(parent)
        if await self._transactions.settle(attempt):
            return Entry(attributes_of(number, await self._transactions.peek(inode)), 0.0, 0.0)
        async with excluding_all([inode, directory]):
            found = await self._check_new_link(directory, name)
            record = await self._transactions.load(inode)
            if found is not None:
                if attempt.tried and found.inode == number:
                    return self._coherence.entry(directory, directory.lock.stamp, inode)
                raise EntryExists
            if record.is_directory:
                raise OperationNotPermitted
            if not record.nlink and not record.flags & UNNAMED:
                raise Vanished
            if record.nlink >= MAXIMUM_LINKS:
                raise TooManyLinks
            now_ns = self._now_ns()
            assert directory.record is not None
            if record.quota != directory.record.quota:
                raise CrossDevice("a hard link cannot leave or enter a directory with a quota")
            changed = directory.record.changed(mtime_ns=now_ns, ctime_ns=now_ns)
            entry = keys.Entry(number, record.mode >> 12)
            named = naming(inode, record, now_ns)
            await self._transactions.commit(
                Edit(directory, changed, Put(ENTRY + name, encode_entry(entry))),
                named,
                attempt=attempt,
            )
            self._directories.remember(directory, name, entry)
            await self._tell("create", directory, name, entry)
            assert named.record is not None
            return self._made(directory, inode, named.record)

    async def _check_new_link(self, directory: Inode, name: bytes) -> keys.Entry | None:
        await self._transactions.load_directory(directory)
        return await self._directories.find(directory, name)

    async def _tell(self, kind: Kind, directory: Inode, name: bytes, entry: keys.Entry) -> None:
        await self._events.tell(
            Event(kind, entry.inode, directory.number, name, entry.is_directory)
        )

    # -- removing

    async def unlink(
        self, attempt: Attempt, number: int, name: bytes, caller: Caller, *, is_directory: bool
    ) -> Inode | None:
        """Take a name away. Returns the inode if that was its last name; it may be `gone`."""
        if name in (b".", b".."):
            check_name(name)
        directory = self._inodes.get(number)
        if await self._transactions.settle(attempt):
            return self._inodes.get(attempt.inode)
        while True:
            found, _ = await self._find(directory, name)
            if found is None or (attempt.tried and found.inode != attempt.inode):
                if attempt.tried:
                    return self._inodes.get(attempt.inode)
                raise NoSuchEntry
            if is_directory and not found.is_directory:
                raise NotADirectory
            if found.is_directory and not is_directory:
                raise IsADirectory
            child = self._inodes.get(found.inode)
            async with excluding_all([directory, child]):
                await self._transactions.load_directory(directory)
                if await self._directories.find(directory, name) == found:
                    return await self._remove(attempt, directory, name, child, caller)

    async def _remove(
        self, attempt: Attempt, directory: Inode, name: bytes, child: Inode, caller: Caller
    ) -> Inode | None:
        parent, record = directory.record, await self._transactions.load(child)
        assert parent is not None
        check_sticky(parent, record, caller)
        if record.is_directory:
            await self._directories.require_empty(child)
        now_ns = self._now_ns()
        attempt.inode = child.number
        changed = parent.changed(
            nlink=parent.nlink - record.is_directory, mtime_ns=now_ns, ctime_ns=now_ns
        )
        leaving = Edit(directory, changed, Remove(ENTRY + name))
        if _goes_at_once(leaving, child) and await self._locks.exclude_free(child.open_lock):
            await self._remove_wholly(leaving, child, attempt, now_ns)
        else:
            edit = dropping(child, record, now_ns)
            await self._transactions.commit(leaving, edit, attempt=attempt)
        self._directories.remember(directory, name, None)
        await self._tell("delete", directory, name, keys.Entry(child.number, record.mode >> 12))
        return child if record.nlink == 1 else None

    async def _remove_wholly(
        self, leaving: Edit, child: Inode, attempt: Attempt, now_ns: int
    ) -> None:
        """Delete an inode, that nobody has open, with its last name: one transaction for all."""
        try:
            assert child.record is not None
            edit = dropping(child, child.record, now_ns)
            if not _goes_at_once(leaving, child):  # its writeback has begun meanwhile
                await self._transactions.commit(leaving, edit, attempt=attempt)
                return
            edit = Edit(child)
            edit.deletes = True
            data = partial(only_stripe_deleted, self._writeback, child)
            await self._transactions.commit(leaving, edit, changes=data, attempt=attempt)
            child.gone = True
            self._writeback.abandon(child)
        finally:
            child.open_lock.release(weaken=not child.gone)


def _goes_at_once(leaving: Edit, child: Inode) -> bool:
    """Tell whether one transaction can take a name and the inode away, if nobody has it open."""
    record = child.record
    return (
        record is not None
        and record.nlink == 1
        and not record.is_directory
        and child.mark is None
        and child.kept is None
        and stripes_of(child.committed_size) <= 1
        and not (child.committing.locked() or leaving.inode.committing.locked())
    )


def naming(inode: Inode, record: Record, now_ns: int) -> Edit:
    """Return the edit that gives an inode one more name; with one it is no orphan."""
    flags = record.flags & ~UNNAMED
    edit = Edit(inode, record.changed(nlink=record.nlink + 1, ctime_ns=now_ns, flags=flags))
    if not record.nlink:
        edit.mark = keys.TRUNCATING if inode.mark == keys.ORPHAN_TRUNCATING else None
    return edit


def dropping(inode: Inode, record: Record, now_ns: int) -> Edit:
    """Return the edit that takes one name from an inode: the last one makes it an orphan."""
    if record.is_directory:
        edit = Edit(inode)
        edit.deletes = True
        return edit
    edit = Edit(inode, record.changed(nlink=record.nlink - 1, ctime_ns=now_ns))
    if record.nlink == 1:
        edit.mark = keys.ORPHAN if inode.mark is None else keys.ORPHAN_TRUNCATING
    return edit
