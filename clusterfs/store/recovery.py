"""Replay: the log from the checkpoint to its end, or an error if what was durable is gone.

The walk goes by contiguous ids and the chain of checksums. It stops at the first log that is
missing or not valid. Then everything valid beyond is searched for its `durable`: if any header says
that the missing log was durable, this is media damage: nothing is truncated and BrickDamaged is
raised. Otherwise it is the torn tail of a crash, and the log goes on there.

A transaction acts only when its COMMIT fragment is inside the valid run.

Closed here, each with a test of its name in tests/crash (the holes are those of dm-writeboost):
  * a flipped bit in an old log does not drop the newer ones silently;
  * a lost log does not let the former lap's log in its place be applied;
  * the same where its header is what rotted, at the start of a segment: the logs behind it tell;
  * a stale log after a rewritten one is not applied, however valid by itself;
  * ids and lengths are believed only under the checksum.
"""

import errno
from collections.abc import Iterator
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from clusterfs.errors import BrickDamaged, SetupError
from clusterfs.store.contents import Contents, Run
from clusterfs.store.disk import Disk
from clusterfs.store.format import (
    BEGIN,
    COMMIT,
    FORMAT_VERSION,
    Fragment,
    Header,
    fragments_of,
    has_checksum,
    parse_header,
    parse_newer,
    records_of,
    verify_log,
)
from clusterfs.store.location import locate
from clusterfs.store.log import SMALL_TAIL_BLOCKS
from clusterfs.store.objects import BLOCK_BYTES
from clusterfs.store.records import decode
from clusterfs.store.segments import Segments
from clusterfs.store.tail import CLEANER, STREAMS, USER, Tail

# What the kernel says of sectors and pages that are not as written; see also blk_status_t.
OF_THE_MEDIUM = frozenset({errno.EIO, errno.ENODATA, errno.EILSEQ, errno.EBADMSG, errno.EUCLEAN})

RESYNC = (
    "nothing was changed: `clusterfs fsck BRICK` tells more, `clusterfs fsck --set-aside BRICK` "
    "puts it away, and at its next start the node synchronises a new one"
)


class ValidLog(NamedTuple):
    """A log whose checksum is right."""

    header: Header
    content: bytes


class LogReader:
    """Reads logs of one store from its disk; blocks.

    A sector that the medium cannot read is to it what rubbish is: no log. Whether that is a torn
    tail or damage, the logs behind it tell. Other failures, of a device that is away or of a
    process with too many open files, are OSError: nothing may be concluded from them.
    """

    def __init__(self, disk: Disk, store_id: bytes, size_blocks: int) -> None:
        self._disk = disk
        self._store_id = store_id
        self._size_blocks = size_blocks

    def header(self, segment: int, block: int) -> Header | None:
        """Return what claims to be a log's header there; nothing is verified."""
        if block >= self._size_blocks:
            return None
        head = self._read(segment, block, BLOCK_BYTES)
        header = parse_header(head, self._store_id)
        if header is None or (header.segment, header.block) != (segment, block):
            return None
        fits = block + header.length_bytes // BLOCK_BYTES <= self._size_blocks
        return header if fits else None

    def log(self, segment: int, block: int) -> ValidLog | None:
        """Return the log there if its checksum is right."""
        header = self.header(segment, block)
        if header is None:
            return None
        content = self._read(segment, block, header.length_bytes)
        return ValidLog(header, content) if verify_log(content, header) else None

    def newer(self, segment: int, block: int) -> int | None:
        """Return the version of the log there if it is valid and newer than what we know."""
        if block >= self._size_blocks:
            return None
        head = self._read(segment, block, BLOCK_BYTES)
        found = parse_newer(head, self._store_id)
        if found is None:
            return None
        version, length_bytes, checksum = found
        content = self._read(segment, block, length_bytes)
        return version if has_checksum(content, checksum) else None

    def holds_something(self, segment: int) -> bool:
        """Tell whether the segment was ever written to; so was one that cannot be read."""
        head = self._read(segment, 0, BLOCK_BYTES)
        return not head or any(head)

    def _read(self, segment: int, block: int, length_bytes: int) -> bytes:
        """Return what is there; nothing where the medium is bad."""
        try:
            return self._disk.read(segment, block * BLOCK_BYTES, length_bytes)
        except OSError as error:
            if error.errno not in OF_THE_MEDIUM:
                raise
            return b""

    def chain(self, segment: int, first_id: int, last_id: int) -> Iterator[ValidLog]:
        """Yield the segment's logs, from its first block, while they are valid.

        Their ids grow from first_id to last_id; other streams have those in between.
        """
        block, log_id = 0, first_id - 1
        while log_id < last_id:
            log = self.log(segment, block)
            if log is None or not log_id < log.header.id <= last_id:
                return
            yield log
            log_id = log.header.id
            block += len(log.content) // BLOCK_BYTES

    def anywhere(self, segment: int, block: int) -> Iterator[ValidLog]:
        """Yield every valid log in the segment from that block on, aligned or not to its chain."""
        while block < self._size_blocks:
            log = self.log(segment, block)
            if log is None:
                block += 1
            else:
                yield log
                block += len(log.content) // BLOCK_BYTES


