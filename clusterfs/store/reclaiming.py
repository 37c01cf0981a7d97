"""When to clean, what, and how fast: as late as possible, and never faster than the load needs.

Cleaning late is cheap, for more of a segment has died by then. So it begins when few segments are
free. Each piece of it then waits until the foreground has written its share of what the piece
moved, or is idle; the fewer segments are free the smaller the share, and when somebody waits for
room there is no waiting. If packing is on, and the brick nearly full, full segments are packed too.
"""

import trio

from clusterfs.store.chunks import ChunkTable
from clusterfs.store.cleaning import Cleaner
from clusterfs.store.location import BLOCK_UNITS
from clusterfs.store.log import Log
from clusterfs.store.objects import BLOCK_BYTES
from clusterfs.store.segments import RESERVE_DATA, Segments
from clusterfs.store.tail import STREAMS

_FEW_FRACTION = 64  # few: one in so many segments, and what the reserve needs
_STEP_S = 0.005
_STEPS = 10
_PACK_ABOVE = 0.75  # of all room


class Reclaiming:
    """The policy of one brick's cleaner."""

    def __init__(self, segments: Segments, chunks: ChunkTable, log: Log, cleaner: Cleaner) -> None:
        self._segments = segments
        self._chunks = chunks
        self._log = log
        self._cleaner = cleaner
        self.wanted_blocks = 0  # for which somebody waits

    @property
    def few(self) -> int:
        """Return how many free segments are so few that cleaning begins."""
        segments = self._segments
        wanted = -(-self.wanted_blocks // segments.size_blocks)
        return RESERVE_DATA + STREAMS + wanted + segments.limit // _FEW_FRACTION

    def is_short(self) -> bool:
        """Tell whether few segments are free."""
        return self._segments.free <= self.few

    def is_enough(self, dead: int) -> bool:
        """Tell whether it is enough to clean for now, with so many segments that are dead."""
        return self._segments.free + dead > self.few + self._segments.limit // (2 * _FEW_FRACTION)

    def is_urgent(self) -> bool:
        """Tell whether the foreground waits, or soon will."""
        return self.wanted_blocks > 0 or self._segments.free <= RESERVE_DATA + 1

    def wants_to_pack(self) -> bool:
        """Tell whether the brick is so full that packing cold data is worth the work."""
        segments = self._segments
        whole = segments.limit * segments.dense_blocks * BLOCK_UNITS
        packs = self._cleaner.codec != "off" and self._chunks.live_total > whole * _PACK_ABOVE
        return packs and self.victim() is not None

    def dead(self) -> int:
        """Return how many segments a checkpoint would free."""
        return len(self._segments.reusable(self._chunks.live, self._log.last_id))

    def victim(self) -> int | None:
        """Return what to clean next, if there is anything."""
        chunks = self._chunks
        return self._segments.victim(
            chunks.live,
            chunks.next_cid,
            chunks.live_total // BLOCK_UNITS,
            self._cleaner.packs_to,
            is_short=self.is_short(),
        )

    def has_room(self, segment: int) -> bool:
        """Tell whether there is room to move what lives in the segment."""
        live = -(-self._chunks.live.get(segment, 0) // BLOCK_UNITS)
        return self._log.cleaning_room_blocks() >= live + live // 16 + 16

    async def clean(self, segment: int) -> None:
        """Move what lives in the segment, at the right speed. Raises BrickFailed."""
        await self._cleaner.clean(segment, self._pace)

    async def _pace(self, blocks: int) -> None:
        begun = self._log.user_bytes_written
        for _ in range(_STEPS):
            if self.is_urgent():
                return
            critical = RESERVE_DATA + 1
            share = min(1.0, (self._segments.free - critical) / max(1, self.few - critical))
            if self._log.user_bytes_written - begun >= share * blocks * BLOCK_BYTES:
                return
            before = self._log.position, self._log.user_bytes_written
            await trio.sleep(_STEP_S)
            if before == (self._log.position, self._log.user_bytes_written):
                return  # the foreground is idle
