"""What the native extension asks first: requests that are answered within the call, or not at all.

Each function of `functions` returns None if its request has to wait for anything, or if anything is
wrong with it; then nothing has happened, and pyfuse3's handler in operations.py serves it.

    lookup   (parent, name)                      `Described`, or seconds: there is no such name
    getattr  (inode)                             `Described`
    open     (inode, flags)                      (handle, direct_io, keep_cache)
    read     (handle, offset, size, is page io)  bytes
    write    (handle, offset, data, appends)     how many bytes
    release  (handle)                            True
    forget   (inode, count)                      nothing that matters
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from clusterfs.errors import FilesystemError
from clusterfs.fs.results import Attributes
from clusterfs.fuse.binding import native
from clusterfs.fuse.cached import CachedInodes

if TYPE_CHECKING:
    from clusterfs.fs.filesystem import Filesystem

# inode, mode, links, uid, gid, device, size, blocks, three times in ns; seconds for which the name,
# and for which the attributes may be believed
Described = tuple[int, int, int, int, int, int, int, int, int, int, int, float, float]


class AtOnce:
    """Answers through one filesystem; `trusts_root` False: what root asks for must be checked."""

    def __init__(
        self, filesystem: "Filesystem", cached: CachedInodes, *, trusts_root: bool
    ) -> None:
        self._fs = filesystem
        self._at_once = filesystem.at_once
        self._cached = cached
        self._trusts_root = trusts_root

    def functions(self) -> dict[str, Callable[..., object]]:
        """Return them by their operations."""
        return {
            "lookup": self.lookup,
            "getattr": self.getattr,
            "open": self.open,
            "read": self.read,
            "write": self.write,
            "release": self.release,
            "forget": self.forget,
        }

    def lookup(self, parent: int, name: bytes) -> Described | float | None:
        """Look a name up."""
        if not self._trusts_root and not native.current_uid():
            return None
        try:
            entry = self._at_once.lookup(parent, name)
        except FilesystemError:
            return None
        found = entry.attributes
        if found is None:
            return entry.entry_timeout_s
        return _described(found, entry.entry_timeout_s, entry.attribute_timeout_s)

    def getattr(self, inode: int) -> Described | None:
        """Return attributes."""
        try:
            status = self._at_once.getattr(inode)
        except FilesystemError:
            return None
        return _described(status.attributes, 0.0, status.attribute_timeout_s)

    def open(self, inode: int, flags: int) -> tuple[int, bool, bool] | None:
        """Open a file."""
        privileged = not native.current_uid()
        if (privileged and not self._trusts_root) or not self._cached.has_slot(inode):
            return None
        try:
            opened = self._at_once.open(inode, flags, privileged=privileged)
        except FilesystemError:
            return None
        self._cached.opened_in_slot(inode, opened.handle)
        return opened.handle, opened.direct_io, opened.keep_cache

    def read(self, handle: int, offset: int, size: int, page_io: bool) -> bytes | None:  # noqa: FBT001  called from C
        """Read."""
        try:
            return self._fs.read_nowait(handle, offset, size, page_io=page_io)
        except FilesystemError:
            return None

    def write(self, handle: int, offset: int, data: bytes, append: bool) -> int | None:  # noqa: FBT001  called from C
        """Write, not for the page cache."""
        by_root = self._trusts_root and not native.current_uid()
        try:
            return self._fs.write_nowait(
                handle, offset, data, page_io=False, by_root=by_root, append=append
            )
        except FilesystemError:
            return None

    def release(self, handle: int) -> bool | None:
        """Close a file."""
        try:
            self._at_once.release(handle)
        except FilesystemError:
            return None
        self._cached.released(handle)
        return True

    def forget(self, inode: int, count: int) -> None:
        """Hear that the kernel has so many references less."""
        if self._fs.forget(inode, count):
            self._cached.forgotten(inode)


def _described(found: Attributes, entry_s: float, attributes_s: float) -> Described:
    return (
        found.inode,
        found.mode,
        found.nlink,
        found.uid,
        found.gid,
        found.rdev,
        found.size,
        found.blocks,
        found.atime_ns,
        found.mtime_ns,
        found.ctime_ns,
        entry_s,
        attributes_s,
    )
