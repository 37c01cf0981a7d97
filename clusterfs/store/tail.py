"""Where the log goes on: one chain of ids, in as many streams as there are kinds of data. PURE.

A **stream** fills segments of its own, so that what the cleaner moved (and what has therefore been
left unchanged for long) does not lie between new data. All streams share one sequence of log ids
and one chain of checksums: replay sees one log.
"""

USER = 0
CLEANER = 1
STREAMS = 2


class Place:
    """Where one stream goes on."""

    __slots__ = ("block", "first_id", "last_id", "segment")

    def __init__(
        self, segment: int = -1, block: int = 0, first_id: int = 0, last_id: int = 0
    ) -> None:
        self.segment = segment  # -1: a new one
        self.block = block
        self.first_id = first_id  # of the logs in the segment; 0: none yet
        self.last_id = last_id

    def enter(self, segment: int) -> None:
        """Go on at a segment's start."""
        self.segment, self.block, self.first_id, self.last_id = segment, 0, 0, 0

    def advance(self, log_id: int, blocks: int) -> None:
        """A log of so many blocks lies here now."""
        self.first_id = self.first_id or log_id
        self.last_id = log_id
        self.block += blocks


class Tail:
    """Where the log goes on."""

    __slots__ = ("next_id", "places", "previous")

    def __init__(self, next_id: int, previous: int, places: list[Place] | None = None) -> None:
        self.next_id = next_id
        self.previous = previous  # checksum of the log next_id - 1
        self.places = places or [Place() for _ in range(STREAMS)]
