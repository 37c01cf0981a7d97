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
from clusterfs.store.objects import ObjectId
from clusterfs.store.outcomes import PREFIXES
from clusterfs.store.segments import Segments
from clusterfs.store.state import State
from clusterfs.store.table import Table
from clusterfs.store.tail import STREAMS, Place, Tail

_POSITION_KEY = b"@"
_REFERENCES_KEY = b"L"
_REFERENCES = struct.Struct("<QQ")
_SHARED = struct.Struct("<QQ")  # what a format 2 lacks
_WHOLE = struct.Struct("<Q")  # what a format 3 lacks
_POSITION = struct.Struct("<QQQQ")
_PLACE = struct.Struct("<iIQQ")
_SEGMENT_KEY = struct.Struct(">cI")
_SEGMENT = struct.Struct("<IQQQB")
_PIECE = 4096
_NUMBER = b"n"
_BYTES = b"b"


class Image(NamedTuple):
    """A frozen state."""

    last: Sealed  # the log the image includes; its checksum is known once it is written
    places: list[tuple[int, int, int, int]]  # of each stream, as _PLACE has it
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
        totals = _REFERENCES.pack(state.chunks.references_total, state.chunks.count)
        totals += _SHARED.pack(state.maps.next_number, state.maps.repeated)
        totals += _WHOLE.pack(state.whole_maps.next_number)
        small.append((_REFERENCES_KEY, totals))
        small += self._take_segments(tail, set(reusable))
        next_cid = state.chunks.next_cid
        state.chunks.freeze()
        for family in state.families:
            family.freeze()
        places = [(p.segment, p.block, p.first_id, p.last_id) for p in tail.places]
        return Image(last, places, next_cid, epoch, small, reusable)

    def write(self, image: Image) -> None:
        """Write it, durably; on a worker thread. The image's position must be durable."""
        self._table.commit(self._nearly_sorted(image))

    def _nearly_sorted(self, image: Image) -> Iterator[tuple[bytes, bytes | None]]:
        """Sort in pieces: LMDB likes order, but one long sort would hold all threads."""
        records = self._records(image)
        while piece := sorted(islice(records, _PIECE)):
            yield from piece

    def _records(self, image: Image) -> Iterator[tuple[bytes, bytes | None]]:
        position = _POSITION.pack(
            image.last.id + 1, image.last.checksum, image.next_cid, image.epoch
        ) + b"".join(_PLACE.pack(*place) for place in image.places)
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
        self, tail: Tail, reusable: set[int]
    ) -> Iterator[tuple[bytes, bytes | None]]:
        segments, live = self._segments, self._contents.state.chunks.live
        spans = {
            segment: span for segment, span in segments.used.items() if segment not in reusable
        }
        for place in tail.places:
            if place.segment >= 0 and place.first_id:
                spans[place.segment] = (place.first_id, place.last_id)
        present = {
            segment: _SEGMENT.pack(
                live.get(segment, 0),
                *span,
                segments.born.get(segment, 0),
                segment in segments.cold,
            )
            for segment, span in spans.items()
        }
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
            return Tail(1, 0), 0
        tail, next_cid, epoch = _parse_position(position)
        chunks = contents.state.chunks
        chunks.next_cid = next_cid
        segments.checkpointed_id = tail.next_id - 1
        if total := self._values.get(_REFERENCES_KEY):
            _load_totals(total, contents.state)
        for key, value in self._all(b"S"):
            number = _SEGMENT_KEY.unpack(key)[1]
            live, first, last, born, is_cold = _SEGMENT.unpack(value)
            segments.used[number] = (first, last)
            segments.born[number] = born
            if is_cold:
                segments.cold.add(number)
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
        return tail, epoch

    def _all(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        return self._values.items(prefix, bytes((prefix[0] + 1,)))


def _load_totals(total: bytes, state: State) -> None:
    chunks, maps = state.chunks, state.maps
    chunks.references_total, chunks.count = _REFERENCES.unpack_from(total)
    at = _REFERENCES.size
    if len(total) > at:
        maps.next_number, maps.repeated = _SHARED.unpack_from(total, at)
        at += _SHARED.size
    if len(total) > at:
        (state.whole_maps.next_number,) = _WHOLE.unpack_from(total, at)


def _parse_position(value: bytes) -> tuple[Tail, int, int]:
    """Return where the log goes on, the next cid, and the epoch."""
    next_id, previous, next_cid, epoch = _POSITION.unpack_from(value)
    ends = range(_POSITION.size, _POSITION.size + STREAMS * _PLACE.size, _PLACE.size)
    places = [Place(*_PLACE.unpack_from(value, at)) for at in ends]
    return Tail(next_id, previous, places), next_cid, epoch
