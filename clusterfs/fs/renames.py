"""Rename, in all its kinds: over nothing, over a file, over an empty directory, an exchange.

Up to four inodes change in one transaction: both directories, what is moved, what is replaced.
A directory that moves to another directory needs the volume's rename lock first: while it is held
no ancestry changes, so that the walk up from the target tells for sure whether the directory would
become its own ancestor.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import NamedTuple

from clusterfs.errors import (
    CrossDevice,
    DirectoryNotEmpty,
    EntryExists,
    InvalidArgument,
    IsADirectory,
    NoSuchEntry,
    NotADirectory,
)
from clusterfs.fs.attributes import Record
from clusterfs.fs.directories import Directories
from clusterfs.fs.events import Event, Kind
from clusterfs.fs.gate import Attempt
from clusterfs.fs.inodes import Inode, excluding_all
from clusterfs.fs.keys import ENTRY, ROOT, Entry, check_name, encode_entry
from clusterfs.fs.locks import CachedLock
from clusterfs.fs.namespace import Namespace, dropping
from clusterfs.fs.parts import Parts
from clusterfs.fs.permissions import check_sticky
from clusterfs.fs.results import Caller
from clusterfs.fs.transactions import Edit
from clusterfs.store.objects import Put, Remove

NOREPLACE = 1
EXCHANGE = 2


class Place(NamedTuple):
    """A name in a directory."""

    directory: Inode
    name: bytes


class Renames:
    """Moves names."""

    def __init__(
        self,
        parts: Parts,
        directories: Directories,
        namespace: Namespace,
        rename_lock: CachedLock,
    ) -> None:
        self._inodes = parts.inodes
        self._transactions = parts.transactions
        self._directories = directories
        self._namespace = namespace
        self._rename_lock = rename_lock
        self._now_ns = parts.now_ns
        self._events = parts.events

    async def rename(
        self,
        attempt: Attempt,
        source: tuple[int, bytes],
        target: tuple[int, bytes],
        flags: int,
        caller: Caller,
    ) -> Inode | None:
        """Move a name. Returns an inode whose last name was replaced."""
        for _, name in (source, target):
            check_name(name)
        if flags & ~(NOREPLACE | EXCHANGE) or flags == NOREPLACE | EXCHANGE:
            raise InvalidArgument
        places = [Place(self._inodes.get(number), name) for number, name in (source, target)]
        if await self._transactions.settle(attempt):
            return None  # an inode without a name that this left is found by its mark
        while True:
            moved, replaced = [await self._look(place) for place in places]
            if attempt.tried and (moved is None or moved.inode != attempt.inode):
                return None  # it was done before this node was lost, or somebody else took it away
            if moved is None or (flags & EXCHANGE and replaced is None):
                raise NoSuchEntry
            if flags & NOREPLACE and replaced is not None:
                raise EntryExists
            swapped = replaced if flags & EXCHANGE else None
            touched = self._touched(places, moved, replaced)
            async with self._loopless(places, moved, swapped), excluding_all(touched):
                again = [await self._look_held(place) for place in places]
                if again == [moved, replaced]:
                    mover = _Move(self, attempt, places, moved, replaced, caller)
                    return await mover.run(exchange=bool(flags & EXCHANGE))

    async def _look(self, place: Place) -> Entry | None:
        return await self._namespace.look(place.directory, place.name)

    async def _look_held(self, place: Place) -> Entry | None:
        await self._transactions.load_directory(place.directory)
        return await self._directories.find(place.directory, place.name)

    def _touched(self, places: list[Place], *entries: Entry | None) -> list[Inode]:
        """Return the inodes that are changed; some perhaps twice."""
        moving = [self._inodes.get(entry.inode) for entry in entries if entry is not None]
        return [place.directory for place in places] + moving

    def _loopless(
        self, places: list[Place], moved: Entry, swapped: Entry | None
    ) -> AbstractAsyncContextManager[None]:
        """Let no directory that changes its directory come below itself."""
        source, target = (place.directory.number for place in places)
        if source == target:
            return nullcontext()
        return self._fixing_ancestry(moved, target, swapped, source)

    @asynccontextmanager
    async def _fixing_ancestry(
        self, moved: Entry, target: int, swapped: Entry | None, source: int
    ) -> AsyncIterator[None]:
        directories = [
            (entry.inode, above)
            for entry, above in ((moved, target), (swapped, source))
            if entry is not None and entry.is_directory
        ]
        async with self._rename_lock.excluding() if directories else nullcontext():
            for number, above in directories:
                await self._refuse_loop(number, above)
            yield

    async def _refuse_loop(self, moved: int, directory: int) -> None:
        """Raise InvalidArgument if `moved` is `directory` or above it."""
        number = directory
        while number not in (0, ROOT):
            if number == moved:
                raise InvalidArgument("a directory cannot be moved into itself")
            inode = self._inodes.get(number)
            async with inode.lock.sharing():
                record = await self._transactions.load_directory(inode)
                number = record.parent

    async def commit(self, attempt: Attempt, moved: int, edits: list[Edit]) -> None:
        """Send the transaction."""
        attempt.inode = moved
        await self._transactions.commit(*edits, attempt=attempt)

    # for _Move
    def inode(self, number: int) -> Inode:
        """Return an inode."""
        return self._inodes.get(number)

    async def load(self, inode: Inode) -> Record:
        """Return an inode's record."""
        return await self._transactions.load(inode)

    def now_ns(self) -> int:
        """Return the time."""
        return self._now_ns()

    async def require_empty(self, directory: Inode) -> None:
        """Raise DirectoryNotEmpty."""
        await self._directories.require_empty(directory)

    async def tell(self, entry: Entry, source: Place, target: Place) -> None:
        """Tell who watches that a name moved."""
        moves: list[tuple[Kind, Place]] = [("moved_from", source), ("moved_to", target)]
        for kind, place in moves:
            await self._events.tell(
                Event(kind, entry.inode, place.directory.number, place.name, entry.is_directory)
            )

    def remember(self, place: Place, entry: Entry | None) -> None:
        """Cache where a name leads now."""
        self._directories.remember(place.directory, place.name, entry)


