"""Which segments exist, which the log may take next, which are still needed, which to clean.

A segment is free again once nothing can ever be read from it: the synced checkpoint is past its
last log *and* had no live chunk in it. The second half matters: a chunk that died after the
checkpoint is still what a crash would go back to.

Which one to clean: the one with the highest (1 - u) * age / (1 + u), where u is what of it lives
and age how much was written since its data was (cost-benefit, Rosenblum and Ousterhout, The Design
and Implementation of a Log-Structured File System, 1992). Ages count up to 3/4 of the live data:
beyond that an old full segment would be moved for nothing under a load without hot spots.

Invariants:
  * `ready`, `used` and `open` are disjoint, and together all segments there are;
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
        self.open: set[int] = set()  # those that streams fill
        self.used: dict[int, tuple[int, int]] = {}  # segment -> first and last log id in it
        self.born: dict[int, int] = {}  # open or used -> the cid that was next when its data came
        self.cold: set[int] = set()  # open or used, filled by the cleaner
        self.pins: dict[int, int] = {}
        self._dead: set[int] = set()  # reusable but for pins
        self.checkpointed_id = 0
        self.damaged: set[int] = set()  # the cleaner could not read their logs

    @property
    def count(self) -> int:
        """Return how many segments exist."""
        return len(self.ready) + len(self.used) + len(self.open) + len(self._dead)

    @property
    def next_number(self) -> int:
        """Return the number of the next segment to create."""
        known = (*self.ready, *self.used, *self._dead, *self.open)
        return max(known, default=-1) + 1

    @property
    def free(self) -> int:
        """Return how many segments the log could still take, created or not."""
        return max(0, self.limit - self.count) + len(self.ready) + len(self._dead)

    def add(self, segment: int) -> None:
        """A segment was created."""
        self.ready.append(segment)
        self.gained += 1

    def take(self, *, cold: bool = False) -> int:
        """Return a segment for a stream to fill; it leaves it with `close`."""
        segment = self.ready.popleft()
        self.open.add(segment)
        if cold:
            self.cold.add(segment)
        return segment

    def close(self, segment: int, first_id: int, last_id: int) -> None:
        """Its stream leaves the segment."""
        self.open.remove(segment)
        self.used[segment] = (first_id, last_id)

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
            self.born.pop(segment, None)
            self.cold.discard(segment)
            self.damaged.discard(segment)
            if segment in self.pins:
                self._dead.add(segment)
            else:
                self.ready.append(segment)

    def victim(
        self,
        live: Mapping[int, int],
        now: int,
        live_blocks: int,
        packs_to: float = 1.0,
        *,
        is_short: bool = True,
    ) -> int | None:
        """Return the segment that pays best to clean, if cleaning it gains anything.

        live: units by segment; now: the next cid; live_blocks: all there are; packs_to: what is
        left, probably, of data that the cleaner has not packed yet; is_short: if not, only such
        data is looked for.
        """
        best, best_score = None, 0.0
        whole, oldest = self.dense_blocks * BLOCK_UNITS, max(1, live_blocks * 3 // 4)
        for segment, (_, last) in self.used.items():
            count = live.get(segment, 0)
            if last > self.checkpointed_id or not count or segment in self.damaged:
                continue
            if not is_short and segment in self.cold:
                continue
            full = min(1.0, count / whole)
            moved = full if segment in self.cold else full * packs_to
            if moved >= 15 / 16:
                continue
            age = min(now - self.born.get(segment, 0) + 1, oldest)
            score = (1 - moved) * age / (1 + full)
            if score > best_score:
                best, best_score = segment, score
        return best

    def validate(self, live: Mapping[int, int]) -> None:
        """Execute the invariants."""
        ready, used = set(self.ready), set(self.used)
        assert len(ready) == len(self.ready), "a segment is ready twice"
        assert not ready & used, "a segment is ready and used"
        assert not self._dead & (ready | used), "a segment waits for readers and is handed out"
        assert not self.open & (ready | used | self._dead), "an open segment is elsewhere too"
        assert self.cold | self.born.keys() <= self.open | used, "an age of a free segment"
        for segment in (*ready, *self._dead):
            assert not live.get(segment), f"chunks live in the free segment {segment}"
