"""Damage that is known stays known: a fact of the store, read back when it is opened again.

Without it a restart would forget which chunks are damaged, and whoever then wrote the same data
again, from a backup perhaps, would be given a reference to the damaged chunk instead of a new one.

What was remembered is read again, soon after the start: a medium may have been away, or somebody
copied it to a good one.

Invariants:
  * a chunk that is remembered is never shared before it was read and found right;
  * at most 4096 chunks are remembered: a medium with more of them is dying.
"""

from array import array
from collections.abc import Callable
from contextlib import suppress

import trio

from clusterfs.errors import FilesystemError
from clusterfs.store.contents import Contents
from clusterfs.store.damage import Damage
from clusterfs.store.disk import Disk
from clusterfs.store.location import segment_of
from clusterfs.store.reading import wrong_chunks
from clusterfs.store.segments import Segments

_FACT = "damage"
_MOST = 4096


class Memory:
    """What one store remembers of its damaged chunks."""

    def __init__(
        self,
        disk: Disk,
        contents: Contents,
        segments: Segments,
        damage: Damage,
        keep: Callable[[str, bytes], object],
    ) -> None:
        self._disk = disk
        self._chunks = contents.state.chunks
        self._segments = segments
        self._damage = damage
        self._keep = keep
        stored = contents.facts.get(_FACT)
        self._remembered = array("Q", stored if isinstance(stored, bytes) else b"")
        damage.note(self._remembered)
        damage.found -= len(self._remembered)  # by another process
        damage.on_change = self._write

    def _write(self) -> None:
        with suppress(FilesystemError):  # the log is full or failed: the next change writes it
            self._keep(_FACT, array("Q", sorted(self._damage.cids)[:_MOST]).tobytes())

    async def look_again(self) -> None:
        """Read what was remembered; forget what is right, or dead, by now. Raises BrickFailed."""
        found = {cid: self._chunks.find(cid) for cid in self._remembered}
        wanted = [(cid, *known) for cid, known in found.items() if known is not None]
        pinned = [segment_of(location) for _, location, _ in wanted]
        for segment in pinned:
            self._segments.pin(segment)
        try:
            wrong = set(await trio.to_thread.run_sync(wrong_chunks, self._disk.read_direct, wanted))
        finally:
            for segment in pinned:
                self._segments.unpin(segment)
        for cid in found.keys() - wrong:
            self._damage.forget(cid)
