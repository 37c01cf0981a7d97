"""What would be lost with this process although its programs live on: it might be taken over.

A mount outlives its daemon (fuse/supervisor.py). A new daemon gets the open files from a journal
that both can see; but what was written and was in the old one's memory only is gone, and a later
fsync must not say that it is safe. So the journal also says which inodes had changes that were not
on the disks: after a crash, handles that may write them are dead.

Invariant: an inode whose acknowledged changes are not all on the disks of all replicas is noted, if
there is a journal. It is noted before the change is acknowledged, and taken off after a sync of the
volume that began when it was clean, unless it was noted again meanwhile.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from clusterfs.fs.atomic import Staged
    from clusterfs.fs.handles import OpenFile
    from clusterfs.fs.inodes import Inode


class LockNote(NamedTuple):
    """A range of a file that somebody has locked; of mode NL: just that it locked by a handle."""

    handle: int
    inode: int
    owner: int  # the kernel's number
    pid: int
    flock: bool
    start: int
    last: int
    mode: int


class Journal(Protocol):
    """Where open handles are noted for the process that comes after this one."""

    def opened(
        self, handle: int, inode: int, flags: int, *, privileged: bool, directory: bool
    ) -> None:
        """Note a handle before the kernel hears of it."""
        ...

    def closed(self, handle: int) -> None:
        """Forget a handle."""
        ...

    def endangered(self, handle: int, so: bool) -> None:  # noqa: FBT001  the value of a flag
        """Note whether what was written through it would be lost with this process."""
        ...

    def staged(self, handle: int, so: bool) -> None:  # noqa: FBT001  as above
        """Note whether it is in an atomic transaction, which ends with this process."""
        ...

    def locked(self, handle: int, so: bool) -> None:  # noqa: FBT001  as above
        """Note whether it holds file locks that end with this process."""
        ...

    def locks(self, inode: int, owner: int, notes: Sequence[LockNote], *, flock: bool) -> bool:
        """Note all that an owner has locked in a file now; False: there is no room."""
        ...

    def dead(self, handle: int) -> None:
        """Note that what was written through it is lost."""
        ...


class Endangered:
    """The inodes with changes that are not on the disks; without a journal nobody asks."""

    def __init__(self, journal: Journal | None) -> None:
        self.journal = journal
        self._inodes: dict[Inode, int] = {}
        self._notes = 0

    def __len__(self) -> int:
        return len(self._inodes)

    def note(self, inode: "Inode") -> None:
        """Say that the inode is about to change, or changed, in memory only."""
        if self.journal is None:
            return
        self._notes += 1
        known = inode in self._inodes
        self._inodes[inode] = self._notes
        if not known:
            self._tell(inode, so=True)

    def joined(self, opened: "OpenFile") -> None:
        """Say that there is one more handle."""
        if self.journal is not None and opened.writable and opened.inode in self._inodes:
            self.journal.endangered(opened.handle, True)

    def clean(self) -> dict["Inode", int]:
        """Return those that a sync that begins now makes safe, each with its last note."""
        return {inode: note for inode, note in self._inodes.items() if not inode.needs_flush}

    def safe(self, inode: "Inode", note: int | None) -> None:
        """Say that a sync that began at this note of the inode is over."""
        if note is not None and self._inodes.get(inode) == note and not inode.needs_flush:
            del self._inodes[inode]
            self._tell(inode, so=False)

    async def make_safe(self, inode: "Inode", sync: Callable[[], Awaitable[None]] | None) -> None:
        """Sync what was committed of a clean inode; None: that is on the disks already."""
        note = self._inodes.get(inode)
        if sync is not None:
            await sync()
        self.safe(inode, note)

    def kill(self, opened: "OpenFile") -> None:
        """What was written through this handle is lost: its next write and fsync say so."""
        opened.dead = True
        if self.journal is not None:
            self.journal.dead(opened.handle)

    def stage(self, opened: "OpenFile", staged: "Staged | None") -> None:
        """Note the transaction that a handle is in."""
        opened.staged = staged
        if self.journal is not None:
            self.journal.staged(opened.handle, staged is not None)

    def locked(self, handle: int, *, so: bool) -> None:
        """Note whether a handle holds file locks that the next process will not know of."""
        if self.journal is not None:
            self.journal.locked(handle, so)

    def locks(self, inode: int, owner: int, notes: Sequence[LockNote], *, flock: bool) -> bool:
        """Note all that an owner has locked in a file now; False: there is no room."""
        return self.journal is None or self.journal.locks(inode, owner, notes, flock=flock)

    def _tell(self, inode: "Inode", *, so: bool) -> None:
        assert self.journal is not None
        for opened in inode.opened:
            if opened.writable:
                self.journal.endangered(opened.handle, so)
