"""Copies the wanted ranges of a payload, in order, in pieces of any size. PURE."""

from collections.abc import Sequence

from clusterfs.store.objects import BLOCK_BYTES


class Copy:
    """What of a payload is still to be copied; `left` counts blocks."""

    __slots__ = ("_at", "_index", "_payload", "_ranges", "left")

    def __init__(self, payload: memoryview, ranges: Sequence[tuple[int, int]]) -> None:
        self._payload = payload
        self._ranges = ranges
        self._index = 0
        self._at = ranges[0][0] if ranges else 0
        self.left = sum(end - first for first, end in ranges) // BLOCK_BYTES

    def into(self, memory: memoryview, at: int, nbytes: int) -> None:
        """Copy the next nbytes to memory[at:]."""
        self.left -= nbytes // BLOCK_BYTES
        while nbytes:
            end = self._ranges[self._index][1]
            size = min(nbytes, end - self._at)
            memory[at : at + size] = self._payload[self._at : self._at + size]
            at += size
            nbytes -= size
            self._at += size
            if self._at == end and self._index + 1 < len(self._ranges):
                self._index += 1
                self._at = self._ranges[self._index][0]
