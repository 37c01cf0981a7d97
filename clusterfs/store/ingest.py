"""From payload to chunks: which blocks are zeros, which the brick already has, which are new.

A block's identity is its keyed BLAKE3; the key is the cluster's secret, so nobody outside can build
two blocks with one identity. A block of zeros is a hole. A hint that the chunk table confirms gives
the chunk; any other block becomes a new chunk.

Invariant: the new chunks of one transaction have consecutive cids, in payload order.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence

from blake3 import blake3
from xxhash import xxh3_64_intdigest

from clusterfs.store.format import ZERO_BLOCK
from clusterfs.store.hints import Hints
from clusterfs.store.objects import BLOCK_BYTES, Change, Discard, Lose, ObjectId, Share, Write
from clusterfs.store.records import HOLE, IDENTITY_BYTES, LOST, Placed, Resolved, ResolvedChange

_ZEROS = bytes(64 << 10)
_PIECE_BLOCKS = 256  # of a share: pieces of this size that are all holes take no room in the log

# Returns the cids of `count` blocks of an object from a first one on, 0 for holes.
CidsOf = Callable[[ObjectId, int, int], "array[int]"]


class Ingested:
    """A payload that found its chunks."""

    __slots__ = ("changes", "checksums", "first_cid", "fresh", "ranges")

    def __init__(self, first_cid: int) -> None:
        self.changes: list[ResolvedChange] = []
        self.first_cid = first_cid
        self.fresh: dict[bytes, int] = {}  # identity -> cid of each new chunk, in order
        self.checksums: list[int] = []
        self.ranges: list[tuple[int, int]] = []  # bytes of the payload that become new chunks


def _is_zero(payload: memoryview, at: int, end: int) -> bool:
    """Tell whether all these bytes are zeros; at once if the first one or the last one is not."""
    if payload[at] or payload[end - 1]:
        return False
    return all(
        bytes(payload[first : min(first + len(_ZEROS), end)]) == _ZEROS[: end - first]
        for first in range(at, end, len(_ZEROS))
    )


class Ingest:
    """Resolves transactions."""

    def __init__(self, hints: Hints, key: bytes, cids_of: CidsOf) -> None:
        self._hints = hints
        self._key = key
        self._cids_of = cids_of
        self.zero_identity = self.identity(ZERO_BLOCK)
        self.deduplicated = 0
        self.zeros = 0
        self.fresh = 0
        self.shared = 0

    def identity(self, block: bytes | memoryview) -> bytes:
        """Return a block's identity."""
        return blake3(block, key=self._key).digest(IDENTITY_BYTES)

    def resolve(self, changes: Sequence[Change], payload: memoryview, next_cid: int) -> Ingested:
        """Give every written block its chunk. Changes nothing."""
        result = Ingested(next_cid)
        at = 0
        for change in changes:
            operations: list[Resolved] = []
            for operation in change.operations:
                if type(operation) is Write:
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
                    operations.extend(self._shared(operation))
                    self.shared += operation.count
                else:
                    operations.append(operation)  # type: ignore[arg-type]
            result.changes.append(
                ResolvedChange(
                    change.object_id, change.group, change.expected, change.version, operations
                )
            )
        return result

    def _place(
        self, first: int, payload: memoryview, at: int, end: int, result: Ingested
    ) -> Placed:
        cids = array("Q")
        identities: list[bytes] = []
        key, find = self._key, self._hints.find
        fresh, ranges = result.fresh, result.ranges
        while at < end:
            following = at + BLOCK_BYTES
            block = payload[at:following]
            if not (payload[at] or payload[following - 1]) and bytes(block) == ZERO_BLOCK:
                self.zeros += 1  # told without a hash: sparse images are full of them
                cids.append(HOLE)
                at = following
                continue
            identity = blake3(block, key=key).digest(IDENTITY_BYTES)
            if known := fresh.get(identity) or find(identity):
                cid = known
                self.deduplicated += 1
            else:
                cid = fresh[identity] = result.first_cid + len(fresh)
                identities.append(identity)
                result.checksums.append(xxh3_64_intdigest(block))
                if ranges and ranges[-1][1] == at:
                    ranges[-1] = (ranges[-1][0], following)
                else:
                    ranges.append((at, following))
            cids.append(cid)
            at = following
        return Placed(first, cids, b"".join(identities))

    def _shared(self, share: Share) -> Iterator[Placed | Discard]:
        """Yield what gives blocks the chunks of other blocks."""
        cids = self._cids_of(share.source, share.source_first, share.count)
        start, end = 0, len(cids)
        while start < end:
            stop = min(start + _PIECE_BLOCKS, end)
            hole = not any(cids[start:stop])
            while stop < end and hole != any(cids[stop : stop + _PIECE_BLOCKS]):
                stop = min(stop + _PIECE_BLOCKS, end)
            first = share.first + start
            yield Discard(first, stop - start) if hole else Placed(first, cids[start:stop], b"")
            start = stop

    def learn(self, result: Ingested) -> None:
        """The new chunks are in the table: later blocks may share them."""
        self.fresh += len(result.fresh)
        add = self._hints.add
        for identity, cid in result.fresh.items():
            add(identity, cid)
