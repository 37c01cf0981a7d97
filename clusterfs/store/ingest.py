"""From payload to chunks: which blocks are zeros, which the brick already has, which are new.

A block's identity is its keyed BLAKE3; the key is the cluster's secret, so nobody outside can build
two blocks with one identity. A block of zeros is a hole. A hint that the chunk table confirms gives
the chunk; any other block becomes a new chunk.

Invariant: the new chunks of one transaction have consecutive cids, in payload order.
"""

from array import array
from collections.abc import Iterator, Sequence

from blake3 import blake3
from xxhash import xxh3_64_intdigest

from clusterfs.store.cache import ChunkCache
from clusterfs.store.format import ZERO_BLOCK
from clusterfs.store.hints import Hints
from clusterfs.store.maps import MAP_BLOCKS, OWN
from clusterfs.store.objects import (
    BLOCK_BYTES,
    STRIPE_BLOCKS,
    Change,
    Delete,
    Discard,
    Lose,
    ObjectId,
    Put,
    Remove,
    Share,
    Write,
)
from clusterfs.store.records import (
    HOLE,
    IDENTITY_BYTES,
    LOST,
    Placed,
    Resolved,
    ResolvedChange,
    SharedMap,
    SharedPages,
)
from clusterfs.store.state import State

_ZEROS = bytes(64 << 10)
_RESOLVED = frozenset((Put, Remove, Discard, Delete))  # operations that stay as they are


class Ingested:
    """A payload that found its chunks."""

    __slots__ = (
        "blocks",
        "changes",
        "checksums",
        "first_cid",
        "fresh",
        "maps",
        "numbers",
        "ranges",
    )

    def __init__(self, first_cid: int) -> None:
        self.changes: list[ResolvedChange] = []
        self.first_cid = first_cid
        self.fresh: dict[bytes, int] = {}  # identity -> cid of each new chunk, in order
        self.blocks: list[bytes] = []  # their content
        self.checksums: list[int] = []
        self.maps: dict[ObjectId, int] = {}  # numbers of maps that get one, by object
        self.numbers: dict[tuple[bytes, int], int] = {}  # of map pages that get one
        self.ranges: list[tuple[int, int]] = []  # bytes of the payload that become new chunks


def _is_zero(payload: bytes, at: int, end: int) -> bool:
    """Tell whether all these bytes are zeros; at once if the first one or the last one is not."""
    if payload[at] or payload[end - 1]:
        return False
    return all(
        payload[first : min(first + len(_ZEROS), end)] == _ZEROS[: end - first]
        for first in range(at, end, len(_ZEROS))
    )


