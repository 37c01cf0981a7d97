"""Which inodes may have pages in the kernel's cache, kept where the supervisor can see it.

An inode gets a slot when it is opened (any open file can be mapped, so any may have pages) and
gives it back when the kernel forgets it. If the table is full, the pages of an inode that nobody
has open are dropped for the new one; so the table is always complete and never has to grow.

Invariants (`validate`):
  * every inode with an open handle has a slot;
  * `closed` holds exactly the inodes with a slot and no open handle, longest closed first;
  * a slot's word is its inode, or that of one whose pages are being dropped, or 0 if it is free.
"""

from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable

from clusterfs.errors import TooManyOpenInodes
from clusterfs.fuse.beat import TABLE, USED, Beat


class CachedInodes:
    """The table of inodes with cached pages."""

    def __init__(self, beat: Beat) -> None:
        self._words = beat.words
        self._words[USED] = 0  # of a former process: dropped when it ended
        self._capacity = beat.capacity
        self._drop_pages: Callable[[int], Awaitable[None]] | None = None
        self._slots: dict[int, int] = {}
        self._free: list[int] = []
        self._evicting: dict[int, int] = {}  # slot -> inode
        self._open: Counter[int] = Counter()
        self._closed: OrderedDict[int, None] = OrderedDict()
        self._handles: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def inodes(self) -> list[int]:
        """Return those that may have cached pages."""
        return [*self._slots, *self._evicting.values()]

    def use(self, drop_pages: Callable[[int], Awaitable[None]]) -> None:
        """Drop an inode's pages in this way, where that must be done to make room."""
        self._drop_pages = drop_pages

    async def opened(self, inode: int, handle: int) -> None:
        """Note a new handle; call it before the kernel hears of the handle.

        Raises TooManyOpenInodes if every slot belongs to an open inode.
        """
        while not self.has_slot(inode):
            await self._evict()
        self.opened_in_slot(inode, handle)

    def has_slot(self, inode: int) -> bool:
        """Tell whether an inode has a slot, from now on if one is free."""
        return inode in self._slots or self._take(inode)

    def opened_in_slot(self, inode: int, handle: int) -> None:
        """Note a new handle of an inode that has a slot."""
        self._handles[handle] = inode
        self._open[inode] += 1
        self._closed.pop(inode, None)

    def released(self, handle: int) -> None:
        """Note that a handle is gone; its inode's pages may still be cached."""
        inode = self._handles.pop(handle, None)
        if inode is None:
            return
        self._open[inode] -= 1
        if not self._open[inode]:
            del self._open[inode]
            self._closed[inode] = None

    def forgotten(self, inode: int) -> None:
        """Note that the kernel dropped the inode, and its pages with it."""
        if inode in self._closed:
            del self._closed[inode]
            self._give_back(self._slots.pop(inode))

    def _take(self, inode: int) -> bool:
        """Give the inode a slot, if one is free."""
        if self._free:
            slot = self._free.pop()
        elif self._words[USED] < self._capacity:
            slot = self._words[USED]
            self._words[USED] += 1
        else:
            return False
        self._slots[inode] = slot
        self._closed[inode] = None
        self._words[TABLE + slot] = inode
        return True

    def _give_back(self, slot: int) -> None:
        self._words[TABLE + slot] = 0
        self._free.append(slot)

    async def _evict(self) -> None:
        """Free the slot of the inode that was closed longest ago.

        If it is opened meanwhile it gets another slot.
        """
        assert self._drop_pages is not None
        if not self._closed:
            raise TooManyOpenInodes(f"{self._capacity} inodes are open on this node")
        inode, _ = self._closed.popitem(last=False)
        slot = self._slots.pop(inode)
        self._evicting[slot] = inode
        await self._drop_pages(inode)
        del self._evicting[slot]
        self._give_back(slot)

    def validate(self) -> None:
        """Check the invariants."""
        assert all(inode in self._slots for inode in self._open)
        assert set(self._closed) == set(self._slots) - set(self._open)
        words = {slot: inode for inode, slot in self._slots.items()} | self._evicting
        words |= dict.fromkeys(self._free, 0)
        assert len(words) == self._words[USED]
        assert all(self._words[TABLE + slot] == inode for slot, inode in words.items())
