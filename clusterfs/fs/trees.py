"""A directory tree cloned as it was at one moment: what snapshots are made of.

The tree is listed, then all its inodes are locked in number order, which makes other nodes write
back and wait, and every directory is listed again: if a name changed meanwhile, everything is
dropped and done over. While all locks are held nothing in the tree changes: that is the moment.
Then files are cloned one by one, sharing their blocks, and each is let go as soon as it is done.

The clone grows in a directory that the caller made, and gives a name at the end; half a clone is an
ordinary tree without that name. Hard links within the tree are kept. `.snapshots` at its top is
left out.
"""

import stat
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Self

import msgspec

from clusterfs.errors import InvalidArgument, NoSuchEntry, NotADirectory, StaleHandle, Unavailable
from clusterfs.fs.cloning import Cloning
from clusterfs.fs.directories import Directories
from clusterfs.fs.files import Files
from clusterfs.fs.gate import Attempt, ShareWanted, Wants
from clusterfs.fs.inodes import Inode, exclude_all
from clusterfs.fs.keys import TARGET, XATTR, Entry
from clusterfs.fs.namespace import Namespace, Newborn
from clusterfs.fs.parts import Parts
from clusterfs.fs.quota_ledger import NOTHING, Amount, counted
from clusterfs.fs.results import Caller
from clusterfs.fs.transactions import Edit
from clusterfs.store.objects import Put, Remove
from dlm.errors import LockLost

SNAPSHOTS = b".snapshots"
_ATTEMPTS = 20

Names = dict[bytes, Entry]


class Cloned(msgspec.Struct):
    """What a clone of a tree holds."""

    files: int = 0
    directories: int = 0
    others: int = 0
    nbytes: int = 0


_XATTRS = 4096  # no inode has more


class _Held:
    """The locks of a whole tree; each may be let go early."""

    def __init__(self) -> None:
        self._stacks: dict[Inode, AsyncExitStack] = {}

    async def __aenter__(self) -> Self:
        return self

    async def take(self, inode: Inode) -> None:
        stack = AsyncExitStack()
        await stack.enter_async_context(inode.lock.excluding())
        self._stacks[inode] = stack

    async def let_go(self, inode: Inode) -> None:
        stack = self._stacks.pop(inode, None)
        if stack is not None:
            await stack.aclose()

    async def __aexit__(self, *_: object) -> None:
        for inode in list(self._stacks):
            await self.let_go(inode)


