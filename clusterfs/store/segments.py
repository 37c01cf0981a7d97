"""Which segments exist, which the log may take next, which are still needed.

A segment is free again once nothing can ever be read from it: the synced checkpoint is past its
last log *and* had no live chunk in it. The second half matters: a chunk that died after the
checkpoint is still what a crash would go back to.

Invariants:
  * `ready`, `used` and the current segment are disjoint, and together all segments there are;
  * a segment with pinned reads is not handed out;
  * the last `reserve` segments are for deletes and for the cleaner.
"""

from collections import deque
from collections.abc import Mapping

from clusterfs.store.location import BLOCK_UNITS

RESERVE_CLEANER = 1  # relocation may leave this few segments' worth of room
RESERVE_METADATA = 2
RESERVE_DATA = 3


class Segments:
    """The segments of one brick."""

    def __init__(self, size_blocks: int, limit: int, log_blocks: int) -> None:
        self.size_blocks = size_blocks
        # What of a segment can be payload, with headers and records in logs of this size.
        self.dense_blocks = size_blocks * (log_blocks - 2) // log_blocks
        self.gained = 0  # how many segments became ready so far
        self.limit = limit  # how many there may be
        self.ready: deque[int] = deque()
        self.used: dict[int, tuple[int, int]] = {}  # segment -> first and last log id in it
        self.current = -1
        self.pins: dict[int, int] = {}
        self._dead: set[int] = set()  # reusable but for pins
        self.checkpointed_id = 0
        self.damaged: set[int] = set()  # the cleaner could not read their logs

    @property
    def count(self) -> int:
        """Return how many segments exist."""
        return len(self.ready) + len(self.used) + (self.current >= 0) + len(self._dead)

    @property
    def next_number(self) -> int:
        """Return the number of the next segment to create."""
        known = (*self.ready, *self.used, *self._dead, self.current)
        return max(known) + 1

    @property
    def free(self) -> int:
        """Return how many segments the log could still take, created or not."""
        return max(0, self.limit - self.count) + len(self.ready) + len(self._dead)

    def add(self, segment: int) -> None:
        """A segment was created."""
        self.ready.append(segment)
        self.gained += 1

    def take(self) -> int:
        """Return a segment for the log's head; the former head becomes used (see `close`)."""
        self.current = self.ready.popleft()
        return self.current

    def close(self, first_id: int, last_id: int) -> None:
        """The log leaves the current segment."""
        assert self.current >= 0
        self.used[self.current] = (first_id, last_id)
        self.current = -1

    def pin(self, segment: int) -> None:
        """A read of the segment begins."""
        self.pins[segment] = self.pins.get(segment, 0) + 1

    def unpin(self, segment: int) -> None:
        """A read of the segment ended."""
        left = self.pins[segment] - 1
        if left:
            self.pins[segment] = left
        else:
            del self.pins[segment]
            if segment in self._dead:
                self._dead.remove(segment)
                self.ready.append(segment)

    def reusable(self, live: Mapping[int, int], last_id: int) -> list[int]:
        """Return what becomes free once a checkpoint of right now, up to `last_id`, is synced."""
        return [
            segment
            for segment, (_, last) in self.used.items()
            if last <= last_id and not live.get(segment)
        ]

    def release(self, segments: list[int]) -> None:
        """The checkpoint for which `reusable` named them is synced."""
        self.gained += len(segments)
        for segment in segments:
            del self.used[segment]
            self.damaged.discard(segment)
            if segment in self.pins:
                self._dead.add(segment)
            else:
                self.ready.append(segment)

    def victim(self, live: Mapping[int, int]) -> int | None:
        """Return the segment that is cheapest to clean, if cleaning it gains anything."""
        best, best_live = None, self.dense_blocks * BLOCK_UNITS * 15 // 16
        for segment, (_, last) in self.used.items():
            count = live.get(segment, 0)
            if last <= self.checkpointed_id and 0 < count < best_live:
                if segment in self.damaged:
                    continue
                best, best_live = segment, count
        return best

    def validate(self, live: Mapping[int, int]) -> None:
        """Execute the invariants."""
        ready, used = set(self.ready), set(self.used)
        assert len(ready) == len(self.ready), "a segment is ready twice"
        assert not ready & used, "a segment is ready and used"
        assert not self._dead & (ready | used), "a segment waits for readers and is handed out"
        assert self.current not in ready | used | self._dead, "the current segment is elsewhere too"
        for segment in (*ready, *self._dead):
            assert not live.get(segment), f"chunks live in the free segment {segment}"