class Recovered(NamedTuple):
    """Where the log goes on."""

    tail: Tail
    epoch: int  # the highest seen
    replayed: int  # logs
    touched: set[int]  # segments with logs that may not be durable yet


class Recovery:
    """One replay. Runs on a worker thread before anybody else uses the store."""

    def __init__(
        self, disk: Disk, reader: LogReader, contents: Contents, segments: Segments
    ) -> None:
        self._disk = disk
        self._reader = reader
        self._contents = contents
        self._segments = segments
        # By stream: of the transaction that is open.
        self._pending: list[list[tuple[Fragment, ValidLog, int]]] = [[] for _ in range(STREAMS)]
        self._suspects: list[int] = []  # segments whose first log has no readable header
        self._heads: dict[int, list[tuple[int, int]]] = {}  # id -> (segment, _) of first logs

    def run(self, tail: Tail, epoch: int) -> Recovered:
        """Replay everything after `tail`. Raises BrickDamaged."""
        self._look_at_segments(tail)
        touched = {place.segment for place in tail.places} - {-1}
        replayed, durable = 0, tail.next_id - 1
        while (log := self._next(tail, epoch)) is not None:
            self._enter(tail, log)
            self._apply(log)
            touched.add(log.header.segment)
            epoch = log.header.epoch
            durable = max(durable, log.header.durable)
            replayed += 1
        self._refuse_damage(tail, durable)
        self._settle(tail)
        return Recovered(tail, epoch, replayed, touched)

    def _look_at_segments(self, tail: Tail) -> None:
        """Note the first log of each segment that the checkpoint does not already cover."""
        for segment in self._disk.segments():
            self._refuse_newer(segment, 0)
            header = self._reader.header(segment, 0)
            if header is None:
                if segment not in self._segments.used and self._reader.holds_something(segment):
                    self._suspects.append(segment)
            elif header.id >= tail.next_id:
                self._heads.setdefault(header.id, []).append((segment, 0))

    def _next(self, tail: Tail, epoch: int) -> ValidLog | None:
        places = list(self._heads.get(tail.next_id, ()))
        places += [(place.segment, place.block) for place in tail.places if place.segment >= 0]
        for segment, block in places:
            log = self._reader.log(segment, block)
            if (
                log is not None
                and log.header.id == tail.next_id
                and log.header.previous == tail.previous
                and log.header.epoch >= epoch
            ):
                return log
        return None

    def _enter(self, tail: Tail, log: ValidLog) -> None:
        """Move the tail behind the log."""
        header, segments = log.header, self._segments
        place = tail.places[header.stream]
        if header.segment != place.segment:
            if place.first_id:
                segments.used[place.segment] = (place.first_id, place.last_id)
            place.enter(header.segment)
            segments.born.pop(header.segment, None)
            segments.cold.discard(header.segment)
            if header.stream == CLEANER:
                segments.cold.add(header.segment)
        place.advance(header.id, header.length_bytes // BLOCK_BYTES)
        if header.stream == USER:
            segments.born[header.segment] = self._contents.state.chunks.next_cid
        tail.next_id = header.id + 1
        tail.previous = header.checksum

    def _apply(self, log: ValidLog) -> None:
        block, stream = log.header.block + 1, log.header.stream
        for fragment in fragments_of(records_of(log.content, log.header)):
            if fragment.flags & BEGIN:
                self._pending[stream] = []  # of an opening that crashed before the end
            pending = self._pending[stream]
            pending.append((fragment, log, block))
            block += fragment.blocks
            if fragment.flags & COMMIT:
                if pending[0][0].flags & BEGIN:
                    enact(self._contents, pending)
                self._pending[stream] = []

    def _refuse_damage(self, tail: Tail, durable: int) -> None:
        """Raise BrickDamaged if any valid log says that the one missing at the tail was durable."""
        missing = tail.next_id
        for place in tail.places:
            if place.segment >= 0:
                self._refuse_newer(place.segment, place.block)
        if durable < missing:
            for log in self._beyond(tail):
                durable = max(durable, log.header.durable)
        if durable >= missing:
            raise BrickDamaged(
                f"log {missing} ({_where(tail)}) was durable up to {durable} but cannot be read; "
                f"{RESYNC}"
            )

    def _refuse_newer(self, segment: int, block: int) -> None:
        version = self._reader.newer(segment, block)
        if version is not None:
            raise SetupError(
                f"the log in segment {segment} has format {version}, this clusterfs knows "
                f"{FORMAT_VERSION}: upgrade it"
            )

    def _beyond(self, tail: Tail) -> Iterator[ValidLog]:
        for place in tail.places:
            if place.segment >= 0:
                yield from self._reader.anywhere(place.segment, place.block)
        for segment in self._suspects:
            yield from self._reader.anywhere(segment, 0)
        for log_id, places in self._heads.items():
            if log_id >= tail.next_id:
                for segment, block in places:
                    yield from self._reader.anywhere(segment, block)

    def _settle(self, tail: Tail) -> None:
        """Tell which segments are used, current and ready."""
        segments = self._segments
        for place in tail.places:
            if place.segment >= 0:
                segments.used.pop(place.segment, None)
                if segments.size_blocks - place.block < SMALL_TAIL_BLOCKS:
                    segments.used[place.segment] = (place.first_id, place.last_id)
                    place.segment = -1
                else:
                    segments.open.add(place.segment)
        for segment in self._disk.segments():
            if segment not in segments.used and segment not in segments.open:
                segments.ready.append(segment)


def enact(contents: Contents, pieces: list[tuple[Fragment, ValidLog, int]]) -> None:
    """Do what a complete transaction says. A piece: fragment, its log, its first payload block."""
    body = b"".join(fragment.body for fragment, _, _ in pieces)
    runs: list[Run] = []
    checksums: list[int] = []
    first_cid = 0
    for fragment, log, block in pieces:
        if not fragment.blocks:
            continue
        first_cid = first_cid or fragment.first_cid
        runs.append((locate(log.header.segment, block), fragment.blocks))
        if not fragment.first_cid:
            continue  # a relocation: the chunks stay what they were
        view = memoryview(log.content)
        start = (block - log.header.block) * BLOCK_BYTES
        checksums.extend(
            xxh3_64_intdigest(view[at : at + BLOCK_BYTES])
            for at in range(start, start + fragment.blocks * BLOCK_BYTES, BLOCK_BYTES)
        )
    contents.enact(decode(body), runs, checksums, first_cid)


def _where(tail: Tail) -> str:
    places = [f"segment {p.segment}, block {p.block}" for p in tail.places if p.segment >= 0]
    return " or ".join(places) or "in any segment"
