"""What of the brick does not read as it should: damaged chunks, lost blocks. PURE.

Whoever finds damage notes it here: a read, the scrub. A damaged chunk is never shared; healing.py
puts good data in its place, remembering.py has the next process know of it.
"""

from collections.abc import Callable, Iterable

from clusterfs.store.objects import ObjectId

_KEPT = 1 << 12  # lost blocks that are remembered by place


class Damage:
    """What does not read as it should."""

    def __init__(self) -> None:
        self.cids: set[int] = set()
        self.lost: dict[tuple[ObjectId, int], None] = {}  # blocks whose chunk is not there at all
        self.found = 0
        self.healed = 0
        self.on_change: Callable[[], None] = lambda: None  # chunks were found, or none is left

    def __len__(self) -> int:
        return len(self.cids) + len(self.lost)

    def note(self, cids: Iterable[int]) -> None:
        """These chunks are damaged."""
        new = set(cids) - self.cids
        self.found += len(new)
        self.cids.update(new)  # in place: the dedup window looks into it
        if new:
            self.on_change()

    def note_lost(self, object_id: ObjectId, block: int) -> None:
        """The chunk of this block does not exist."""
        if (object_id, block) not in self.lost and len(self.lost) < _KEPT:
            self.lost[object_id, block] = None
            self.found += 1

    def forget(self, cid: int) -> None:
        """The chunk reads well again, or is dead."""
        if cid in self.cids:
            self.cids.remove(cid)
            if not self.cids:
                self.on_change()
