"""Requests that come a second time: the daemon that had them died before it answered.

Most do no harm if they are done twice. Names do: what was made is there already, what was removed
is gone, and the program must not be told so, for it asked once. So, for requests that the kernel
marks as sent before, an error is none that the first run would explain: the same link; a name for
what the dead daemon had just made; a name that is gone. (As NFS does after a server's restart: who
else did just that in the same moment is not told apart.)
"""

from collections.abc import Awaitable, Callable

from clusterfs.errors import EntryExists, NoSuchEntry
from clusterfs.fs.results import Entry
from clusterfs.fuse.binding import native
from clusterfs.fuse.notify import RESENT
from clusterfs.volume.placement import incarnation_of_inode

Look = Callable[[], Awaitable[Entry]]


class Again:
    """What the daemon before this one may have done; `incarnation` 0: there was none."""

    def __init__(self, incarnation: int = 0) -> None:
        self._incarnation = incarnation

    def asked(self) -> bool:
        """Tell whether the request being handled was sent before; ask before the first await."""
        return bool(self._incarnation) and native.current_request() >= RESENT

    async def made(self, make: Awaitable[Entry], look: Look) -> Entry:
        """Make a name; `look` looks the name up."""
        again = self.asked()
        try:
            return await make
        except EntryExists:
            if again:
                entry = await look()
                if entry.attributes and self._is_ours(entry.attributes.inode):
                    return entry
            raise

    async def linked(self, link: Awaitable[Entry], inode: int, look: Look) -> Entry:
        """Link an inode."""
        again = self.asked()
        try:
            return await link
        except EntryExists:
            if again:
                entry = await look()
                if entry.attributes and entry.attributes.inode == inode:
                    return entry
            raise

    async def removed(self, remove: Awaitable[None]) -> None:
        """Take a name away, or move it."""
        again = self.asked()
        try:
            await remove
        except NoSuchEntry:
            if not again:
                raise

    def _is_ours(self, inode: int) -> bool:
        return incarnation_of_inode(inode) == self._incarnation