class _Move:
    """One rename, with all locks held and all names checked."""

    def __init__(
        self,
        renames: Renames,
        attempt: Attempt,
        places: list[Place],
        moved: Entry,
        replaced: Entry | None,
        caller: Caller,
    ) -> None:
        self._renames = renames
        self._attempt = attempt
        self._source, self._target = places
        self._moved = moved
        self._replaced = replaced
        self._caller = caller
        self._now_ns = renames.now_ns()
        self._edits: dict[int, Edit] = {}

    async def run(self, *, exchange: bool) -> Inode | None:
        """Do it."""
        if self._replaced is not None and self._replaced.inode == self._moved.inode:
            return None  # two names of one file: nothing happens, says POSIX
        await self._check_sticky()
        await self._check_quota(self._moved, self._target)
        if exchange:
            assert self._replaced is not None
            await self._check_quota(self._replaced, self._source)
        return await (self._exchange() if exchange else self._move())

    async def _move(self) -> Inode | None:
        orphan = await self._take_replaced()
        await self._put(self._target, self._moved)
        directory_edit = await self._edit(self._source.directory)
        directory_edit.operations.append(Remove(ENTRY + self._source.name))
        await self._reparent(self._moved, self._source, self._target)
        await self._renames.commit(self._attempt, self._moved.inode, list(self._edits.values()))
        self._renames.remember(self._source, None)
        self._renames.remember(self._target, self._moved)
        await self._renames.tell(self._moved, self._source, self._target)
        return orphan

    async def _exchange(self) -> None:
        assert self._replaced is not None
        await self._put(self._target, self._moved)
        await self._put(self._source, self._replaced)
        await self._reparent(self._moved, self._source, self._target)
        await self._reparent(self._replaced, self._target, self._source)
        await self._renames.commit(self._attempt, self._moved.inode, list(self._edits.values()))
        self._renames.remember(self._source, self._replaced)
        self._renames.remember(self._target, self._moved)
        await self._renames.tell(self._moved, self._source, self._target)
        await self._renames.tell(self._replaced, self._target, self._source)

    async def _check_sticky(self) -> None:
        for place, entry in ((self._source, self._moved), (self._target, self._replaced)):
            if entry is not None:
                directory = await self._renames.load(place.directory)
                victim = await self._renames.load(self._renames.inode(entry.inode))
                check_sticky(directory, victim, self._caller)

    async def _check_quota(self, entry: Entry, target: Place) -> None:
        """Refuse to take anything across the border of a quota; only its own directory moves."""
        record = await self._renames.load(self._renames.inode(entry.inode))
        directory = await self._renames.load(target.directory)
        own = 0 if record.quota == entry.inode else record.quota
        if own != directory.quota:
            raise CrossDevice("nothing can be moved into or out of a directory with a quota")

    async def _take_replaced(self) -> Inode | None:
        """Drop the name that is overwritten."""
        if self._replaced is None:
            return None
        if self._replaced.inode == self._source.directory.number:
            raise DirectoryNotEmpty  # what is moved is in it
        if self._replaced.is_directory and not self._moved.is_directory:
            raise IsADirectory
        if self._moved.is_directory and not self._replaced.is_directory:
            raise NotADirectory
        inode = self._renames.inode(self._replaced.inode)
        record = await self._renames.load(inode)
        if record.is_directory:
            await self._renames.require_empty(inode)
            parent = (await self._edit(self._target.directory)).record
            assert parent is not None
            parent.nlink -= 1
        self._edits[inode.number] = dropping(inode, record, self._now_ns)
        return inode if record.nlink == 1 and not record.is_directory else None

    async def _put(self, place: Place, entry: Entry) -> None:
        edit = await self._edit(place.directory)
        edit.operations.append(Put(ENTRY + place.name, encode_entry(entry)))

    async def _reparent(self, entry: Entry, source: Place, target: Place) -> None:
        """Note the move in the moved inode, and in both directories if it is a directory."""
        edit = await self._edit(self._renames.inode(entry.inode), contents=False)
        if entry.is_directory and source.directory is not target.directory:
            left = (await self._edit(source.directory)).record
            entered = (await self._edit(target.directory)).record
            assert edit.record is not None
            assert left is not None
            assert entered is not None
            edit.record.parent = target.directory.number
            left.nlink -= 1
            entered.nlink += 1

    async def _edit(self, inode: Inode, *, contents: bool = True) -> Edit:
        """Return the edit of one inode, made at first use."""
        edit = self._edits.get(inode.number)
        if edit is None:
            record = await self._renames.load(inode)
            edit = Edit(inode, record.changed(ctime_ns=self._now_ns))
            self._edits[inode.number] = edit
        if contents and edit.record is not None:
            edit.record.touch(self._now_ns)
        return edit
