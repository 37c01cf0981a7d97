"""Who may still append how much: the ring, the segments, and the tiers of the reserve.

User data stops first, other transactions later, the cleaner last; so deleting and cleaning work
when user data gets OutOfSpace. Of what user data may take, one tenth stays empty: that is the
garbage the cleaner needs to find segments worth cleaning.

Invariant: OutOfSpace and WouldBlock are raised before anything is accepted.
"""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from clusterfs.errors import OutOfSpace, WouldBlock
from clusterfs.store.location import BLOCK_UNITS, UNIT_BYTES
from clusterfs.store.log import Log
from clusterfs.store.maps import MAP_BLOCKS
from clusterfs.store.objects import (
    BLOCK_BYTES,
    STRIPE_BLOCKS,
    Change,
    Delete,
    Discard,
    Lose,
    Put,
    Remove,
    Share,
    Write,
)
from clusterfs.store.records import LOST
from clusterfs.store.segments import RESERVE_DATA, RESERVE_METADATA, Segments
from clusterfs.store.state import State
from clusterfs.store.tail import STREAMS

_CHANGE_BYTES = 96
_CID_BYTES = 8
_OPERATION_BYTES = 32
_BLOCK_NEED_BYTES = BLOCK_BYTES + 24
_ONE_WRITE_BYTES = 2 * _CHANGE_BYTES + _OPERATION_BYTES


class Space(NamedTuple):
    """How full the brick is, in bytes."""

    total: int  # what user data may take
    free: int
    live: int  # what its chunks take
    physical: int  # what the segments take of the medium


class Need(NamedTuple):
    """What a transaction takes at worst."""

    data_blocks: int
    nbytes: int


def need_of(changes: tuple[Change, ...]) -> Need:
    """Return what these changes take at worst."""
    if len(changes) == 1 and len(changes[0].operations) == 1:
        only = changes[0].operations[0]
        if type(only) is Write:  # most of them
            return Need(only.count, _ONE_WRITE_BYTES + only.count * _BLOCK_NEED_BYTES)
    data_blocks = 0
    nbytes = _CHANGE_BYTES
    for change in changes:
        nbytes += _CHANGE_BYTES + _OPERATION_BYTES * len(change.operations)
        for operation in change.operations:
            kind = type(operation)
            if kind is Put:
                nbytes += len(operation.key) + len(operation.value)  # type: ignore[union-attr]
            elif kind is Write:
                data_blocks += operation.count  # type: ignore[union-attr]
            elif kind is Remove:
                nbytes += len(operation.key)  # type: ignore[union-attr]
            elif kind is Lose:
                nbytes += operation.count * _CID_BYTES  # type: ignore[union-attr]
            elif kind is Share:
                nbytes += _share_bytes(operation)  # type: ignore[arg-type]
    return Need(data_blocks, nbytes + data_blocks * _BLOCK_NEED_BYTES)


def _share_bytes(share: Share) -> int:
    """Return what it takes in the log at most: the blocks at its edges, and whole map pages."""
    if share.count == STRIPE_BLOCKS and not share.first and not share.source_first:
        return 0
    if (share.first - share.source_first) % MAP_BLOCKS:
        pieces, blocks = share.count // MAP_BLOCKS + 1, share.count
    else:
        pieces, blocks = 3, min(share.count, 2 * MAP_BLOCKS) + share.count // MAP_BLOCKS
    return pieces * _OPERATION_BYTES + blocks * _CID_BYTES


