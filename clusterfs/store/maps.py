"""Block maps: which chunk each block of an object is, in pages that clones have in common.

A **map page** holds the cids of 256 blocks. It is one map's own, or shared: then it has a number,
lies in a table of its own with the count of those who refer to it, and never changes. Whoever
writes to it gets a copy of its own first; the last one takes it over. So blocks are cloned a page
at a time, whatever is in it: one more reference to the page, none to its chunks.

A map is named by its **owner**: an object's id, or the number of a map that several objects may
have as a whole (whole_maps.py).

A clone goes in two steps. `adopt` makes the source's pages shared, under numbers that the log
record names, and holds each once for the clone; `give` hands what is held to the target. In between
the source may change, be deleted, or wait for a commit: what is held stays as it was.

Invariants (`Contents.validate` counts):
  * a chunk's references: the own pages that have it, the shared pages that have it, each once
    whoever refers to them, and prepared transactions;
  * a shared page's references: map entries, and prepared clones; it exists while there are any;
  * a page without a single chunk does not exist;
  * `repeated` = the blocks that are there by sharing: for each shared page, its chunks times its
    references but one; for each shared map likewise.
"""

import struct
from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from clusterfs.store.chunks import ChunkTable
from clusterfs.store.layers import Family, Values
from clusterfs.store.records import HOLE, LOST, SharedPages

MAP_BLOCKS = 256  # blocks whose cids one map page holds: 1 MiB of data
MAP_BITS = 8
PAGE_KEY = struct.Struct(">I")
OWN = -1  # of a page's number: there is a page, and it is the object's own

_NO_BLOCKS = bytes(8 * MAP_BLOCKS)
_NUMBER = struct.Struct("<Q")
_NUMBER_KEY = struct.Struct(">Q")
_REFERENCES = struct.Struct("<I")
_OWNER_BYTES = 16
_LAST = b"\xff" * 5
_LAST_NUMBER = b"\xff" * 9


class SharedPage(NamedTuple):
    """A page that several maps refer to; its cids never change."""

    references: int
    cids: "array[int]"

    @property
    def blocks(self) -> int:
        """Count the blocks that have a chunk."""
        return blocks_in(self.cids)


def blocks_in(cids: "array[int]") -> int:
    """Count the chunks in a map page."""
    return len(cids) - cids.count(HOLE) - (cids.count(LOST) if LOST in cids else 0)


def _encode(value: "array[int] | int") -> bytes:
    return _NUMBER.pack(value) if isinstance(value, int) else value.tobytes()


def _decode(stored: bytes) -> "array[int] | int":
    number: int
    if len(stored) == _NUMBER.size:
        (number,) = _NUMBER.unpack(stored)
        return number
    return array("Q", stored)


def _copy(value: "array[int] | int") -> "array[int] | int":
    return value if isinstance(value, int) else value[:]


def _encode_shared(page: SharedPage) -> bytes:
    return _REFERENCES.pack(page.references) + page.cids.tobytes()


def _decode_shared(stored: bytes) -> SharedPage:
    (references,) = _REFERENCES.unpack_from(stored)
    return SharedPage(references, array("Q", stored[_REFERENCES.size :]))


def chunks_of(cids: Iterable[int]) -> Iterator[int]:
    """Yield the cids that are chunks."""
    return (cid for cid in cids if cid and cid != LOST)


