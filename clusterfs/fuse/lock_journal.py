"""The file locks of the mount's programs, kept where the next process finds them if this one ends.

A table in the memory that daemon and supervisor share (beat.py). A slot is six words:

    handle   0: the slot is empty; written last, emptied first, so a slot is whole or not there
    inode
    owner    the kernel's lock owner
    start    first byte
    last     last byte
    what     bits 0-7 the mode, bit 8 flock instead of fcntl, bits 16-47 the process id

An owner has a slot for each range, by the first handle through which it locked anything, and one
of mode NL for each further handle. What replaces an owner's locks is written before what was there
is emptied: who dies in between leaves both, and the request that it did not answer comes again.
"""

from collections.abc import Sequence
from typing import Final

from clusterfs.fs.endangered import LockNote
from clusterfs.fuse.beat import LOCKS_USED, Beat

_WORDS: Final = 6
_MODE: Final = 0xFF
_FLOCK: Final = 1 << 8
_PID_BIT: Final = 16
_PID: Final = 0xFFFFFFFF

Key = tuple[int, bool, int]  # inode, flock, owner


class LockJournal:
    """The locks' part of clusterfs.fs.endangered.Journal, over a Beat's memory."""

    def __init__(self, beat: Beat) -> None:
        self._words = beat.words
        self._first = beat.first_lock
        self._capacity = beat.locks
        self._slots: dict[Key, list[int]] = {}
        self._free: list[int] = []

    def recover(self) -> list[LockNote]:
        """Return what the process before this one had noted; it stays noted."""
        found = []
        for slot in range(self._words[LOCKS_USED]):
            note = self._read(slot)
            if note is None:
                self._free.append(slot)
            else:
                self._slots.setdefault(_key(note), []).append(slot)
                found.append(note)
        return found

    def replace(self, inode: int, owner: int, notes: Sequence[LockNote], *, flock: bool) -> bool:
        """Note all that an owner has locked in a file now; False: there is no room."""
        key = inode, flock, owner
        former, written = self._slots.pop(key, []), list[int]()
        for note in notes:
            slot = self._take()
            if slot is None:
                break
            self._write(slot, note)
            written.append(slot)
        complete = len(written) == len(notes)
        if not complete:
            former, written = former + written, []
        for slot in former:
            self._words[self._at(slot)] = 0
        self._free += former
        if written:
            self._slots[key] = written
        return complete

    def _write(self, slot: int, note: LockNote) -> None:
        at, words = self._at(slot), self._words
        words[at + 1] = note.inode
        words[at + 2] = note.owner
        words[at + 3] = note.start
        words[at + 4] = note.last
        words[at + 5] = note.mode | note.flock * _FLOCK | (note.pid & _PID) << _PID_BIT
        words[at] = note.handle

    def _read(self, slot: int) -> LockNote | None:
        at = self._at(slot)
        handle, inode, owner, start, last, what = self._words[at : at + _WORDS]
        if not handle:
            return None
        pid = what >> _PID_BIT & _PID
        return LockNote(handle, inode, owner, pid, bool(what & _FLOCK), start, last, what & _MODE)

    def _take(self) -> int | None:
        if self._free:
            return self._free.pop()
        used = self._words[LOCKS_USED]
        if used >= self._capacity:
            return None
        self._words[LOCKS_USED] = used + 1
        return int(used)

    def _at(self, slot: int) -> int:
        return self._first + slot * _WORDS


def _key(note: LockNote) -> Key:
    return note.inode, note.flock, note.owner