class Ingest:
    """Resolves transactions."""

    def __init__(self, hints: Hints, key: bytes, state: State, cache: ChunkCache) -> None:
        self._hints = hints
        self._cache = cache
        self._key = key
        self._state = state
        self.zero_identity = self.identity(ZERO_BLOCK)
        self.deduplicated = 0
        self.zeros = 0
        self.fresh = 0
        self.shared = 0

    def identity(self, block: bytes | memoryview) -> bytes:
        """Return a block's identity."""
        return blake3(block, key=self._key).digest(IDENTITY_BYTES)

    def resolve(self, changes: Sequence[Change], payload: bytes, next_cid: int) -> Ingested:
        """Give every written block its chunk. Changes nothing."""
        result = Ingested(next_cid)
        at = 0
        for change in changes:
            operations: list[Resolved] = []
            for operation in change.operations:
                if type(operation) in _RESOLVED:
                    operations.append(operation)  # type: ignore[arg-type]
                elif isinstance(operation, Write):
                    end = at + operation.count * BLOCK_BYTES
                    if _is_zero(payload, at, end):
                        self.zeros += operation.count
                        operations.append(Discard(operation.first, operation.count))
                    else:
                        operations.append(self._place(operation.first, payload, at, end, result))
                    at = end
                elif isinstance(operation, Lose):
                    lost = array("Q", [LOST]) * operation.count
                    operations.append(Placed(operation.first, lost, b""))
                elif isinstance(operation, Share):
                    operations.extend(self._shared(operation, result))
                    self.shared += operation.count
            result.changes.append(
                ResolvedChange(
                    change.object_id, change.group, change.expected, change.version, operations
                )
            )
        return result

    def _place(self, first: int, payload: bytes, at: int, end: int, result: Ingested) -> Placed:
        cids = array("Q")
        identities: list[bytes] = []
        key, find = self._key, self._hints.find
        fresh, ranges = result.fresh, result.ranges
        for start in range(at, end, BLOCK_BYTES):
            following = start + BLOCK_BYTES
            block = payload[start:following]
            if block == ZERO_BLOCK:
                self.zeros += 1  # told without a hash: sparse images are full of them
                cids.append(HOLE)
                continue
            identity = blake3(block, key=key).digest(IDENTITY_BYTES)
            if known := fresh.get(identity) or find(identity):
                cid = known
                self.deduplicated += 1
            else:
                cid = fresh[identity] = result.first_cid + len(fresh)
                identities.append(identity)
                result.checksums.append(xxh3_64_intdigest(block))
                result.blocks.append(block)
                if ranges and ranges[-1][1] == start:
                    ranges[-1] = (ranges[-1][0], following)
                else:
                    ranges.append((start, following))
            cids.append(cid)
        return Placed(first, cids, b"".join(identities))

    def _shared(self, share: Share, result: Ingested) -> Iterator[Resolved]:
        """Yield what gives blocks the chunks of others: the whole map, or its pages that match."""
        if share.count == STRIPE_BLOCKS and not share.first and not share.source_first:
            yield self._shared_map(share.source, result)
            return
        end = share.first + share.count
        low, high = -(-share.first // MAP_BLOCKS) * MAP_BLOCKS, end // MAP_BLOCKS * MAP_BLOCKS
        if low >= high or (share.first - share.source_first) % MAP_BLOCKS:
            yield from self._shared_blocks(share, share.first, end)
            return
        yield from self._shared_blocks(share, share.first, low)
        yield from self._shared_pages(share, low, high, result)
        yield from self._shared_blocks(share, high, end)

    def _shared_map(self, source: ObjectId, result: Ingested) -> SharedMap | Discard:
        head = self._state.head(source)
        number = 0 if head is None else head.map
        if not number:
            if next(self._state.maps.entries(source, 0), None) is None:
                return Discard(0, STRIPE_BLOCKS)
            following = self._state.whole_maps.next_number + len(result.maps)
            number = result.maps.setdefault(source, following)
        return SharedMap(number, source)

    def _shared_pages(
        self, share: Share, first: int, end: int, result: Ingested
    ) -> Iterator[SharedPages | Discard]:
        page, count = (share.source_first + first - share.first) // MAP_BLOCKS, end - first
        numbers = array("Q")
        owner = self._state.owner(share.source)
        known = self._state.maps.numbers(owner, page, count // MAP_BLOCKS)
        if not any(known):
            yield Discard(first, count)
            return
        fresh, following = result.numbers, self._state.maps.next_number
        for index, number in enumerate(known):
            if number == OWN:
                place = (owner, page + index)
                numbers.append(fresh.setdefault(place, following + len(fresh)))
            else:
                numbers.append(number)
        yield SharedPages(first // MAP_BLOCKS, numbers, share.source, page)

    def _shared_blocks(self, share: Share, start: int, end: int) -> Iterator[Placed | Discard]:
        """Yield what shares the blocks [start, end) of the target, page by page of the source."""
        source = share.source_first - share.first
        while start < end:
            stop = min(end, start + MAP_BLOCKS)
            cids = self._state.cids(share.source, source + start, stop - start)
            yield Placed(start, cids, b"") if any(cids) else Discard(start, stop - start)
            start = stop

    def learn(self, result: Ingested) -> None:
        """The new chunks are in the table: later blocks may share them, and reads find them."""
        self.fresh += len(result.fresh)
        self._hints.add_new(result.fresh, result.first_cid)
        self._cache.wrote(result.first_cid, result.blocks)
