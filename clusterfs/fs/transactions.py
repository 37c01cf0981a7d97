"""Inode records read from the volume and changed in it: one transaction for each operation.

The caller holds the inodes' locks (PR to load, exclusive use to commit). An Edit says what happens
to one inode object; `commit` turns edits into changes with expected versions, waits for the
replicas, and only then lets the cached inode follow. While a transaction is under way the inode's
`committing` is held: writeback runs beside users, and the versions must not cross.

If a commit fails, what is cached is dropped, except when it is known that nothing happened.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from clusterfs.errors import (
    NoSuchEntry,
    NotADirectory,
    OutOfSpace,
    ReadOnly,
    Unavailable,
    Vanished,
    WouldBlock,
)
from clusterfs.fs import asking
from clusterfs.fs.attributes import Record, decode, encode
from clusterfs.fs.endangered import Endangered
from clusterfs.fs.gate import Attempt
from clusterfs.fs.inodes import Inode
from clusterfs.fs.keys import RECORD
from clusterfs.fs.locks import PR
from clusterfs.fs.ports import Volume
from clusterfs.fs.turns import Turns
from clusterfs.store.objects import (
    ABSENT,
    MARK,
    Change,
    Delete,
    Operation,
    Put,
    Remove,
    Version,
)
from clusterfs.volume.departed import OutcomeUnknown
from dlm.errors import LockLost

_LOADED = (RECORD, MARK)

Changing = Callable[[], Awaitable[Sequence[Change]]]


class Edit:
    """What one transaction does to one inode object."""

    __slots__ = (
        "accessed_ns",
        "beyond",
        "creates",
        "deletes",
        "inode",
        "mark",
        "operations",
        "record",
        "size",
    )

    def __init__(self, inode: Inode, record: Record | None = None, *operations: Operation) -> None:
        self.inode = inode
        self.record = record
        self.operations: list[Operation] = list(operations)
        self.mark = inode.mark
        self.size: int | None = None  # the committed size from now on; None: as it was
        self.beyond = ABSENT  # a version that the inode object must pass
        self.accessed_ns = 0  # what is stored with the record
        self.creates = False
        self.deletes = False

    def change(self, epoch: int) -> Change:
        """Return the change to send in view `epoch`."""
        inode = self.inode
        expected = ABSENT if self.creates else inode.version
        operations = list(self.operations)
        if self.record is not None:
            self.accessed_ns = inode.accessed_ns
            operations.append(Put(RECORD, encode(self.record, self.committed_size())))
        if self.mark != inode.mark:
            operations.append(Remove(MARK) if self.mark is None else Put(MARK, self.mark))
        if self.deletes:
            operations = [Delete()]
        version = max(expected, self.beyond).after(epoch)
        return Change(inode.object_id, inode.group, expected, version, tuple(operations))

    def committed_size(self) -> int:
        """Return the size that the stored record will have."""
        assert self.record is not None
        size = self.inode.committed_size if self.size is None else self.size
        return self.record.size if self.creates else min(size, self.record.size)


class Claims(Protocol):
    """Asks for what transactions need of quotas."""

    def claiming(self, edits: Sequence[Edit]) -> AbstractContextManager[None]:
        """Return a context for the transaction of these edits; entering it may raise."""
        ...


class Transactions:
    """Loads inode records, commits edits of them."""

    def __init__(
        self, volume: Volume, endangered: Endangered, quotas: Claims, *, read_only: bool = False
    ) -> None:
        self._volume = volume
        self.read_only = read_only
        self._quotas = quotas
        self._endangered = endangered
        self.commits = 0

    async def load(self, inode: Inode) -> Record:
        """Return the record; needs the lock. Raises Vanished if there is no such inode."""
        record = inode.record
        return record if record is not None else await self.reload(inode)

    async def load_directory(self, inode: Inode) -> Record:
        """Return the record of a directory that has a name still. Raises NoSuchEntry."""
        try:
            record = await self.load(inode)
        except Vanished as gone:
            raise NoSuchEntry from gone  # for programs in it, and what was in it is gone, too
        if not record.is_directory:
            raise NotADirectory
        if not record.nlink:
            raise NoSuchEntry
        return record

    async def reload(self, inode: Inode) -> Record:
        """Read the record anew. Raises Vanished; for directories NoSuchEntry.

        Programs have a directory that is gone as their working directory, or open: looking its
        name up once more does not help them, and what they do in it fails with ENOENT.
        """
        stamp = inode.lock.stamp
        version, (stored, mark) = await self.fetch(inode, _LOADED)
        if inode.lock.stamp != stamp:
            raise LockLost  # it was given up or lost while we waited: start again
        if inode.record is not None:
            return inode.record  # another user was faster
        if stored is None:
            raise NoSuchEntry if inode.was_directory else Vanished
        inode.record = decode(stored)
        inode.committed_size = inode.record.size
        inode.version = version
        inode.mark = mark
        inode.learned()
        return inode.record

    async def peek(self, inode: Inode) -> Record:
        """Return what the store has of an inode whose lock is not held: nothing is cached."""
        _, (stored,) = await self.fetch(inode, (RECORD,))
        if stored is None:
            raise Vanished
        return decode(stored)

    async def fetch(
        self, inode: Inode, keys: Sequence[bytes]
    ) -> tuple[Version, list[bytes | None]]:
        """Return the version and values of an inode object."""
        try:
            return self._volume.fetch_nowait(inode.object_id, inode.group, keys)
        except WouldBlock:
            with asking.interruptibly():
                return await self._volume.fetch(inode.object_id, inode.group, keys)

    async def commit(
        self, *edits: Edit, changes: Changing | None = None, attempt: Attempt | None = None
    ) -> None:
        """Make edits of exclusively used inodes happen together; note in `attempt` that we try.

        changes: of stripes, asked for when nothing else commits these inodes.
        """
        taken: list[Turns] = []
        try:
            for edit in sorted(edits, key=_number):
                await edit.inode.committing.acquire()
                taken.append(edit.inode.committing)
            also = await changes() if changes is not None else ()
            await self.commit_holding(edits, also, attempt=attempt)
        finally:
            for turns in taken:
                turns.release()

    async def commit_holding(
        self,
        edits: Sequence[Edit],
        changes: Sequence[Change] = (),
        payload: bytes = b"",
        *,
        durable: bool = False,
        attempt: Attempt | None = None,
    ) -> None:
        """Commit edits, and changes of stripes, of inodes whose `committing` the caller holds.

        Raises ShareWanted, with nothing done, if a quota has to be asked first.
        """
        await self._may_commit(edits)
        for edit in edits:
            if not edit.creates:
                edit.inode.lock.require(PR)
        with self._quotas.claiming(edits):
            if attempt is None:
                await self._send(edits, changes, payload, durable=durable)
            else:
                with _trying(attempt):
                    await self._send(edits, changes, payload, durable=durable)

    async def settle(self, attempt: Attempt) -> bool:
        """Tell whether an earlier run has done it; the locks it had are lost. Raises LockLost.

        False, but `attempt.tried`: no replica knows any more.
        """
        if attempt.sent is not None:
            took_place = await self._volume.took_place(attempt.sent)
            attempt.sent = None
            if took_place is not None:
                attempt.tried = attempt.done = took_place
        return attempt.done

    async def _send(
        self, edits: Sequence[Edit], changes: Sequence[Change], payload: bytes, *, durable: bool
    ) -> None:
        asking.changing()
        epoch = self._volume.epoch
        sent = [*changes, *(edit.change(epoch) for edit in edits)]
        sizes = [edit.committed_size() if edit.record else 0 for edit in edits]
        self._note(edits, sent, durable=durable)
        stale = [edit.inode for edit in edits if edit.inode.record_dirty and edit.record]
        for inode in stale:
            inode.record_dirty = False  # what is written from now on is not in `sent`
        try:
            await self._volume.commit(sent, payload, durable=durable, shield=True)
        except BaseException as failure:
            for inode in stale:
                inode.record_dirty = True
            if not isinstance(failure, (OutOfSpace, LockLost, Unavailable)):
                for edit in edits:
                    self._distrust(edit.inode)
            raise
        self.commits += 1
        for edit, change, size in zip(edits, sent[len(changes) :], sizes, strict=True):
            self._follow(edit, change.version, size)

    async def _may_commit(self, edits: Sequence[Edit]) -> None:
        if self.read_only:
            raise ReadOnly("this node may not change the volume")
        await _wait_known(edits)

    def _note(self, edits: Sequence[Edit], sent: Sequence[Change], *, durable: bool) -> None:
        """Remember the versions that this gives: after a loss they tell what took place."""
        versions = {(change.object_id, change.version) for change in sent}
        for edit in edits:
            edit.inode.attempted = versions
            if not durable:
                self._endangered.note(edit.inode)

    def _follow(self, edit: Edit, version: Version, size: int) -> None:
        inode = edit.inode
        if inode.lock.level < PR:
            return
        inode.attempted = set()
        if edit.deletes:
            inode.void()
            return
        inode.version = version
        inode.mark = edit.mark
        if edit.record is not None:
            inode.committed_size = size
            inode.record = edit.record
            if edit.accessed_ns == inode.accessed_ns:
                inode.accessed_ns = 0  # stored, unless the edit knows better
            else:
                inode.learned()
            inode.record_dirty |= inode.committed_size != edit.record.size

    def _distrust(self, inode: Inode) -> None:
        """Drop what is cached after a failure that should not be."""
        if not inode.needs_flush:
            inode.void()


@contextmanager
def _trying(attempt: Attempt) -> Iterator[None]:
    """Note what becomes of the transaction that is sent in this context."""
    tried, attempt.tried = attempt.tried, True
    try:
        yield
    except OutcomeUnknown as failure:
        attempt.sent = failure.sent
        raise
    except LockLost:
        attempt.tried = tried  # nothing was sent
        raise
    attempt.done = True


async def _wait_known(edits: Sequence[Edit]) -> None:
    """Let new inodes be known before they are marked: marks are looked for without any lock."""
    for edit in edits:
        if edit.mark is not None and edit.mark != edit.inode.mark:
            await edit.inode.known()


def _number(edit: Edit) -> int:
    return edit.inode.number
