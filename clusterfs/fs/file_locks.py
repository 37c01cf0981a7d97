"""File locks: fcntl (POSIX and open file description) and flock, as ranges of the lock manager.

Who holds a lock is the kernel's lock owner: for POSIX locks the process, for the other two the open
file description. The kernel does not say which of the first two it is, so each lock remembers the
handles by which it was taken: a FLUSH drops what its own owner has (POSIX: any close of the file by
that process), a RELEASE what was taken by its handle (the last close of a description).

Waiting for a lock is no use of any other lock, and ends at any signal. Where the answer to the
cancelled wait is that it was granted meanwhile, it is.

When this node is lost, its locks are, too. Once it is back they are taken again, before any program
is served. If others have such a lock now, or may have had it meanwhile, what is open of the file
gives errors until it is closed. The same when another daemon takes the mount over: the journal has
every lock from before its program hears of it until after it is given up.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import trio

from clusterfs.errors import Interrupted
from clusterfs.fs import asking
from clusterfs.fs.endangered import LockNote
from clusterfs.fs.handles import Handles, OpenFile
from clusterfs.fs.inodes import FLOCK, POSIX, Inode
from clusterfs.fs.parts import Parts
from clusterfs.fs.ports import Mode, Name
from dlm.errors import LockCancelled, WouldBlock
from dlm.events import Owner
from dlm.ranges import TO_THE_END, Held, How, Party, RangeRequest, Ranges, Span

NOTHING = Mode.NL
SHARED = Mode.PR
EXCLUSIVE = Mode.EX

Key = tuple[int, bytes, int]  # inode, kind, lock owner


class Kept(NamedTuple):
    """What somebody had locked when this node was lost, in lock epoch `since`."""

    spans: list[Span]
    since: int


class Locker:
    """One owner of locks of one file and kind."""

    __slots__ = ("asking", "handles", "inode", "kept", "key", "party")

    def __init__(self, inode: Inode, key: Key, party: Party) -> None:
        self.inode = inode
        self.key = key
        self.party = party
        self.handles: set[int] = set()  # by which it has locked anything
        self.asking = 0  # requests under way
        self.kept: Kept | None = None  # while this node is out


class FileLocks:
    """The file locks of this mount's programs."""

    def __init__(self, parts: Parts, handles: Handles) -> None:
        self._gate = parts.gate
        self._locks = parts.locks
        self._handles = handles
        self._endangered = parts.endangered
        self._lockers: dict[Key, Locker] = {}
        self._by_file: dict[int, set[Locker]] = {}
        self._owners: dict[int, Owner] = {}
        self.lost = 0  # lockers whose locks others may have had while this node was out
        self.retaken = 0  # and those whose locks are theirs again

    def __len__(self) -> int:
        return len(self._lockers)

    @property
    def _ranges(self) -> Ranges:
        return self._locks.lockspace.ranges

    # -- fcntl

    async def set(
        self, handle: int, owner: int, pid: int, span: Span, *, wait: bool, kind: bytes = POSIX
    ) -> None:
        """Lock or, with mode NL, unlock bytes.

        Raises WouldBlock (EAGAIN), DeadlockVictim (EDEADLK), Interrupted (EINTR), StaleHandle.
        """
        opened = self._handles.file(handle)
        if span.mode is NOTHING:
            await self._gate.run(partial(self._unlock, opened, owner, span, kind))
        else:
            how = How.WAIT if wait else How.TRY
            await self._gate.run(partial(self._lock, opened, owner, pid, span, how, kind))

    async def test(self, handle: int, owner: int, pid: int, span: Span) -> Held | None:
        """Return who would be in the way of a lock; None: nobody."""
        opened = self._handles.file(handle)
        return await self._gate.run(partial(self._test, opened, owner, pid, span), rerun=True)

    # -- flock

    async def flock(self, handle: int, owner: int, pid: int, mode: Mode, *, wait: bool) -> None:
        """Lock or unlock a file as a whole; what was held is given up first, if it was other."""
        locker = self._lockers.get((self._handles.file(handle).inode.number, FLOCK, owner))
        whole = Span(0, TO_THE_END, mode)
        if locker is not None:
            held = self._ranges.held(locker.party)
            if held == [whole]:
                return
            if held and mode is not NOTHING:
                nothing = Span(0, TO_THE_END, NOTHING)
                await self.set(handle, owner, pid, nothing, wait=False, kind=FLOCK)
        await self.set(handle, owner, pid, whole, wait=wait, kind=FLOCK)

    # -- closing

    def closed(self, handle: int, owner: int) -> None:
        """Drop an owner's POSIX locks: it closes the file, by any of its descriptors."""
        opened = self._handles.known(handle)
        locker = opened and self._lockers.get((opened.inode.number, POSIX, owner))
        if locker:
            self._drop(locker)

    def released(self, handle: int) -> None:
        """Drop what was locked by a handle: it is closed for good."""
        opened = self._handles.known(handle)
        if opened is None:
            return
        for locker in list(self._by_file.get(opened.inode.number, ())):
            if handle in locker.handles:
                self._drop(locker)

    async def settled(self, inode: Inode) -> None:
        """Wait until other nodes may have what was unlocked here."""
        for name in names_of(inode):
            await self._ranges.freed(name)

    # -- membership

    def restore(self, notes: Sequence[LockNote], inode: Inode, since: int) -> None:
        """Know an owner's locks in a file of the process before this one; `readmit` takes them.

        notes: of open handles, at least one; since: the last epoch in which it certainly had them.
        """
        first = notes[0]
        locker = self._locker(inode, first.owner, first.pid, FLOCK if first.flock else POSIX)
        locker.handles.update(note.handle for note in notes)
        spans = [Span(n.start, n.last, Mode(n.mode)) for n in notes if n.mode != NOTHING]
        locker.kept = Kept(spans, since)

    def locked_files(self) -> Iterable[int]:
        """Return the inodes in which anything is locked or waited for."""
        return self._by_file.keys()

    def lose(self) -> None:
        """This node is out: keep in mind what was locked. Call it before the locks are lost."""
        ranges, since = self._ranges, self._locks.lockspace.epoch
        for locker in list(self._lockers.values()):
            if locker.kept is None:
                spans = ranges.held(locker.party)
                if not spans:
                    self._forget(locker)
                    continue
                locker.kept = Kept(spans, since)
        self._owners.clear()

    async def readmit(self) -> None:
        """This node is back: take all locks again that nobody else has had since. Raises LockLost.

        First each is taken, so that from then on nobody else gets it; then all members are asked.
        """
        ranges = self._ranges
        asked: list[tuple[Locker, list[RangeRequest]]] = []
        for locker in self._lockers.values():
            if locker.kept is not None:
                locker.party = self._party(locker.inode, locker.key, locker.party.pid)
                spans = locker.kept.spans
                asked.append((locker, [ranges.ask(locker.party, s, How.TRY) for s in spans]))
        free: dict[int, list[Locker]] = {}
        for locker, requests in asked:
            if await _all_granted(ranges, requests):
                since = locker.kept.since if locker.kept is not None else 0
                free.setdefault(since, []).append(locker)
        standing: set[Locker] = set()
        for since, lockers in free.items():
            hearing = await ranges.stand([locker.party for locker in lockers], since)
            standing.update(locker for locker in lockers if hearing.stands(locker.party))
        for locker, _ in asked:
            self._settle(locker, stands=locker in standing)

    def _settle(self, locker: Locker, *, stands: bool) -> None:
        """Let a locker go on with its locks, or let it know that they are lost."""
        if locker.kept is None or not stands:
            self._ranges.free_nowait(locker.party)
        if locker.kept is None:
            return  # it has unlocked, or closed the file, while its locks were taken again
        locker.kept = None
        if stands:
            self.retaken += 1
            return
        self.lost += 1
        self._note(locker)
        for opened in locker.inode.opened:
            self._endangered.kill(opened)
        self._clean(locker)

    # -- below

    async def _lock(
        self, opened: OpenFile, owner: int, pid: int, span: Span, how: How, kind: bytes
    ) -> None:
        opened.require_alive()
        locker = self._locker(opened.inode, owner, pid, kind)
        ranges, party = self._ranges, locker.party
        request = ranges.ask(party, span, how)
        locker.asking += 1
        try:
            await _finish(ranges, request)
            locker.handles.add(opened.handle)
            self._note(locker)
        finally:
            locker.asking -= 1
            self._clean(locker)
        await ranges.freed(party.name)  # what it had may have been stronger

    async def _unlock(self, opened: OpenFile, owner: int, span: Span, kind: bytes) -> None:
        locker = self._lockers.get((opened.inode.number, kind, owner))
        if locker is not None:
            ranges = self._ranges
            ranges.free_nowait(locker.party, span.start, span.last)
            self._note(locker)
            self._clean(locker)
            await ranges.freed(locker.party.name)

    async def _test(self, opened: OpenFile, owner: int, pid: int, span: Span) -> Held | None:
        locker = self._locker(opened.inode, owner, pid, POSIX)
        ranges = self._ranges
        request = ranges.ask(locker.party, span, How.TEST)
        locker.asking += 1
        try:
            await _finish(ranges, request)
        finally:
            locker.asking -= 1
            self._clean(locker)
        return request.conflict

    def _locker(self, inode: Inode, owner: int, pid: int, kind: bytes) -> Locker:
        key = inode.number, kind, owner
        locker = self._lockers.get(key)
        if locker is None:
            locker = self._lockers[key] = Locker(inode, key, self._party(inode, key, pid))
            self._by_file.setdefault(inode.number, set()).add(locker)
        return locker

    def _party(self, inode: Inode, key: Key, pid: int) -> Party:
        _, kind, owner = key
        name = Name(inode.lock.name.root, kind)
        return Party(name, f"{pid}", pid, self._owner(owner, pid) if kind == POSIX else None)

    def _owner(self, owner: int, pid: int) -> Owner:
        """Return who it is in the search for deadlocks, whatever files it locks."""
        found = self._owners.get(owner)
        if found is None:
            found = self._owners[owner] = Owner(f"process {pid}")
        return found

    def _drop(self, locker: Locker) -> None:
        locker.kept = None
        self._ranges.free_nowait(locker.party)
        self._note(locker)
        self._clean(locker)
        self._unlock_handles(locker)

    def _unlock_handles(self, locker: Locker) -> None:
        """Note that handles hold nothing any more, unless another owner locked by them."""
        handles, locker.handles = locker.handles, set()
        for handle in handles:
            others = self._by_file.get(locker.key[0], ())
            if not any(handle in other.handles for other in others):
                self._endangered.locked(handle, so=False)

    def _note(self, locker: Locker) -> None:
        """Let the next process know what is locked now."""
        inode, kind, owner = locker.key
        flock, pid = kind == FLOCK, locker.party.pid
        spans = self._ranges.held(locker.party)
        notes: list[LockNote] = []
        if spans and locker.handles:
            first, *further = sorted(locker.handles)
            notes = [LockNote(first, inode, owner, pid, flock, *span) for span in spans]
            notes += [LockNote(each, inode, owner, pid, flock, 0, 0, NOTHING) for each in further]
        if not self._endangered.locks(inode, owner, notes, flock=flock):
            for handle in locker.handles:
                self._endangered.locked(handle, so=True)

    def _clean(self, locker: Locker) -> None:
        """Forget an owner that holds and wants nothing."""
        known = self._lockers.get(locker.key) is locker and locker.kept is None
        if known and not locker.asking and not self._ranges.held(locker.party):
            self._forget(locker)

    def _forget(self, locker: Locker) -> None:
        del self._lockers[locker.key]
        self._unlock_handles(locker)
        number, _, owner = locker.key
        others = self._by_file[number]
        others.discard(locker)
        if not others:
            del self._by_file[number]
        if owner in self._owners and not self._uses(owner):
            del self._owners[owner]

    def _uses(self, owner: int) -> bool:
        transaction = self._owners[owner]
        return any(locker.party.transaction is transaction for locker in self._lockers.values())


def names_of(inode: Inode) -> Iterable[Name]:
    """Return what the lock manager calls a file's two kinds of locks."""
    root = inode.lock.name.root
    return Name(root, POSIX), Name(root, FLOCK)


async def _all_granted(ranges: Ranges, requests: Iterable[RangeRequest]) -> bool:
    granted = True
    for request in requests:
        try:
            await ranges.finish(request)
        except WouldBlock:
            granted = False
    return granted


async def _finish(ranges: Ranges, request: RangeRequest) -> None:
    """Wait for the answer, until a signal comes; and then for the answer to the withdrawal."""
    if request.verdict is not None:
        await trio.lowlevel.checkpoint_if_cancelled()
        await ranges.finish(request)
        return
    try:
        with asking.interruptibly():
            await ranges.finish(request)
    except Interrupted as interrupted:
        ranges.cancel(request)
        try:
            await ranges.finish(request)
        except (LockCancelled, WouldBlock):
            raise interrupted from None
    except trio.Cancelled:
        ranges.cancel(request)
        raise
