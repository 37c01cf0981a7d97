"""Whole maps that clones share: one reference for all blocks of a stripe, whatever is in it.

A map has a number, which its object's head names, and its pages lie under that number (maps.py). To
clone all blocks of an object is to give the target the same number, and to count in a table of its
own who has it. The first one that changes something gets a map of its own: a list of the same
pages, from then on shared page by page. The last one that has the map changes it in place.

A map that was made by a clusterfs before whole maps were shared lies under its object's id; it gets
a number when it is first cloned as a whole.

A clone goes in the two steps of maps.py: `hold` counts it, its target `takes` it over later.

Invariants (`Contents.validate` counts):
  * references of a map = the objects whose head names it, and the prepared clones that will;
  * a map without a record here has one reference; what several have is never changed;
  * a map that nobody has has no pages and no record.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from clusterfs.store.layers import Family, Values
from clusterfs.store.maps import Maps

UNKNOWN = (1 << 32) - 1  # of blocks: the object is older than their being counted

_KEY = struct.Struct(">Q")
_OWNER = struct.Struct(">QQ")
_OWNERS = (1 << 64) - 1  # stands where an object's id has its inode number: none is so high
_COUNTS = struct.Struct("<II")
_SINGLE = 1 << 14
_LAST = b"\xff" * 9


class SharedCounts(NamedTuple):
    """What is known of a map that several objects have, or had."""

    references: int
    blocks: int  # of it that have a chunk


def _encode(counts: SharedCounts) -> bytes:
    return _COUNTS.pack(*counts)


def _decode(stored: bytes) -> SharedCounts:
    return SharedCounts(*_COUNTS.unpack(stored))


def owner_of(object_id: bytes, number: int) -> bytes:
    """Return under which name the pages of an object lie whose head says `number`."""
    return _OWNER.pack(_OWNERS, number) if number else object_id


def number_of(owner: bytes) -> int:
    """Return the number of the map whose pages lie under a name; 0: it is an object's id."""
    high, number = _OWNER.unpack(owner)
    return number if high == _OWNERS else 0


class Held:
    """The map of an object that is being changed.

    logical: how many blocks all objects had, by `references_total` and `repeated`, when it was at
    `blocks`; the difference later is what this object gained.
    """

    __slots__ = ("blocks", "is_own", "logical", "number", "object_id", "owner")

    def __init__(self, object_id: bytes, number: int, blocks: int, logical: int) -> None:
        self.object_id = object_id
        self.number = number
        self.owner = owner_of(object_id, number)
        self.blocks = blocks
        self.logical = logical
        self.is_own = False  # it is certain that nobody else has it

    def blocks_at(self, logical: int) -> int:
        """Return how many blocks the object has, now that all have `logical`."""
        return UNKNOWN if self.blocks == UNKNOWN else self.blocks + logical - self.logical

    def become(self, number: int, blocks: int, logical: int) -> None:
        """Have another map from now on."""
        self.number, self.owner = number, owner_of(self.object_id, number)
        self.blocks, self.logical = blocks, logical
        self.is_own = False


class WholeMaps:
    """Who has which map."""

    def __init__(self, values: Values, maps: Maps) -> None:
        self._maps = maps
        self._counts: Family[SharedCounts] = Family(values, b"T", _encode, _decode)
        self.families = (self._counts,)
        self.next_number = 1
        self._single: set[int] = set()  # some of the maps that are known to have no record

    # -- questions

    def find(self, number: int) -> SharedCounts | None:
        """Return what is known of a map that is, or lately was, shared."""
        return self._counts.get(b"", _KEY.pack(number)) if number else None

    def is_shared(self, number: int) -> bool:
        """Tell whether several have this map."""
        counts = self.find(number)
        return counts is not None and counts.references > 1

    def all_shared(self) -> Iterator[tuple[int, SharedCounts]]:
        """Yield what is known of all such maps, by number."""
        for key, counts in self._counts.after(b"", b"", _LAST):
            yield _KEY.unpack(key)[0], counts

    # -- changes

    def own(self, held: Held) -> bytes:
        """Return the name of the object's pages, for changing them: nobody else has them now."""
        if not held.is_own:
            counts = None if held.number in self._single else self.find(held.number)
            if counts is not None and counts.references > 1:
                self._part(held, counts)
            elif counts is not None:
                self.put(held.number, None)
            elif not held.number and not held.blocks:
                self._name(held)
            held.is_own = True
            if len(self._single) >= _SINGLE:
                self._single.clear()
            self._single.add(held.number)
        return held.owner

    def _part(self, held: Held, counts: SharedCounts) -> None:
        """Give one of several a map of its own with the same pages: as many blocks by sharing."""
        self.put(held.number, counts._replace(references=counts.references - 1))
        before = held.owner
        self._name(held)
        self._maps.copy(before, held.owner)

    def _name(self, held: Held) -> None:
        number, self.next_number = self.next_number, self.next_number + 1
        held.number, held.owner = number, owner_of(held.object_id, number)

    def let_go(self, object_id: bytes, number: int) -> None:
        """One less has the map; the last one takes its pages with it."""
        counts = self.find(number)
        if counts is not None and counts.references > 1:
            self.put(number, counts._replace(references=counts.references - 1))
            self._maps.repeated -= counts.blocks
            return
        if counts is not None:
            self.put(number, None)
        self._maps.drop_all(owner_of(object_id, number))

    def hold(self, number: int, blocks: int) -> None:
        """One more has the map; `blocks`: what it has, if nothing is known of it."""
        counts = self.find(number) or SharedCounts(1, blocks)
        self.put(number, counts._replace(references=counts.references + 1))
        self._maps.repeated += counts.blocks
        self.next_number = max(self.next_number, number + 1)

    def put(self, number: int, counts: SharedCounts | None) -> None:
        """Set what is known of a map."""
        self._single.discard(number)
        self._counts.put(b"", _KEY.pack(number), counts)
