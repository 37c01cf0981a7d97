"""The kernel port of a mount that may not be attached yet.

The filesystem exists before its mount, because the mount answers from it at once; until then the
kernel caches nothing, so there is nothing to drop.
"""

from collections.abc import Sequence

from clusterfs.fs.kernel import Kernel, NoKernel
from clusterfs.fuse.mount import Mount


class MountKernel:
    """Implements clusterfs.fs.kernel.Kernel for `mount`, attached or not."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._nothing = NoKernel()

    @property
    def dentries_can_be_dropped(self) -> bool:
        """Whether `drop_dentries` works."""
        return self._kernel.dentries_can_be_dropped

    async def invalidate_pages(self, inode: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Drop (offset, length) ranges from the page cache, written back first."""
        await self._kernel.invalidate_pages(inode, ranges)

    async def invalidate_attributes(self, inode: int) -> None:
        """Make the next stat of the inode ask us."""
        await self._kernel.invalidate_attributes(inode)

    async def drop_dentries(self) -> None:
        """Make the next lookup of every name ask us."""
        await self._kernel.drop_dentries()

    @property
    def _kernel(self) -> Kernel:
        return self._mount.kernel or self._nothing