class Maps:
    """The maps of all objects."""

    def __init__(self, values: Values, chunks: ChunkTable) -> None:
        self._chunks = chunks
        self._maps: Family[array[int] | int] = Family(values, b"M", _encode, _decode, _copy)
        self._pages: Family[SharedPage] = Family(values, b"N", _encode_shared, _decode_shared)
        self.families = (self._maps, self._pages)
        self.next_number = 1
        self.repeated = 0

    # -- questions

    def get(self, owner: bytes, page: int) -> "array[int] | None":
        """Return a page for reading, None if it is all holes."""
        value = self._maps.get(owner, PAGE_KEY.pack(page))
        return self._cids(value) if isinstance(value, int) else value

    def pages(self, owner: bytes, first: int) -> Iterator[tuple[int, "array[int]"]]:
        """Yield a map's pages from number `first` on, in order."""
        for number, value in self.entries(owner, first):
            yield number, self._cids(value) if isinstance(value, int) else value

    def entries(self, owner: bytes, first: int) -> Iterator[tuple[int, "array[int] | int"]]:
        """Yield (page, what the map has there: cids of its own, or a shared page's number)."""
        after = PAGE_KEY.pack(first - 1) if first else b""
        for key, value in self._maps.after(owner, after, _LAST):
            yield PAGE_KEY.unpack(key)[0], value

    def sole(self, owner: bytes, first: int) -> Iterator[tuple[int, "array[int]"]]:
        """Yield the pages that nobody else refers to."""
        for number, value in self.entries(owner, first):
            if not isinstance(value, int):
                yield number, value
            elif (page := self.shared(value)) is not None and page.references == 1:
                yield number, page.cids

    def numbers(self, owner: bytes, first: int, count: int) -> list[int]:
        """Return the number of each of these pages: 0 if there is none, OWN if it has none yet."""
        found = [0] * count
        for number, value in self.entries(owner, first):
            if number >= first + count:
                break
            found[number - first] = value if isinstance(value, int) else OWN
        return found

    def shared(self, number: int) -> SharedPage | None:
        """Return a shared page."""
        return self._pages.get(b"", _NUMBER_KEY.pack(number))

    def all_shared(self) -> Iterator[tuple[int, SharedPage]]:
        """Yield all shared pages with their numbers."""
        for key, page in self._pages.after(b"", b"", _LAST_NUMBER):
            yield _NUMBER_KEY.unpack(key)[0], page

    def owners(self) -> Iterator[bytes]:
        """Yield every owner that has, or lately had, pages; some twice."""
        return self._maps.owners(_OWNER_BYTES)

    def _cids(self, number: int) -> "array[int]":
        page = self.shared(number)
        return array("Q", [LOST]) * MAP_BLOCKS if page is None else page.cids

    # -- changes

    def own(self, owner: bytes, page: int) -> "array[int]":
        """Return a page for changing; an empty one is made if there is none."""
        key = PAGE_KEY.pack(page)
        value = self._maps.own(owner, key)
        if value is None:
            value = array("Q", _NO_BLOCKS)
            self._maps.put(owner, key, value)
        elif isinstance(value, int):
            value = self._take_over(value)
            self._maps.put(owner, key, value)
        return value

    def replace(self, owner: bytes, page: int, value: "array[int] | int | None") -> None:
        """Set a page whose references are taken already; what it was before is let go."""
        key = PAGE_KEY.pack(page)
        old = self._maps.get(owner, key)
        if value is None and old is None:
            return
        self._maps.put(owner, key, value)
        if isinstance(old, int):
            self._let_go(old)
        elif old is not None:
            self._drop(old)

    def remove_if_empty(self, owner: bytes, page: int, cids: "array[int]") -> None:
        """Forget a page of the map's own if all of it are holes."""
        if cids.count(HOLE) == MAP_BLOCKS:
            self._maps.put(owner, PAGE_KEY.pack(page), None)

    def forget(self, owner: bytes) -> None:
        """Remove a map; no reference is dropped."""
        for number, _ in list(self.entries(owner, 0)):
            self._maps.put(owner, PAGE_KEY.pack(number), None)

    def lose(self, owner: bytes, page: int, slot: int) -> None:
        """Say that a block's chunk does not exist, for all who share it.

        Drops no reference, and leaves what counts blocks as it is.
        """
        value = self._maps.own(owner, PAGE_KEY.pack(page))
        assert value is not None
        if not isinstance(value, int):
            value[slot] = LOST
            return
        shared = self.shared(value)
        assert shared is not None
        cids = shared.cids[:]
        cids[slot] = LOST
        self._put(value, SharedPage(shared.references, cids))

    def correct(self, number: int, references: int) -> None:
        """Set a shared page's number of references to what was counted."""
        page = self.shared(number)
        assert page is not None
        self._put(number, page._replace(references=references) if references else None)

    def _take_over(self, number: int) -> "array[int]":
        """Return a copy of a shared page for one of those who refer to it."""
        page = self.shared(number)
        if page is None:
            return self._cids(number)
        if page.references == 1:
            self._put(number, None)  # its chunk references are the copy's now
        else:
            self._chunks.take_all(chunks_of(page.cids) if LOST in page.cids else page.cids)
            self._refer(number, page, -1)
        return page.cids[:]

    def _let_go(self, number: int) -> None:
        page = self.shared(number)
        if page is None:
            return
        if page.references == 1:
            self._put(number, None)
            self._drop(page.cids)
        else:
            self._refer(number, page, -1)

    def _refer(self, number: int, page: SharedPage, more: int) -> None:
        self._put(number, SharedPage(page.references + more, page.cids))
        self.repeated += more * page.blocks

    def _put(self, number: int, page: SharedPage | None) -> None:
        self._pages.put(b"", _NUMBER_KEY.pack(number), page)

    def _drop(self, cids: "array[int]") -> None:
        self._chunks.drop_all(chunks_of(cids) if LOST in cids else cids)

    # -- clones

    def adopt(self, owner: bytes, clone: SharedPages) -> None:
        """Hold each page that a clone shares, once; what is its source's own gets a number."""
        for index, number in enumerate(clone.numbers):
            if number:
                page = self.shared(number)
                if page is None:
                    page = self._share(owner, clone.source_page + index, number)
                self._refer(number, page, 1)

    def _share(self, owner: bytes, page: int, number: int) -> SharedPage:
        key = PAGE_KEY.pack(page)
        value = self._maps.get(owner, key)
        assert value is not None, f"page {page} of {owner.hex()} does not exist"
        assert not isinstance(value, int), f"page {page} of {owner.hex()} has a number already"
        self._maps.put(owner, key, number)  # from now on nobody changes these cids
        self.next_number = max(self.next_number, number + 1)
        return SharedPage(1, value)

    def give(self, owner: bytes, clone: SharedPages) -> int:
        """Hand the pages that are held for a clone to its target; return their blocks."""
        blocks = 0
        for index, number in enumerate(clone.numbers):
            page = self.shared(number) if number else None
            if page is not None:
                blocks += page.blocks
            self.replace(owner, clone.first_page + index, number or None)
        return blocks

    def release(self, clone: SharedPages) -> None:
        """Let go what is held: the clone is not made."""
        for number in filter(None, clone.numbers):
            self._let_go(number)

    # -- whole maps

    def copy(self, owner: bytes, target: bytes) -> None:
        """Let another map have all pages too; `repeated` is the caller's affair."""
        for page, value in list(self.entries(owner, 0)):
            key = PAGE_KEY.pack(page)
            if isinstance(value, int):
                number, shared = value, self.shared(value)
                if shared is not None:
                    self._put(number, SharedPage(shared.references + 1, shared.cids))
            else:
                number, self.next_number = self.next_number, self.next_number + 1
                self._maps.put(owner, key, number)  # from now on nobody changes these cids
                self._put(number, SharedPage(2, value))
            self._maps.put(target, key, number)

    def move(self, owner: bytes, target: bytes) -> None:
        """Give all pages to another owner, who has none."""
        for page, _ in list(self.entries(owner, 0)):
            key = PAGE_KEY.pack(page)
            self._maps.put(target, key, self._maps.own(owner, key))
            self._maps.put(owner, key, None)

    def drop_all(self, owner: bytes) -> None:
        """Remove all pages of a map that nobody has any more."""
        for page, _ in list(self.entries(owner, 0)):
            self.replace(owner, page, None)

    def count(self, owner: bytes) -> int:
        """Count the blocks of a map that have a chunk."""
        return sum(blocks_in(cids) for _, cids in self.pages(owner, 0))