class Room:
    """The brick's room."""

    def __init__(self, segments: Segments, state: State, log: Log) -> None:
        self._segments = segments
        self._state = state
        self._chunks = state.chunks
        self._log = log
        self._limit, self._usable_units = -1, 0  # how many units are usable with that limit
        self._easy_bytes = segments.size_blocks * BLOCK_BYTES // 2

    def usable_blocks(self) -> int:
        """Return how many live blocks user data may have."""
        segments = self._segments
        whole = segments.limit - RESERVE_DATA - STREAMS
        return max(0, whole) * segments.dense_blocks * 9 // 10

    @property
    def live_blocks(self) -> int:
        """Return how many blocks the live chunks take, packed ones less than one each."""
        return -(-self._chunks.live_total // BLOCK_UNITS)

    def space(self) -> Space:
        """Return how full the brick is."""
        usable, live = self.usable_blocks(), self.live_blocks
        physical = self._segments.count * self._segments.size_blocks
        return Space(
            usable * BLOCK_BYTES,
            max(0, usable - live) * BLOCK_BYTES,
            live * BLOCK_BYTES,
            physical * BLOCK_BYTES,
        )

    def usage(self) -> dict[str, int]:
        """Return where the room went, in bytes.

        logical - shared - packed = live, and live + free = total, which statfs tells. total +
        reserve = capacity, what the brick may take of its filesystem; dead bytes lie in free and
        reserve until the cleaner gives them back.
        """
        space, segments, chunks = self.space(), self._segments, self._chunks
        segment_bytes = segments.size_blocks * BLOCK_BYTES
        written = len(segments.used) * segment_bytes + self._log.open_bytes()
        unique = chunks.count * BLOCK_BYTES
        capacity = segments.limit * segment_bytes
        return {
            "logical_bytes": self._state.logical_blocks * BLOCK_BYTES,
            "shared_bytes": self._state.logical_blocks * BLOCK_BYTES - unique,
            "packed_bytes": unique - chunks.live_total * UNIT_BYTES,
            "live_bytes": chunks.live_total * UNIT_BYTES,
            "free_bytes": space.free,
            "total_bytes": space.total,
            "reserve_bytes": capacity - space.total,
            "capacity_bytes": capacity,
            "dead_bytes": max(0, written - chunks.live_total * UNIT_BYTES),
            "allocated_bytes": space.physical,
        }

    def check_space(self, data_blocks: int, changes: Iterable[Change] = ()) -> None:
        """Raise OutOfSpace if the live data would be too much after these changes.

        What they overwrite, discard or delete counts: a full brick can be overwritten.
        """
        if self._segments.limit != self._limit:
            self._limit = self._segments.limit
            self._usable_units = self.usable_blocks() * BLOCK_UNITS
        if self._chunks.live_total + data_blocks * BLOCK_UNITS <= self._usable_units:
            return
        net_blocks = data_blocks - self._freed_units(changes) // BLOCK_UNITS
        if net_blocks > 0 and self.live_blocks + net_blocks > self.usable_blocks():
            raise OutOfSpace(f"the brick has {self.space().free} bytes free")

    def _freed_units(self, changes: Iterable[Change]) -> int:
        """Return how much dies with these changes, at least: what clones share is left out."""
        gone: Counter[int] = Counter()
        for change in changes:
            for operation in change.operations:
                match operation:
                    case (
                        Write(first=first, count=count)
                        | Discard(first=first, count=count)
                        | Share(first=first, count=count)
                    ):
                        found = self._state.sole(change.object_id, first, first + count)
                    case Delete():
                        found = self._state.sole(change.object_id, 0, 1 << 32)
                    case _:
                        continue
                gone.update(cid for _, cid in found)
        del gone[LOST]
        return sum(self._chunks.freed(cid, count) for cid, count in gone.items())

    def check_log(self, need: Need) -> None:
        """Raise WouldBlock if the log cannot take it right now."""
        if not self.has_segments(need):
            raise WouldBlock("the log waits for the cleaner or for a new segment")
        if not self._log.has_ring_room(need.nbytes):
            raise WouldBlock("the log's RAM buffers are full")

    def has_segments(self, need: Need) -> bool:
        """Tell whether the segments that are ready have room, in the tier of this need."""
        segments = self._segments
        if len(segments.ready) > RESERVE_DATA and need.nbytes <= self._easy_bytes:
            return True
        blocks = self._log.blocks_of(need.nbytes)
        tier = RESERVE_DATA if need.data_blocks else RESERVE_METADATA
        left = self._log.segment_room_blocks() - blocks
        if left < 0:
            return False
        wanted = tier * segments.size_blocks
        return left >= wanted or (
            left + (segments.free - len(segments.ready)) * segments.size_blocks >= wanted
        )
