"""The checkpoint: an image of the state at a log position, in the table; where replay starts.

`freeze` takes the image in a moment on the trio thread; a worker thread writes it in one
transaction; then the layers below are dropped and dead segments are free again.

Invariants:
  * the image's position is durable before the table commits: it never knows more than the log;
  * a segment named reusable had no live chunk in the image and no log after its position;
  * every value carries a checksum over key and value.

The records, byte by byte: docs/formats/checkpoint.md.
"""

import struct
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from clusterfs.store.contents import Contents
from clusterfs.store.flush import Sealed
from clusterfs.store.format import seal_value
from clusterfs.store.layers import Rubbish, Values
from clusterfs.store.log import Tail
from clusterfs.store.objects import ObjectId
from clusterfs.store.outcomes import PREFIXES
from clusterfs.store.segments import Segments
from clusterfs.store.table import Table

_POSITION_KEY = b"@"
_REFERENCES_KEY = b"L"
_REFERENCES = struct.Struct("<Q")
_POSITION = struct.Struct("<QiIQQQQ")
_SEGMENT_KEY = struct.Struct(">cI")
_SEGMENT = struct.Struct("<IQQ")
_PIECE = 4096
_NUMBER = b"n"
_BYTES = b"b"


class Image(NamedTuple):
    """A frozen state."""

    last: Sealed  # the log the image includes; its checksum is known once it is written
    tail: tuple[int, int, int]  # segment, block, id of the segment's first log
    next_cid: int
    epoch: int
    small: list[tuple[bytes, bytes | None]]
    reusable: list[int]


class Checkpoint:
    """Writes images and loads the last one."""

    def __init__(
        self, table: Table, values: Values, contents: Contents, segments: Segments
    ) -> None:
        self._table = table
        self._values = values
        self._contents = contents
        self._segments = segments
        self._stored_segments: dict[int, bytes] = {}
        self._stored_marks: set[ObjectId] = set()
        self.taken = 0

    # -- writing

    def freeze(self, last: Sealed, tail: Tail, epoch: int) -> Image:
        """Take the image of right now; `last` is the log just sealed."""
        state = self._contents.state
        reusable = self._segments.reusable(state.chunks.live, last.id)
        small = self._contents.outcomes.take_changes()
        small += self._take_facts()
        small += self._take_marks()
        small.append((_REFERENCES_KEY, _REFERENCES.pack(state.chunks.references_total)))
        small += self._take_segments(tail, last.id, set(reusable))
        next_cid = state.chunks.next_cid
        state.chunks.freeze()
        for family in state.families:
            family.freeze()
        place = (tail.segment, tail.block, tail.first_id)
        return Image(last, place, next_cid, epoch, small, reusable)

    def write(self, image: Image) -> None:
        """Write it, durably; on a worker thread. The image's position must be durable."""
        self._table.commit(self._nearly_sorted(image))

    def _nearly_sorted(self, image: Image) -> Iterator[tuple[bytes, bytes | None]]:
        """Sort in pieces: LMDB likes order, but one long sort would hold all threads."""
        records = self._records(image)
        while piece := sorted(islice(records, _PIECE)):
            yield from piece

    def _records(self, image: Image) -> Iterator[tuple[bytes, bytes | None]]:
        segment, block, first_id = image.tail
        position = _POSITION.pack(
            image.last.id + 1,
            segment,
            block,
            first_id,
            image.last.checksum,
            image.next_cid,
            image.epoch,
        )
        yield _POSITION_KEY, seal_value(_POSITION_KEY, position)
        for key, value in image.small:
            yield key, None if value is None else seal_value(key, value)
        yield from self._contents.state.chunks.frozen_changes()
        for family in self._contents.state.families:
            yield from family.frozen_changes()

    def finish(self, image: Image) -> Rubbish:
        """The image is written: read from it, and let dead segments be used again."""
        self._table.refresh()
        rubbish = self._contents.state.chunks.thaw()
        for family in self._contents.state.families:
            rubbish += family.thaw()
        self._segments.checkpointed_id = image.last.id
        self._segments.release(image.reusable)
        self.taken += 1
        return rubbish

    def _take_facts(self) -> Iterator[tuple[bytes, bytes | None]]:
        contents = self._contents
        for name in contents.changed_facts:
            value = contents.facts.get(name)
            if value is None:
                yield b"F" + name.encode(), None
            elif isinstance(value, bytes):
                yield b"F" + name.encode(), _BYTES + value
            else:
                yield b"F" + name.encode(), _NUMBER + value.to_bytes(8, "little")
        contents.changed_facts.clear()

    def _take_marks(self) -> Iterator[tuple[bytes, bytes | None]]:
        marked = self._contents.state.marked
        for object_id in marked - self._stored_marks:
            yield b"X" + object_id, b""
        for object_id in self._stored_marks - marked:
            yield b"X" + object_id, None
        self._stored_marks = set(marked)

    def _take_segments(
        self, tail: Tail, last_id: int, reusable: set[int]
    ) -> Iterator[tuple[bytes, bytes | None]]:
        live = self._contents.state.chunks.live
        present = {
            segment: _SEGMENT.pack(live.get(segment, 0), first, last)
            for segment, (first, last) in self._segments.used.items()
            if segment not in reusable
        }
        if tail.segment >= 0:
            present[tail.segment] = _SEGMENT.pack(live.get(tail.segment, 0), tail.first_id, last_id)
        for segment, value in present.items():
            if self._stored_segments.get(segment) != value:
                yield _SEGMENT_KEY.pack(b"S", segment), value
        for segment in self._stored_segments.keys() - present.keys():
            yield _SEGMENT_KEY.pack(b"S", segment), None
        self._stored_segments = present

    # -- loading

    def load(self) -> tuple[Tail, int]:
        """Load the small records; return where replay starts, and the epoch seen.

        Raises BrickFailed if one rotted.
        """
        contents, segments = self._contents, self._segments
        position = self._values.get(_POSITION_KEY)
        if position is None:
            return Tail(-1, 0, 1, 1, 0), 0
        fields = _POSITION.unpack(position)
        next_id, segment, block, first_id, previous, next_cid, epoch = fields
        chunks = contents.state.chunks
        chunks.next_cid = next_cid
        segments.checkpointed_id = next_id - 1
        if total := self._values.get(_REFERENCES_KEY):
            chunks.references_total = _REFERENCES.unpack(total)[0]
        for key, value in self._all(b"S"):
            number = _SEGMENT_KEY.unpack(key)[1]
            live, first, last = _SEGMENT.unpack(value)
            segments.used[number] = (first, last)
            chunks.live[number] = live
            chunks.live_total += live
            self._stored_segments[number] = value
        for prefix in PREFIXES:
            for key, value in self._all(prefix):
                contents.outcomes.load(key, value)
        for key, value in self._all(b"F"):
            number_or_bytes = value[1:]
            contents.facts[key[1:].decode()] = (
                number_or_bytes
                if value[:1] == _BYTES
                else int.from_bytes(number_or_bytes, "little")
            )
        for key, _ in self._all(b"X"):
            contents.state.marked.add(ObjectId(key[1:]))
        self._stored_marks = set(contents.state.marked)
        return Tail(segment, block, first_id, next_id, previous), epoch

    def _all(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        return self._values.items(prefix, bytes((prefix[0] + 1,)))