class Trees:
    """Clones trees."""

    def __init__(
        self,
        parts: Parts,
        directories: Directories,
        namespace: Namespace,
        files: Files,
        cloning: Cloning,
    ) -> None:
        self._volume = parts.volume
        self._inodes = parts.inodes
        self._transactions = parts.transactions
        self._coherence = parts.coherence
        self._quotas = parts.quotas
        self._directories = directories
        self._namespace = namespace
        self._files = files
        self._cloning = cloning

    async def clone(self, source: int, target: int) -> Cloned:
        """Fill the empty directory, or file, `target` with what `source` holds at one moment.

        Raises:
            NotADirectory: one of them is a directory, the other is none.
            InvalidArgument: `target` lies in the tree `source`, or is a file with data, or one of
                them is neither.
            StaleHandle: this node was lost meanwhile, or the tree never kept still.
        """
        try:
            return await self._clone(source, target)
        except (LockLost, Unavailable) as failure:
            text = "this node was out of the cluster meanwhile; remove the half clone, try again"
            raise StaleHandle(text) from failure

    async def _clone(self, source: int, target: int) -> Cloned:
        wants = Wants()
        inode = self._inodes.get(source)
        async with inode.lock.sharing():
            is_file = (await self._transactions.load(inode)).is_regular
        once = self._clone_file if is_file else self._clone_once
        for _ in range(_ATTEMPTS):
            try:
                done = await wants.run(partial(once, source, target))
            except ShareWanted as wanted:
                wants.add(wanted)
            else:
                if done is not None:
                    return done
        raise StaleHandle("names in the tree keep changing; clone it when fewer come and go")

    async def _clone_once(self, source: int, target: int) -> Cloned | None:
        """Clone the tree, or return None if a name changed. ShareWanted: nothing was done."""
        listing = await self._listing(source)
        into = self._inodes.get(target)
        async with into.lock.sharing():
            limited = (await self._transactions.load_directory(into)).quota
        members = list(self._members(listing))
        if into in members:  # it would wait for ever for what it holds itself
            raise InvalidArgument("a tree cannot be cloned into itself")
        async with _Held() as held:
            for inode in members:
                await held.take(inode)
            if not await self._unchanged(listing):
                return None
            if limited:
                self._quotas.get(limited).require(await self._weight(listing))
            return await _Copy(self, held, listing).run(source, target)

    async def _clone_file(self, source: int, target: int) -> Cloned:
        """Share all of a file's data with an empty one. ShareWanted: nothing was done."""
        origin, made = self._inodes.get(source), self._inodes.get(target)
        async with AsyncExitStack() as stack:
            await exclude_all(stack, [origin, made])
            record = await self._transactions.load(origin)
            into = await self._transactions.load(made)
            if into.is_directory:
                raise NotADirectory
            if source == target or not into.is_regular or into.size or made.dirty:
                raise InvalidArgument("the target is no empty file")
            if into.quota:
                self._quotas.get(into.quota).require(Amount(record.size, 0))
            size = await self._cloning.clone_held(origin, made)
        await self._coherence.changed_here(made)
        return Cloned(files=1, nbytes=size)

    async def _weight(self, listing: dict[int, Names]) -> Amount:
        """Return what a clone of the tree takes from a quota."""
        total = NOTHING
        for inode in self._members(listing):
            if inode.number != next(iter(listing)):
                total = total.plus(counted(await self._transactions.load(inode)))
        return total

    async def _listing(self, top: int) -> dict[int, Names]:
        """Return the names in every directory of the tree, without `top`'s snapshots."""
        listing: dict[int, Names] = {}
        waiting = [top]
        while waiting:
            inode = self._inodes.get(waiting.pop())
            async with inode.lock.sharing():
                try:
                    await self._transactions.load_directory(inode)
                except (NoSuchEntry, NotADirectory):
                    if inode.number == top:
                        raise
                    continue
                names = await self._directories.everything(inode)
            if inode.number == top:
                names.pop(SNAPSHOTS, None)
            listing[inode.number] = names
            waiting += [entry.inode for entry in names.values() if entry.is_directory]
        return listing

    def _members(self, listing: dict[int, Names]) -> Iterator[Inode]:
        """Yield everything in the tree in number order."""
        numbers = set(listing)
        for names in listing.values():
            numbers |= {entry.inode for entry in names.values()}
        yield from (self._inodes.get(number) for number in sorted(numbers))

    async def _unchanged(self, listing: dict[int, Names]) -> bool:
        top = next(iter(listing))
        for number, names in listing.items():
            inode = self._inodes.get(number)
            try:
                await self._transactions.load_directory(inode)
            except NoSuchEntry:
                return False
            found = await self._directories.everything(inode)
            if number == top:
                found.pop(SNAPSHOTS, None)
            if found != names:
                return False
        return True

    # for _Copy

    def inode(self, number: int) -> Inode:
        """Return an inode."""
        return self._inodes.get(number)

    async def make(self, parent: Inode, name: bytes, origin: Inode) -> Inode:
        """Make something of the same kind, in the group of its origin if it is a file."""
        record = await self._files.load_for_change(origin)
        target = None
        if stat.S_ISLNK(record.mode):
            _, (stored,) = await self._transactions.fetch(origin, (TARGET,))
            target = stored or b""
        caller = Caller(record.uid, record.gid)
        group = None if record.is_directory else origin.group
        newborn = Newborn(record.mode, caller, record.rdev, target, group)
        made, _ = await self._namespace.make(Attempt(), parent.number, name, newborn)
        return made

    async def link(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """Give what was cloned one more name."""
        await self._namespace.link(Attempt(), inode.number, parent.number, name)

    async def fill(self, origin: Inode, made: Inode) -> int:
        """Share a file's data; returns its size."""
        async with made.lock.excluding():
            await self._transactions.load(made)
            return await self._cloning.clone_held(origin, made)

    async def dress(self, origin: Inode, made: Inode) -> None:
        """Give a clone the attributes of its origin, the extended ones too."""
        record = await self._transactions.load(origin)
        rows = await self._xattrs_of(origin)
        async with made.lock.excluding():
            inherited = await self._xattrs_of(made)
            ours = await self._transactions.load(made)
            changed = ours.changed(
                mode=record.mode,
                uid=record.uid,
                gid=record.gid,
                atime_ns=record.atime_ns,
                mtime_ns=record.mtime_ns,
                flags=record.flags,
            )
            edit = Edit(made, changed)
            edit.operations += [Remove(key) for key, _ in inherited]
            edit.operations += [Put(*row) for row in rows]
            await self._transactions.commit(edit)
            made.xattrs.clear()
        await self._coherence.changed_here(made)

    async def _xattrs_of(self, inode: Inode) -> list[tuple[bytes, bytes]]:
        return await self._volume.scan(inode.object_id, inode.group, XATTR, XATTR, _XATTRS)


class _Copy:
    """One clone on its way, with all locks of its origin held at first."""

    def __init__(self, trees: Trees, held: _Held, listing: dict[int, Names]) -> None:
        self._trees = trees
        self._held = held
        self._listing = listing
        self._made: dict[int, Inode] = {}
        self._done = Cloned()

    async def run(self, source: int, target: int) -> Cloned:
        """Copy everything below `source` into `target`."""
        trees = self._trees
        self._made[source] = trees.inode(target)
        for number, names in self._listing.items():  # each directory comes before what is in it
            parent = self._made[number]
            for name, entry in names.items():
                await self._copy(parent, name, entry)
        for number in reversed(self._listing):
            origin = trees.inode(number)
            await trees.dress(origin, self._made[number])
            await self._held.let_go(origin)
        return self._done

    async def _copy(self, parent: Inode, name: bytes, entry: Entry) -> None:
        trees, origin = self._trees, self._trees.inode(entry.inode)
        known = self._made.get(entry.inode)
        if known is not None:
            await trees.link(known, parent, name)
            return
        made = self._made[entry.inode] = await trees.make(parent, name, origin)
        if entry.is_directory:
            self._done.directories += 1
            return
        if stat.S_ISREG(entry.kind << 12):
            self._done.files += 1
            self._done.nbytes += await trees.fill(origin, made)
        else:
            self._done.others += 1
        await trees.dress(origin, made)
        await self._held.let_go(origin)
