"""What must happen before a lock is given up, and how long the kernel may believe an answer.

The one procedure (`give_up`; the lock cache has parked new users and waited for running ones):
  1. pages: drop the complement of the READs that are parked on this inode, for their pages are
     locked by the kernel and hold no old data. A READ that comes in meanwhile may make the running
     call wait for it, so each newcomer starts another call; the first that returns has dropped all
     there was. Page writeback that this causes is served under the lock that is still held;
  2. attributes and names, if an answer that the kernel got may still be believed;
  3. dirty data and attributes go to the replicas' memory.
Then the lock cache lets the lock go, with what others may take over in its value block, and the
parked users queue behind the other node.

When this node is lost, 1 and 2 run for every inode (`drop_everything`) before it may come back.
"""

from collections.abc import Callable, Iterable

import msgspec
import trio

from clusterfs.errors import FilesystemError, Unavailable
from clusterfs.fs.endangered import Endangered
from clusterfs.fs.inodes import Inode, Inodes
from clusterfs.fs.kernel import Kernel
from clusterfs.fs.locks import NL, PR
from clusterfs.fs.results import Entry, Status, attributes_of
from clusterfs.fs.writeback import Writeback
from clusterfs.store.objects import BLOCK_BYTES
from dlm.errors import LockLost
from dlm.modes import Mode

_CONTENDED_S = 2.0  # a directory that another node wanted so recently gets no entry timeouts
_SLACK_S = 0.1  # the kernel starts to count when it has read the answer


class Counters(msgspec.Struct):
    """How often the kernel's caches were dropped."""

    pages: int = 0
    attributes: int = 0
    dentries: int = 0


class Coherence:
    """Keeps the kernel's caches within what the locks allow."""

    def __init__(
        self, kernel: Kernel, writeback: Writeback, endangered: Endangered, cache_s: float
    ) -> None:
        self._kernel = kernel
        self._endangered = endangered
        self._writeback = writeback
        self._cache_s = cache_s
        self._lease_left_s: Callable[[], float] = _forever
        self._nursery: trio.Nursery | None = None
        self.counters = Counters()

    def use(self, nursery: trio.Nursery, lease_left_s: Callable[[], float]) -> None:
        """Run kernel calls in this nursery."""
        self._nursery = nursery
        self._lease_left_s = lease_left_s

    # -- what the kernel may believe

    def status(self, inode: Inode) -> Status:
        """Answer getattr; the lock is held and the record loaded, or the timeout is 0."""
        assert inode.record is not None
        timeout_s = self._attribute_timeout_s(inode, trio.current_time(), self._most_s())
        return Status(attributes_of(inode.number, inode.record), timeout_s)

    def entry(self, directory: Inode, stamp: int, inode: Inode) -> Entry:
        """Answer lookup; `stamp` is the directory lock's when the name was read."""
        assert inode.record is not None
        now_s, most_s = trio.current_time(), self._most_s()
        return Entry(
            attributes_of(inode.number, inode.record),
            self._entry_timeout_s(directory, stamp, now_s, most_s),
            self._attribute_timeout_s(inode, now_s, most_s),
        )

    def absent(self, directory: Inode, stamp: int) -> Entry:
        """Answer lookup of a name that does not exist."""
        return Entry(None, self.entry_timeout_s(directory, stamp), 0.0)

    def entry_timeout_s(self, directory: Inode, stamp: int) -> float:
        """Return how long the kernel may believe a name of this directory."""
        return self._entry_timeout_s(directory, stamp, trio.current_time(), self._most_s())

    def _most_s(self) -> float:
        """Return how long the kernel may believe anything."""
        return max(0.0, min(self._cache_s, self._lease_left_s()))

    def _entry_timeout_s(self, directory: Inode, stamp: int, now_s: float, most_s: float) -> float:
        lock = directory.lock
        if (
            not self._kernel.dentries_can_be_dropped
            or lock.stamp != stamp
            or lock.level < PR
            or lock.contended
            or lock.revoking
            or now_s - lock.revoked_at_s < _CONTENDED_S
        ):
            return 0.0
        directory.entries_until_s = now_s + most_s + _SLACK_S
        return most_s

    def _attribute_timeout_s(self, inode: Inode, now_s: float, most_s: float) -> float:
        lock = inode.lock
        if lock.level < PR or lock.contended or lock.revoking:
            return 0.0
        inode.attributes_until_s = now_s + most_s + _SLACK_S
        return most_s

    # -- giving up

    async def give_up(self, inode: Inode, target: Mode) -> None:
        """Drop and write back what a lock at more than `target` allowed. Raises LockLost."""
        if target == NL or inode.writers:
            await self.drop_pages(inode)
        if target == NL:
            await self._drop_attributes(inode)
            await self._drop_names(inode)
        await self._write_back(inode)

    async def drop_pages(self, inode: Inode) -> None:
        """Drop the kernel's pages of an inode, all but those that a parked READ is to fill."""
        if not inode.pages_possible:
            return
        done = trio.Event()

        async def call() -> None:
            ranges = complement(inode.parked)
            if ranges:
                await self._kernel.invalidate_pages(inode.number, ranges)
            done.set()

        def start() -> None:
            assert self._nursery is not None
            self._nursery.start_soon(call)

        self.counters.pages += 1
        before, inode.on_parked = inode.on_parked, start
        start()
        try:
            await done.wait()
        finally:
            inode.on_parked = before
        inode.pages_possible = False

    async def drop_range(self, inode: Inode, offset: int, length: int) -> None:
        """Drop pages that a direct write went past: cached reads may have filled them meanwhile."""
        await self._kernel.invalidate_pages(inode.number, [(offset, length)])

    async def _drop_attributes(self, inode: Inode) -> None:
        if trio.current_time() < inode.attributes_until_s:
            self.counters.attributes += 1
            await self._kernel.invalidate_attributes(inode.number)
            inode.attributes_until_s = float("-inf")

    async def _drop_names(self, inode: Inode) -> None:
        if trio.current_time() < inode.entries_until_s:
            self.counters.dentries += 1
            await self._kernel.drop_dentries()
            inode.entries_until_s = float("-inf")

    async def changed_here(self, inode: Inode) -> None:
        """The daemon itself changed an inode: this kernel is not to believe what it was told."""
        await self._drop_attributes(inode)
        await self._drop_names(inode)

    async def _write_back(self, inode: Inode) -> None:
        while inode.needs_flush:
            try:
                await self._writeback.flush(inode)
            except (LockLost, Unavailable):
                raise LockLost from None
            except FilesystemError as failure:
                # Nobody can take this data any more: say so to its writers, let the others go on.
                inode.write_error = failure
                for opened in inode.opened:
                    if opened.writable:
                        self._endangered.kill(opened)
                self._writeback.abandon(inode)
                inode.void()

    async def drop_everything(self, inodes: Inodes) -> None:
        """Empty the kernel's caches: this node was lost."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._kernel.drop_dentries)
            for inode in inodes:
                inode.entries_until_s = float("-inf")
                if inode.pages_possible:
                    nursery.start_soon(self.drop_pages, inode)
                if trio.current_time() < inode.attributes_until_s:
                    nursery.start_soon(self._drop_attributes, inode)


def _forever() -> float:
    return float("inf")


def complement(parked: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the ranges between (offset, length) spans; the last has length 0: to the end."""
    ranges = []
    position = 0
    for offset, length in sorted(parked):
        start = offset - offset % BLOCK_BYTES
        if start > position:
            ranges.append((position, start - position))
        position = max(position, offset + length + -(offset + length) % BLOCK_BYTES)
    return [*ranges, (position, 0)]
