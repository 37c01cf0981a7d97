"""What the filesystem needs from below, as protocols: the volume, and one lockspace at a time.

`clusterfs.volume` and `dlm.node` fit them; so do the small fakes of the tests. Everything here is
called on the one trio thread.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from clusterfs.store.objects import Change, ObjectId, Version
from clusterfs.volume.departed import Sent
from dlm.modes import Flags
from dlm.node import NO_FLAGS, Lock, Mode, Name
from dlm.ranges import Ranges

__all__ = ["NO_FLAGS", "Flags", "Lock", "Lockspace", "Mode", "Name", "Space", "Volume"]

Blocking = Callable[[Lock, Mode], None]


class Lockspace(Protocol):
    """The locks of one incarnation of this node. Waits raise LockLost once it is removed."""

    @property
    def epoch(self) -> int:
        """The lock epoch last entered."""
        ...

    async def lock(
        self,
        name: Name,
        mode: Mode,
        *,
        flags: Flags = NO_FLAGS,
        owner: str = "",
        blocking: Blocking | None = None,
    ) -> Lock:
        """Wait for a new lock; `blocking(lock, mode)` says later that others want `mode`."""
        ...

    async def lock_new(
        self,
        name: Name,
        mode: Mode,
        *,
        flags: Flags = NO_FLAGS,
        owner: str = "",
        blocking: Blocking | None = None,
    ) -> Lock:
        """Take a lock on a name that was made up here just now: that needs nobody's leave."""
        ...

    async def lock_many(
        self,
        names: Sequence[Name],
        mode: Mode,
        *,
        flags: Flags = NO_FLAGS,
        owner: str = "",
        blocking: Sequence[Blocking] = (),
    ) -> list[Lock | None]:
        """Ask for locks on all names at once; None: NOQUEUE, and it is not free."""
        ...

    async def known(self, root: bytes) -> None:
        """Wait until other nodes may hear of a name made here by ways that no lock guards."""
        ...

    async def convert(
        self, lock: Lock, mode: Mode, *, flags: Flags = NO_FLAGS, shield: bool = False
    ) -> None:
        """Wait for a stronger mode; DeadlockVictim: give the lock up and ask anew."""
        ...

    def convert_down_nowait(
        self, lock: Lock, mode: Mode, lvb: bytes | None = None, *, flags: Flags = NO_FLAGS
    ) -> None:
        """Keep a weaker mode, and leave a value block; takes effect at once."""
        ...

    def unlock_nowait(
        self, lock: Lock, lvb: bytes | None = None, *, flags: Flags = NO_FLAGS
    ) -> None:
        """Give the lock up, and leave a value block."""
        ...

    @property
    def ranges(self) -> Ranges:
        """The ranges of file locks."""
        ...


class Space(Protocol):
    """How much room there is, in bytes."""

    @property
    def total(self) -> int:
        """Bytes that the volume can hold."""
        ...

    @property
    def free(self) -> int:
        """Bytes that it can still take."""
        ...


class Volume(Protocol):
    """Replicated objects and transactions. `fetch_nowait`, `read_nowait` raise WouldBlock."""

    @property
    def epoch(self) -> int:
        """The current view's number."""
        ...

    @property
    def incarnation(self) -> int:
        """The number of this start of this node; 0 is nobody's."""
        ...

    @property
    def groups(self) -> int:
        """How many groups there are."""
        ...

    def new_inode(self, group: int | None = None) -> int:
        """Return a number never used before, in a group or in a fresh one."""
        ...

    def group_of_inode(self, inode: int) -> int:
        """Return the group of an inode object and of stripe 0."""
        ...

    def group_of_stripe(self, inode: int, seed: int, n: int) -> int:
        """Return the group of a stripe."""
        ...

    def maker_is_present(self, inode: int) -> bool:
        """Tell whether the node that made the number up is a member still, in that incarnation."""
        ...

    def same_replicas(self, one: int, other: int) -> bool:
        """Tell whether two groups have the same replicas now, so that objects may share blocks."""
        ...

    def fetch_nowait(
        self, object_id: ObjectId, group: int, keys: Sequence[bytes]
    ) -> tuple[Version, list[bytes | None]]:
        """Return an object's version and values."""
        ...

    async def fetch(
        self, object_id: ObjectId, group: int, keys: Sequence[bytes]
    ) -> tuple[Version, list[bytes | None]]:
        """Return an object's version and values; ABSENT has none."""
        ...

    async def scan(
        self, object_id: ObjectId, group: int, prefix: bytes, after: bytes, limit: int
    ) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` keys > after that start with prefix, sorted, with values."""
        ...

    def read_nowait(self, object_id: ObjectId, group: int, first: int, count: int) -> bytes:
        """Return blocks of an object; holes, and what is absent, read as zeros."""
        ...

    async def read(self, object_id: ObjectId, group: int, first: int, count: int) -> bytes:
        """Return blocks of an object."""
        ...

    async def took_place(self, sent: Sent) -> bool | None:
        """Tell whether a transaction took place of which `commit` did not know; None: unknown."""
        ...

    async def commit(
        self,
        changes: Sequence[Change],
        payload: bytes = b"",
        *,
        durable: bool = False,
        shield: bool = False,
    ) -> None:
        """Apply changes at every in-sync replica's memory, all or none; durable: and `sync`.

        shield: the wait cannot be cancelled. Raises LockLost: nothing was sent, or as
        OutcomeUnknown, which says what to ask for.
        """
        ...

    async def sync(self, inodes: Collection[int] | None = None) -> None:
        """Wait until what was committed is on disk; with inodes, of them: see Volume.sync."""
        ...

    async def extents(
        self, object_id: ObjectId, group: int, first: int, count: int
    ) -> list[tuple[int, int]]:
        """Return (first, count) of the stretches of blocks that are no holes, in order."""
        ...

    async def stripes(self, inode: int) -> list[tuple[int, int, Version]]:
        """Return (stripe, group, version) of the stripes that exist."""
        ...

    async def marked(self, groups: Sequence[int]) -> list[ObjectId]:
        """Return the objects that have a MARK."""
        ...

    def reserve_nowait(self, nbytes: int) -> bool:
        """Take space credits for data that will be committed later."""
        ...

    async def reserve(self, nbytes: int) -> None:
        """Wait for space credits; raises OutOfSpace."""
        ...

    def unreserve(self, nbytes: int) -> None:
        """Give credits back: the data was committed, or dropped."""
        ...

    async def statfs(self) -> Space:
        """Return how much room there is."""
        ...
