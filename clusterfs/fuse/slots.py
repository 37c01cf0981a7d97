"""A table in the memory that daemon and supervisor share (beat.py): slots of some words each.

The first word of a slot is 0 if the slot is empty. It is written last and emptied first, so a slot
is whole or not there. A word before the table says how many slots were ever used.
"""

from clusterfs.fuse.beat import Beat


class Slots:
    """Who takes a slot writes its words, the first one last."""

    def __init__(self, beat: Beat, first: int, capacity: int, width: int, used: int) -> None:
        """Find the table that begins at word `first`; `used` is the number of the word before."""
        self._words = beat.words
        self._first = first
        self._capacity = capacity
        self._width = width
        self._used = used
        self._free: list[int] = []

    def recover(self) -> list[int]:
        """Return the slots that the process before this one left full."""
        used = range(self._words[self._used])
        full = [slot for slot in used if self._words[self.at(slot)]]
        taken = set(full)
        self._free = [slot for slot in used if slot not in taken]
        return full

    def take(self) -> int | None:
        """Return an empty slot; None: the table is full."""
        if self._free:
            return self._free.pop()
        used = self._words[self._used]
        if used >= self._capacity:
            return None
        self._words[self._used] = used + 1
        return int(used)

    def empty(self, slot: int) -> None:
        """Empty a slot."""
        self._words[self.at(slot)] = 0
        self._free.append(slot)

    def at(self, slot: int) -> int:
        """Return the number of a slot's first word."""
        return self._first + slot * self._width
