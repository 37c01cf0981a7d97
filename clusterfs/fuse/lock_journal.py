"""The file locks of the mount's programs, kept where the next process finds them if this one ends.

A table (slots.py) in the memory that daemon and supervisor share. A slot is six words:

    handle   0: the slot is empty
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
from clusterfs.fuse.beat import LOCK_WORDS, LOCKS_USED, Beat
from clusterfs.fuse.slots import Slots

_MODE: Final = 0xFF
_FLOCK: Final = 1 << 8
_PID_BIT: Final = 16
_PID: Final = 0xFFFFFFFF

Key = tuple[int, bool, int]  # inode, flock, owner


class LockJournal:
    """The locks' part of clusterfs.fs.endangered.Journal, over a Beat's memory."""

    def __init__(self, beat: Beat) -> None:
        self._words = beat.words
        self._table = Slots(beat, beat.first_lock, beat.locks, LOCK_WORDS, LOCKS_USED)
        self._slots: dict[Key, list[int]] = {}

    def recover(self) -> list[LockNote]:
        """Return what the process before this one had noted; it stays noted."""
        found = []
        for slot in self._table.recover():
            note = self._read(slot)
            self._slots.setdefault(_key(note), []).append(slot)
            found.append(note)
        return found

    def replace(self, inode: int, owner: int, notes: Sequence[LockNote], *, flock: bool) -> bool:
        """Note all that an owner has locked in a file now; False: there is no room."""
        key = inode, flock, owner
        former, written = self._slots.pop(key, []), list[int]()
        for note in notes:
            slot = self._table.take()
            if slot is None:
                break
            self._write(slot, note)
            written.append(slot)
        complete = len(written) == len(notes)
        if not complete:
            former, written = former + written, []
        for slot in former:
            self._table.empty(slot)
        if written:
            self._slots[key] = written
        return complete

    def _write(self, slot: int, note: LockNote) -> None:
        at, words = self._table.at(slot), self._words
        words[at + 1] = note.inode
        words[at + 2] = note.owner
        words[at + 3] = note.start
        words[at + 4] = note.last
        words[at + 5] = note.mode | note.flock * _FLOCK | (note.pid & _PID) << _PID_BIT
        words[at] = note.handle

    def _read(self, slot: int) -> LockNote:
        at = self._table.at(slot)
        handle, inode, owner, start, last, what = self._words[at : at + LOCK_WORDS]
        pid = what >> _PID_BIT & _PID
        return LockNote(handle, inode, owner, pid, bool(what & _FLOCK), start, last, what & _MODE)


def _key(note: LockNote) -> Key:
    return note.inode, note.flock, note.owner
