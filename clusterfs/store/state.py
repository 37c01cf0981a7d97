"""All objects of the brick: heads, keys, block maps (maps.py), and the chunks the maps refer to.

`perform` makes a resolved change; the door calls it once the change is in the log, replay calls it
with what the log says, and both arrive at the same state. Everything is in layers over the
checkpoint's table (see layers.py).

Invariants:
  * a head (group, version) exists exactly for the objects that exist, and byte for byte one entry
    in its group's index;
  * an object without a head has no keys and no map pages;
  * `marked` holds the objects that have the key MARK.
"""

import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from clusterfs.store.chunks import ChunkTable
from clusterfs.store.layers import Family, Values
from clusterfs.store.maps import MAP_BITS, MAP_BLOCKS, Maps, chunks_of
from clusterfs.store.objects import (
    ABSENT,
    MARK,
    Delete,
    Discard,
    ObjectId,
    Put,
    Remove,
    Version,
)
from clusterfs.store.records import HOLE, LOST, Placed, Resolved, ResolvedChange, SharedPages

_MAP_MASK = MAP_BLOCKS - 1
_GROUP_KEY = struct.Struct(">H")
_HEAD = struct.Struct("<HQQ")
_ID_BYTES = 16
_PAGE = 4096
_BEYOND = b"\xff" * 321  # above every key

# What resync gives an object that it is replacing: different from every version a change expects.
INCOMPLETE = Version(0, 1)


class Head(NamedTuple):
    """What is known of an object as a whole."""

    group: int
    version: Version


def _encode_head(head: Head) -> bytes:
    return _HEAD.pack(head.group, head.version.epoch, head.version.counter)


def _decode_head(value: bytes) -> Head:
    group, epoch, counter = _HEAD.unpack(value)
    return Head(group, Version(epoch, counter))


