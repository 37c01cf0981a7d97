"""The port to the kernel: what must be dropped there before a lock is given up.

Each call runs on a thread of its own, for the kernel may wait for requests that this process must
answer meanwhile. A call for an inode that the kernel does not know is fine and does nothing.
"""

from collections.abc import Sequence
from typing import Protocol


class Kernel(Protocol):
    """The caches of one mount."""

    @property
    def dentries_can_be_dropped(self) -> bool:
        """Whether `drop_dentries` works; without it, entry timeouts must be 0."""
        ...

    async def invalidate_pages(self, inode: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Drop (offset, length) ranges from the page cache, written back first; 0: to the end.

        Returns when they are gone; waits for READs in flight in these ranges.
        """
        ...

    async def invalidate_attributes(self, inode: int) -> None:
        """Make the next stat of the inode ask us."""
        ...

    async def drop_dentries(self) -> None:
        """Make the next lookup of every name ask us."""
        ...


class NoKernel:
    """A kernel that caches nothing: for tools and tests that call the filesystem directly."""

    dentries_can_be_dropped = False

    async def invalidate_pages(self, inode: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Do nothing."""

    async def invalidate_attributes(self, inode: int) -> None:
        """Do nothing."""

    async def drop_dentries(self) -> None:
        """Do nothing."""
