"""The caches of our mount in the kernel: how a lock is given up towards this machine's processes.

Each notification is a write to the session's descriptor that may wait for pages in flight, so it
runs on a thread. The threads have a limiter of their own: an invalidation that waits for a READ
must not take the threads that disk I/O, which answers that READ, needs.
"""

import os
from collections.abc import Sequence

import trio

from clusterfs.fuse import notify

# A thread that waits here costs little; too few could leave a revoke behind others that wait.
_THREADS = 256


class SessionKernel:
    """Implements clusterfs.fs.kernel.Kernel; before `use` there is nothing that could be cached."""

    def __init__(self) -> None:
        self._fd = -1
        self._threads = trio.CapacityLimiter(_THREADS)
        self.dentries_can_be_dropped = False
        self.invalidations = 0

    def use(self, fd: int) -> None:
        """Talk to the kernel through a duplicate of this /dev/fuse descriptor.

        Locks are given up until the very end, after the session has closed its own: its number
        may then be that of a file of the brick. The duplicate is open for as long as the process.
        """
        self._fd = os.dup(fd)
        self.dentries_can_be_dropped = notify.increment_epoch(self._fd)

    async def invalidate_pages(self, inode: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Drop (offset, length) ranges from the page cache, written back first; 0: to the end.

        Each range has a thread: one that waits does not hold up the others.
        """
        if len(ranges) == 1:
            await self._invalidate(inode, *ranges[0])
            return
        async with trio.open_nursery() as nursery:
            for offset, length in ranges:
                nursery.start_soon(self._invalidate, inode, offset, length)

    async def invalidate_attributes(self, inode: int) -> None:
        """Make the next stat of the inode ask us."""
        await self._invalidate(inode, notify.ATTRIBUTES_ONLY, 0)

    async def drop_dentries(self) -> None:
        """Make the next lookup of every name ask us. Waits for nothing, so it needs no thread."""
        if self.dentries_can_be_dropped:
            notify.increment_epoch(self._fd)
        await trio.lowlevel.checkpoint()

    async def _invalidate(self, inode: int, offset: int, length: int) -> None:
        if self._fd < 0:
            return
        self.invalidations += 1
        await trio.to_thread.run_sync(
            notify.invalidate_inode,
            self._fd,
            inode,
            offset,
            length,
            abandon_on_cancel=True,
            limiter=self._threads,
        )

    def statistics(self) -> dict[str, float]:
        """Return counters."""
        return {
            "invalidations": self.invalidations,
            "invalidations_waiting": self._threads.borrowed_tokens,
        }