class State:
    """Objects and chunks. Belongs to the trio thread, except what a checkpoint freezes."""

    def __init__(self, values: Values) -> None:
        self.chunks = ChunkTable(values)
        self._heads: Family[Head] = Family(values, b"O", _encode_head, _decode_head)
        self._groups: Family[bytes] = Family(values, b"G", bytes, bytes)
        self._keys: Family[bytes] = Family(values, b"K", bytes, bytes)
        self.maps = Maps(values, self.chunks)
        self.families: tuple[Family[Any], ...] = (
            self._heads,
            self._groups,
            self._keys,
            *self.maps.families,
        )
        self.marked: set[ObjectId] = set()

    # -- questions

    def head(self, object_id: ObjectId) -> Head | None:
        """Return the object's head, or None if it does not exist."""
        return self._heads.get(b"", object_id)

    def version(self, object_id: ObjectId) -> Version:
        """Return the object's version, ABSENT if it does not exist."""
        head = self._heads.get(b"", object_id)
        return ABSENT if head is None else head.version

    def get(self, object_id: ObjectId, key: bytes) -> bytes | None:
        """Return a key's value, or None."""
        return self._keys.get(object_id, key)

    def scan(
        self, object_id: ObjectId, prefix: bytes, after: bytes, limit: int
    ) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` sorted pairs whose key starts with `prefix` and is > `after`."""
        found: list[tuple[bytes, bytes]] = []
        if after < prefix:
            value = self.get(object_id, prefix) if prefix else None
            found = [] if value is None else [(prefix, value)]
            after = prefix
        for pair in self._keys.after(object_id, after, prefix + _BEYOND):
            if len(found) >= limit:
                break
            found.append(pair)
        return found[:limit]

    def objects(
        self, group: int | None, after: ObjectId | bytes, limit: int
    ) -> list[tuple[ObjectId, Version]]:
        """Return up to `limit` objects with id > `after`, in order, of one group or of all."""
        found: list[tuple[ObjectId, Version]] = []
        ids: Iterator[tuple[bytes, object]]
        if group is None:
            ids = self._heads.after(b"", after, _BEYOND)
        else:
            ids = self._groups.after(_GROUP_KEY.pack(group), after, _BEYOND)
        for object_id, _ in ids:
            if len(found) >= limit:
                break
            found.append((ObjectId(object_id), self.version(ObjectId(object_id))))
        return found

    def every_object(self) -> Iterator[ObjectId]:
        """Yield all objects, in order; what is yielded may change before the next is asked for."""
        after: ObjectId | bytes = b""
        while page := self.objects(None, after, _PAGE):
            yield from (object_id for object_id, _ in page)
            after = page[-1][0]

    def cids(self, object_id: ObjectId, first: int, count: int) -> "array[int]":
        """Return the cids of a range of blocks, 0 for holes."""
        if first >> MAP_BITS == (first + count - 1) >> MAP_BITS:
            page = self.maps.get(object_id, first >> MAP_BITS)
            slot = first & _MAP_MASK
            return array("Q", bytes(8 * count)) if page is None else page[slot : slot + count]
        found = array("Q")
        while count:
            slot = first & _MAP_MASK
            size = min(count, MAP_BLOCKS - slot)
            found += self.cids(object_id, first, size)
            first += size
            count -= size
        return found

    def placed(self, object_id: ObjectId, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (block, cid) of the blocks in [first, end) that are no holes, in order."""
        return _within(self.maps.pages(object_id, first >> MAP_BITS), first, end)

    def sole(self, object_id: ObjectId, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (block, cid) of those that no clone has by the same map page."""
        return _within(self.maps.sole(object_id, first >> MAP_BITS), first, end)

    @property
    def logical_blocks(self) -> int:
        """Return how many blocks objects have, however many of them are one chunk."""
        return self.chunks.references_total + self.maps.repeated

    # -- changes

    def perform(self, change: ResolvedChange) -> None:
        """Make one change; its chunks are in the chunk table, its room is given."""
        object_id = change.object_id
        for operation in change.operations:
            kind = type(operation)
            if kind is Placed:
                self._place(object_id, operation.first, operation.cids)  # type: ignore[union-attr]
            elif kind is SharedPages:
                self.maps.give(object_id, operation)  # type: ignore[arg-type]
            elif kind is Delete:
                self._delete(object_id)
                return
            else:
                self._perform_rare(object_id, operation)
        old = self._heads.get(b"", object_id)
        self._heads.put(b"", object_id, Head(change.group, change.version))
        if old is None or old.group != change.group:
            if old is not None:
                self._groups.put(_GROUP_KEY.pack(old.group), object_id, None)
            self._groups.put(_GROUP_KEY.pack(change.group), object_id, b"")

    def _perform_rare(self, object_id: ObjectId, operation: Resolved) -> None:
        match operation:
            case Put(key=key, value=value):
                self._keys.put(object_id, key, value)
                if key == MARK:
                    self.marked.add(object_id)
            case Remove(key=key):
                self._keys.put(object_id, key, None)
                if key == MARK:
                    self.marked.discard(object_id)
            case Discard(first=first, count=count):
                self._discard(object_id, first, first + count)
            case _:
                raise AssertionError(operation)

    def hold(self, changes: Sequence[ResolvedChange]) -> None:
        """Take the references of a prepared transaction."""
        for cid in _cids_of(changes):
            self.chunks.take(cid)
        self.maps.adopt(changes)

    def let_go(self, changes: Sequence[ResolvedChange], *, performed: bool) -> None:
        """Drop the references of a prepared transaction; what it shares is given, if performed."""
        for cid in _cids_of(changes):
            self.chunks.drop(cid)
        if not performed:
            self.maps.release(changes)

    def _place(self, object_id: ObjectId, first: int, cids: "array[int]") -> None:
        if len(cids) == 1:
            self._place_one(object_id, first, cids[0])
            return
        at = 0
        while at < len(cids):
            block = first + at
            size = min(len(cids) - at, MAP_BLOCKS - (block & _MAP_MASK))
            self._place_in_page(
                object_id, block, cids[at : at + size] if size < len(cids) else cids
            )
            at += size

    def _place_in_page(self, object_id: ObjectId, block: int, placed: "array[int]") -> None:
        number, slot, size = block >> MAP_BITS, block & _MAP_MASK, len(placed)
        self.chunks.take_all(chunks_of(placed) if LOST in placed else placed)
        if size == MAP_BLOCKS:
            whole = None if placed.count(HOLE) == MAP_BLOCKS else placed[:]
            self.maps.replace(object_id, number, whole)
            return
        page = self.maps.own(object_id, number)
        replaced = page[slot : slot + size]
        page[slot : slot + size] = placed
        drop = self.chunks.drop
        for old in replaced:
            if old and old != LOST:
                drop(old)
        if HOLE in placed:
            self.maps.remove_if_empty(object_id, number, page)

    def _place_one(self, object_id: ObjectId, block: int, cid: int) -> None:
        """Do the same for one block."""
        number, slot = block >> MAP_BITS, block & _MAP_MASK
        page = self.maps.own(object_id, number)
        old, page[slot] = page[slot], cid
        if cid and cid != LOST:
            self.chunks.take(cid)
        if old and old != LOST:
            self.chunks.drop(old)
        if cid == HOLE:
            self.maps.remove_if_empty(object_id, number, page)

    def _discard(self, object_id: ObjectId, first: int, end: int) -> None:
        for number, _ in list(self.maps.entries(object_id, first >> MAP_BITS)):
            base = number << MAP_BITS
            low, high = max(first, base), min(end, base + MAP_BLOCKS)
            if low < high:
                self._place_in_page(object_id, low, array("Q", bytes(8 * (high - low))))

    def _delete(self, object_id: ObjectId) -> None:
        head = self._heads.get(b"", object_id)
        if head is None:
            return
        for key, _ in list(self._keys.after(object_id, b"", _BEYOND)):
            self._keys.put(object_id, key, None)
        for number, _ in list(self.maps.entries(object_id, 0)):
            self.maps.replace(object_id, number, None)
        self.marked.discard(object_id)
        self._groups.put(_GROUP_KEY.pack(head.group), object_id, None)
        self._heads.put(b"", object_id, None)

    def lose(self, object_id: ObjectId, block: int) -> None:
        """Say that a block's chunk does not exist; no reference is dropped."""
        self.maps.lose(object_id, block >> MAP_BITS, block & _MAP_MASK)

    # -- for fsck

    def owners(self) -> Iterator[bytes]:
        """Yield every object that has, or lately had, keys or a map; some twice."""
        yield from self._keys.owners(_ID_BYTES)
        yield from self.maps.owners(_ID_BYTES)

    def has_records(self, object_id: ObjectId) -> bool:
        """Tell whether there is a key or a map page of the object."""
        keys, pages = self._keys.after(object_id, b"", _BEYOND), self.maps.entries(object_id, 0)
        return next(keys, None) is not None or next(pages, None) is not None

    def clear(self, object_id: ObjectId) -> None:
        """Remove the keys and maps of an object that does not exist; no reference is dropped."""
        for key, _ in list(self._keys.after(object_id, b"", _BEYOND)):
            self._keys.put(object_id, key, None)
        self.maps.forget(object_id)

    def is_indexed(self, object_id: ObjectId) -> bool:
        """Tell whether the object is in its group's index."""
        head = self.head(object_id)
        assert head is not None
        return self._groups.get(_GROUP_KEY.pack(head.group), object_id) is not None

    def index(self, object_id: ObjectId) -> None:
        """Enter the object into its group's index."""
        head = self.head(object_id)
        assert head is not None
        self._groups.put(_GROUP_KEY.pack(head.group), object_id, b"")

    def misfiled(self) -> Iterator[tuple[int, ObjectId]]:
        """Yield (group, object) of entries in the index of a group that the object is not in."""
        for owner in sorted(set(self._groups.owners(_GROUP_KEY.size))):
            group = _GROUP_KEY.unpack(owner)[0]
            for object_id, _ in list(self._groups.after(owner, b"", _BEYOND)):
                head = self.head(ObjectId(object_id))
                if head is None or head.group != group:
                    yield group, ObjectId(object_id)

    def unfile(self, group: int, object_id: ObjectId) -> None:
        """Take an entry out of a group's index."""
        self._groups.put(_GROUP_KEY.pack(group), object_id, None)

    def remark(self, marked: set[ObjectId]) -> None:
        """Set which objects have the key MARK."""
        self.marked = set(marked)

    @property
    def dirty_count(self) -> int:
        """Return roughly how many records the next checkpoint writes."""
        return self.chunks.dirty_count + sum(family.dirty_count for family in self.families)


def _cids_of(changes: Sequence[ResolvedChange]) -> Iterator[int]:
    for change in changes:
        for operation in change.operations:
            if isinstance(operation, Placed):
                yield from chunks_of(operation.cids)


def _within(
    pages: Iterator[tuple[int, "array[int]"]], first: int, end: int
) -> Iterator[tuple[int, int]]:
    """Yield (block, cid) of the blocks in [first, end) that are no holes, in order."""
    for number, page in pages:
        base = number << MAP_BITS
        if base >= end:
            return
        for slot, cid in enumerate(page):
            if cid != HOLE and first <= base + slot < end:
                yield base + slot, cid
