"""The open handles of the mount, kept where the next process finds them if this one dies.

A table (slots.py) in the memory that daemon and supervisor share. A slot is three words:

    handle   0: the slot is empty
    inode
    state    bits 0-31 the flags of open(2), then: privileged, directory, endangered, staged, dead,
             locked: it holds file locks that lock_journal.py has no room for

If the table is full, a handle gets no slot: after a takeover the kernel is told that it is stale.
"""

from collections.abc import Sequence
from typing import Final

from clusterfs.fs.endangered import LockNote
from clusterfs.fs.handles import Former
from clusterfs.fuse.beat import HANDLE_WORDS, HANDLES_USED, Beat
from clusterfs.fuse.lock_journal import LockJournal
from clusterfs.fuse.slots import Slots

_FLAGS: Final = 0xFFFFFFFF
_PRIVILEGED: Final = 1 << 32
_DIRECTORY: Final = 1 << 33
_ENDANGERED: Final = 1 << 34
_STAGED: Final = 1 << 35
_DEAD: Final = 1 << 36
_LOCKED: Final = 1 << 37


class HandleJournal:
    """Implements clusterfs.fs.endangered.Journal over a Beat's memory."""

    def __init__(self, beat: Beat) -> None:
        self._words = beat.words
        self._table = Slots(beat, beat.first_handle, beat.handles, HANDLE_WORDS, HANDLES_USED)
        self._locks = LockJournal(beat)
        self._slots: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def recover(self, *, clean: bool) -> list[Former]:
        """Return what the process before this one had open; it stays noted.

        clean: nothing of it was in memory only.
        """
        lost = _DEAD | _STAGED | _LOCKED | (0 if clean else _ENDANGERED)
        formers = []
        for slot in self._table.recover():
            at = self._table.at(slot)
            handle, inode, state = self._words[at : at + HANDLE_WORDS]
            self._slots[handle] = slot
            former = Former(
                handle,
                inode,
                state & _FLAGS,
                bool(state & _PRIVILEGED),
                bool(state & _DIRECTORY),
                bool(state & lost),
            )
            kept = state & ~(_STAGED | _ENDANGERED | _LOCKED)
            self._words[at + 2] = kept | (_DEAD if former.lost else 0)
            formers.append(former)
        return formers

    def recover_locks(self) -> list[LockNote]:
        """Return which file locks its programs had; they stay noted."""
        return self._locks.recover()

    def opened(
        self, handle: int, inode: int, flags: int, *, privileged: bool, directory: bool
    ) -> None:
        """Note a handle before the kernel hears of it."""
        slot = self._table.take()
        if slot is None:
            return
        self._slots[handle] = slot
        at = self._table.at(slot)
        self._words[at + 1] = inode
        state = flags & _FLAGS | privileged * _PRIVILEGED | directory * _DIRECTORY
        self._words[at + 2] = state
        self._words[at] = handle

    def closed(self, handle: int) -> None:
        """Forget a handle."""
        slot = self._slots.pop(handle, None)
        if slot is not None:
            self._table.empty(slot)

    def endangered(self, handle: int, so: bool) -> None:  # noqa: FBT001  the value of a flag
        """Note whether what was written through it would be lost with this process."""
        self._set(handle, _ENDANGERED, so=so)

    def staged(self, handle: int, so: bool) -> None:  # noqa: FBT001  as above
        """Note whether it is in an atomic transaction, which ends with this process."""
        self._set(handle, _STAGED, so=so)

    def locked(self, handle: int, so: bool) -> None:  # noqa: FBT001  as above
        """Note whether it holds file locks that end with this process."""
        self._set(handle, _LOCKED, so=so)

    def locks(self, inode: int, owner: int, notes: Sequence[LockNote], *, flock: bool) -> bool:
        """Note all that an owner has locked in a file now; False: there is no room."""
        return self._locks.replace(inode, owner, notes, flock=flock)

    def dead(self, handle: int) -> None:
        """Note that what was written through it is lost."""
        self._set(handle, _DEAD, so=True)

    def _set(self, handle: int, bit: int, *, so: bool) -> None:
        slot = self._slots.get(handle)
        if slot is not None:
            at = self._table.at(slot) + 2
            state = self._words[at]
            self._words[at] = state | bit if so else state & ~bit
