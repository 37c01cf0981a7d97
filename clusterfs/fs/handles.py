"""Open files and directories of this mount, by the handle that the kernel carries for us."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

import msgspec

from clusterfs.errors import InvalidArgument, StaleHandle
from clusterfs.fs.endangered import Endangered
from clusterfs.fs.inodes import Inode
from clusterfs.fs.keys import Entry

if TYPE_CHECKING:
    from clusterfs.fs.atomic import Staged

Kind = TypeVar("Kind", bound="OpenFile | OpenDirectory")


class Former(msgspec.Struct, frozen=True):
    """A handle that the kernel has from the process that served this mount before."""

    handle: int
    inode: int
    flags: int = 0
    privileged: bool = False
    directory: bool = False
    lost: bool = False  # what was written through it is lost


class OpenFile:
    """One open file."""

    __slots__ = (
        "append",
        "dead",
        "direct_io",
        "handle",
        "inode",
        "noted",
        "privileged",
        "staged",
        "writable",
    )

    def __init__(self, handle: int, inode: Inode, flags: int, *, privileged: bool) -> None:
        self.handle = handle
        self.inode = inode
        self.writable = flags & os.O_ACCMODE != os.O_RDONLY
        self.append = bool(flags & os.O_APPEND)
        self.direct_io = self.writable
        self.noted = not flags & os.O_NOATIME  # its reads change the access time
        self.privileged = privileged  # its atomic writes keep setuid and setgid bits
        self.staged: Staged | None = None  # the atomic transaction that it is in
        self.dead = False  # this node was lost, and the file changed elsewhere meanwhile

    def require_alive(self) -> None:
        """Raise StaleHandle if what was written through this handle is lost."""
        if self.dead:
            raise StaleHandle(
                "the file changed while this node was out, or what was written is lost"
            )


class OpenDirectory:
    """One open directory: the names listed so far, so that cookies stay put while it changes."""

    __slots__ = ("complete", "handle", "inode", "names")

    def __init__(self, handle: int, inode: Inode) -> None:
        self.handle = handle
        self.inode = inode
        self.names: list[tuple[bytes, Entry]] = []
        self.complete = False

    def rewind(self) -> None:
        """List anew."""
        self.names = []
        self.complete = False


class Handles:
    """The table of handles; a number is never used twice.

    With a journal, each is noted there before the kernel hears of it.
    """

    def __init__(self, endangered: Endangered) -> None:
        self._next = 1
        self._table: dict[int, OpenFile | OpenDirectory] = {}
        self._endangered = endangered
        self._journal = endangered.journal

    def __len__(self) -> int:
        return len(self._table)

    def files(self) -> Iterator[OpenFile]:
        """Return the open files."""
        return (opened for opened in list(self._table.values()) if isinstance(opened, OpenFile))

    def open_file(self, inode: Inode, flags: int, *, privileged: bool) -> OpenFile:
        """Make a handle for a file."""
        opened = self._entered(OpenFile(self._next, inode, flags, privileged=privileged))
        if self._journal is not None:
            self._journal.opened(
                opened.handle, inode.number, flags, privileged=privileged, directory=False
            )
        self._endangered.joined(opened)
        return opened

    def restore(self, former: Former, inode: Inode) -> None:
        """Make a handle again; the journal has it. The caller shares a file's open lock for it."""
        if former.directory:
            self._table[former.handle] = OpenDirectory(former.handle, inode)
            self._next = max(self._next, former.handle + 1)
            return
        opened = OpenFile(former.handle, inode, former.flags, privileged=former.privileged)
        self._entered(opened)
        if former.lost:
            self._endangered.kill(opened)

    def _entered(self, opened: OpenFile) -> OpenFile:
        self._next = max(self._next, opened.handle + 1)
        self._table[opened.handle] = opened
        opened.inode.opened.add(opened)
        opened.inode.writers += opened.writable
        return opened

    def open_directory(self, inode: Inode) -> OpenDirectory:
        """Make a handle for a directory."""
        opened = OpenDirectory(self._next, inode)
        self._next += 1
        self._table[opened.handle] = opened
        if self._journal is not None:
            self._journal.opened(opened.handle, inode.number, 0, privileged=False, directory=True)
        return opened

    def known(self, handle: int) -> OpenFile | None:
        """Return an open file, if it is one."""
        opened = self._table.get(handle)
        return opened if isinstance(opened, OpenFile) else None

    def is_writable(self, handle: int) -> bool:
        """Tell whether this is an open file that may be written."""
        opened = self._table.get(handle)
        return isinstance(opened, OpenFile) and opened.writable

    def file(self, handle: int) -> OpenFile:
        """Return an open file."""
        opened = self._table.get(handle)
        if not isinstance(opened, OpenFile):
            raise InvalidArgument(f"no open file {handle}")
        return opened

    def directory(self, handle: int) -> OpenDirectory:
        """Return an open directory."""
        opened = self._table.get(handle)
        if not isinstance(opened, OpenDirectory):
            raise InvalidArgument(f"no open directory {handle}")
        return opened

    def close(self, handle: int) -> OpenFile | OpenDirectory:
        """Forget a handle."""
        opened = self._table.pop(handle, None)
        if opened is None:
            raise InvalidArgument(f"no handle {handle}")
        if self._journal is not None:
            self._journal.closed(handle)
        if isinstance(opened, OpenFile):
            opened.inode.opened.discard(opened)
            opened.inode.writers -= opened.writable
        return opened
