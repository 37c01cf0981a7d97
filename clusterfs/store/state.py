"""All objects of the brick: heads, keys, block maps (maps.py), and the chunks the maps refer to.

`perform` makes a resolved change; the door calls it once the change is in the log, replay calls it
with what the log says, and both arrive at the same state. Everything is in layers over the
checkpoint's table (see layers.py).

Invariants:
  * a head (group, version, map, blocks) exists exactly for the objects that exist, and byte for
    byte one entry in its group's index;
  * a head's blocks are those of its map that have a chunk, if they were counted from the start;
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
    ObjectId,
    Put,
    Remove,
    Version,
)
from clusterfs.store.placing import Placing
from clusterfs.store.records import (
    HOLE,
    Placed,
    ResolvedChange,
    SharedMap,
    SharedPages,
)
from clusterfs.store.whole_maps import UNKNOWN, Held, WholeMaps, number_of, owner_of

_MAP_MASK = MAP_BLOCKS - 1
_KEY_OPERATIONS = frozenset((Put, Remove))
_SHARED = frozenset((SharedPages, SharedMap))
_GROUP_KEY = struct.Struct(">H")
_HEAD = struct.Struct("<HQQQI")
_OLD_HEAD = struct.Struct("<HQQ")  # until format 3
_ID_BYTES = 16
_PAGE = 4096
_BEYOND = b"\xff" * 321  # above every key

# What resync gives an object that it is replacing: different from every version a change expects.
INCOMPLETE = Version(0, 1)


class Head(NamedTuple):
    """What is known of an object as a whole."""

    group: int
    version: Version
    map: int = 0  # the number of its map; 0: it has none, or one under its id
    blocks: int = 0  # that have a chunk


def _encode_head(head: Head) -> bytes:
    version = head.version
    return _HEAD.pack(head.group, version.epoch, version.counter, head.map, head.blocks)


def _decode_head(value: bytes) -> Head:
    if len(value) == _OLD_HEAD.size:
        group, epoch, counter = _OLD_HEAD.unpack(value)
        return Head(group, Version(epoch, counter), 0, UNKNOWN)
    group, epoch, counter, number, blocks = _HEAD.unpack(value)
    return Head(group, Version(epoch, counter), number, blocks)


class State:
    """Objects and chunks. Belongs to the trio thread, except what a checkpoint freezes."""

    def __init__(self, values: Values) -> None:
        self.chunks = ChunkTable(values)
        self._heads: Family[Head] = Family(values, b"O", _encode_head, _decode_head)
        self._groups: Family[bytes] = Family(values, b"G", bytes, bytes)
        self._keys: Family[bytes] = Family(values, b"K", bytes, bytes)
        self.maps = Maps(values, self.chunks)
        self.whole_maps = WholeMaps(values, self.maps)
        self._placing = Placing(self.chunks, self.maps, self.whole_maps)
        self.families: tuple[Family[Any], ...] = (
            self._heads,
            self._groups,
            self._keys,
            *self.maps.families,
            *self.whole_maps.families,
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

    def owner(self, object_id: ObjectId) -> bytes:
        """Return under which name the object's map pages lie."""
        head = self._heads.get(b"", object_id)
        return object_id if head is None else owner_of(object_id, head.map)

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
        owner, found = self.owner(object_id), array("Q")
        while True:
            slot = first & _MAP_MASK
            size = min(count, MAP_BLOCKS - slot)
            page = self.maps.get(owner, first >> MAP_BITS)
            piece = array("Q", bytes(8 * size)) if page is None else page[slot : slot + size]
            if size == count and not found:
                return piece
            found += piece
            if size == count:
                return found
            first += size
            count -= size

    def placed(self, object_id: ObjectId, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (block, cid) of the blocks in [first, end) that are no holes, in order."""
        return _within(self.maps.pages(self.owner(object_id), first >> MAP_BITS), first, end)

    def sole(self, object_id: ObjectId, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (block, cid) of those that no clone has by the same map, or map page."""
        owner = self.owner(object_id)
        if self.whole_maps.is_shared(number_of(owner)):
            return iter(())
        return _within(self.maps.sole(owner, first >> MAP_BITS), first, end)

    @property
    def logical_blocks(self) -> int:
        """Return how many blocks objects have, however many of them are one chunk."""
        return self._placing.logical_blocks

    # -- changes

    def perform(self, change: ResolvedChange) -> None:
        """Make one change; its chunks are in the chunk table, its room is given."""
        object_id = change.object_id
        old = self._heads.get(b"", object_id)
        held: Held | None = None
        for operation in change.operations:
            kind = type(operation)
            if kind is Delete:
                self._delete(object_id, held)
                return
            if kind in _KEY_OPERATIONS:
                key = operation.key  # type: ignore[union-attr]
                value = operation.value if kind is Put else None  # type: ignore[union-attr]
                self._keys.put(object_id, key, value)
                if key == MARK:
                    self._mark(object_id, value)
                continue
            if held is None:
                held = self._hold(object_id, old)
            self._placing.perform(held, operation)
        head = Head(change.group, change.version)
        if held is not None:
            blocks = held.blocks_at(self.logical_blocks)
            head = Head(change.group, change.version, held.number, blocks)
        elif old is not None:
            head = Head(change.group, change.version, old.map, old.blocks)
        self._heads.put(b"", object_id, head)
        if old is None or old.group != change.group:
            if old is not None:
                self._groups.put(_GROUP_KEY.pack(old.group), object_id, None)
            self._groups.put(_GROUP_KEY.pack(change.group), object_id, b"")

    def _hold(self, object_id: ObjectId, head: Head | None) -> Held:
        number, blocks = (0, 0) if head is None else (head.map, head.blocks)
        return Held(object_id, number, blocks, self.logical_blocks)

    def _mark(self, object_id: ObjectId, value: bytes | None) -> None:
        if value is None:
            self.marked.discard(object_id)
        else:
            self.marked.add(object_id)

    def hold(self, changes: Sequence[ResolvedChange]) -> None:
        """Take the references of a prepared transaction."""
        for cid in _cids_of(changes):
            self.chunks.take(cid)
        self.adopt(changes)

    def let_go(self, changes: Sequence[ResolvedChange], *, performed: bool) -> None:
        """Drop the references of a prepared transaction; what it shares is given, if performed."""
        for cid in _cids_of(changes):
            self.chunks.drop(cid)
        if not performed:
            for operation in shares_of(changes):
                if isinstance(operation, SharedMap):
                    self.whole_maps.let_go(operation.source, operation.number)
                else:
                    self.maps.release(operation)

    def adopt(self, changes: Sequence[ResolvedChange]) -> None:
        """Hold what these changes share; `perform` hands it to their objects."""
        for operation in shares_of(changes):
            if isinstance(operation, SharedMap):
                self._adopt(operation)
            else:
                self.maps.adopt(self.owner(operation.source), operation)

    def _adopt(self, clone: SharedMap) -> None:
        blocks = 0
        if self.whole_maps.find(clone.number) is None:
            head = self._heads.get(b"", clone.source)
            assert head is not None, f"object {clone.source.hex()} does not exist"
            if head.map != clone.number:
                head = self._number(clone.source, head, clone.number)
            blocks = head.blocks
        self.whole_maps.hold(clone.number, blocks)

    def _number(self, object_id: ObjectId, head: Head, number: int) -> Head:
        """Give a number to the map of an object that was made when maps had none."""
        assert not head.map, f"object {object_id.hex()} has map {head.map}, not {number}"
        blocks = self.maps.count(object_id) if head.blocks == UNKNOWN else head.blocks
        self.maps.move(object_id, owner_of(object_id, number))
        head = head._replace(map=number, blocks=blocks)
        self._heads.put(b"", object_id, head)
        return head

    def _delete(self, object_id: ObjectId, held: Held | None) -> None:
        head = self._heads.get(b"", object_id)
        if held is None:
            held = self._hold(object_id, head)
        self._placing.empty(held)
        if head is None:
            return
        for key, _ in list(self._keys.after(object_id, b"", _BEYOND)):
            self._keys.put(object_id, key, None)
        self.marked.discard(object_id)
        self._groups.put(_GROUP_KEY.pack(head.group), object_id, None)
        self._heads.put(b"", object_id, None)

    def lose(self, object_id: ObjectId, block: int) -> None:
        """Say that a block's chunk does not exist; no reference is dropped."""
        self.maps.lose(self.owner(object_id), block >> MAP_BITS, block & _MAP_MASK)

    # -- for fsck

    def owners(self) -> Iterator[bytes]:
        """Yield whatever has, or lately had, keys or map pages: objects, maps; some twice."""
        yield from self._keys.owners(_ID_BYTES)
        yield from self.maps.owners()

    def has_records(self, owner: bytes) -> bool:
        """Tell whether there is a key or a map page of this owner."""
        keys, pages = self._keys.after(owner, b"", _BEYOND), self.maps.entries(owner, 0)
        return next(keys, None) is not None or next(pages, None) is not None

    def clear(self, owner: bytes) -> None:
        """Remove the keys and pages of what does not exist; no reference is dropped."""
        for key, _ in list(self._keys.after(owner, b"", _BEYOND)):
            self._keys.put(owner, key, None)
        self.maps.forget(owner)

    def count_blocks(self, object_id: ObjectId, blocks: int) -> None:
        """Set how many blocks the object's map is said to have."""
        head = self.head(object_id)
        assert head is not None
        self._heads.put(b"", object_id, head._replace(blocks=blocks))

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


def shares_of(changes: Sequence[ResolvedChange]) -> Iterator[SharedPages | SharedMap]:
    """Yield what the changes share, in order."""
    for change in changes:
        for operation in change.operations:
            if type(operation) in _SHARED:
                yield operation  # type: ignore[misc]


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
