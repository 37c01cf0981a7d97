"""fsck of one brick: every invariant, offline; and the repair of what the brick itself can tell.

The brick is opened as for serving, but nothing is written: the whole checkpoint is read and
verified, the log is replayed in memory, and over that state is checked

    log         the chain of each segment in use, log after log
    shared      what refers to the maps and map pages that clones share (checking_maps.py)
    references  what maps and prepared transactions refer to, against the chunk table
    indexes     groups, marks, live counts, records of objects that do not exist
    data        every live chunk against its checksum

What can be derived is repaired on request, by one new checkpoint: reference counts, live counts,
indexes, leftovers. Damaged data has its truth elsewhere: the running node repairs it from a replica
as soon as it is read or scrubbed.

Memory: 4 bytes a chunk, but of at most WINDOW_CHUNKS at a time (the maps are read once for each
window); what checking_maps.py takes; a bit for 64 bytes of segment, of at most 1024
segments at a time; 8 bytes for 64 chunks.

Invariant: without `repair` nothing is written; with it, only a checkpoint of the corrected state.
"""

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator

from clusterfs.errors import BrickDamaged, BrickFailed, SetupError
from clusterfs.store.checking_maps import MapChecks
from clusterfs.store.chunks import PAGE_CIDS, cids_of_page
from clusterfs.store.disk import Disk
from clusterfs.store.flush import Sealed
from clusterfs.store.location import BLOCK_UNITS, UNIT_BYTES, place_of, segment_of, units_of
from clusterfs.store.objects import MARK, ObjectId
from clusterfs.store.opening import Opening, Options
from clusterfs.store.reading import wrong_chunks
from clusterfs.store.records import LOST
from clusterfs.store.superblock import open_superblock
from clusterfs.store.whole_maps import number_of

WINDOW_CHUNKS = 32 << 20
_WINDOW_SEGMENTS = 1024
_WHOLE = b"\xff" * (BLOCK_UNITS // 8)
_TEXTS = 1000
_NO_OBJECT = "object %s, which does not exist"
_PAGE = 4096
_DATA_PAGES = 16

# What is done, how much of it, of how much.
Progress = Callable[[str, int, int], None]


class Report:
    """What a check found."""

    def __init__(self) -> None:
        self.problems: list[str] = []  # the first ones, for people
        self.counts: Counter[str] = Counter()  # by kind, all of them
        self.repaired = 0
        self.left = 0
        self.facts: dict[str, int] = {}

    def add(self, kind: str, text: str, *, repaired: bool = False) -> None:
        """Note a problem."""
        self.counts[kind] += 1
        if repaired:
            self.repaired += 1
        else:
            self.left += 1
        if len(self.problems) < _TEXTS:
            self.problems.append(f"{kind}: {text}{' (repaired)' if repaired else ''}")

    @property
    def exit_code(self) -> int:
        """Return what fsck(8) says: 0 clean, 1 all repaired, 4 something is left."""
        if self.left:
            return 4
        return 1 if self.repaired else 0


def check_brick(
    disk: Disk,
    *,
    repair: bool = False,
    data: bool = True,
    progress: Progress = lambda _what, _done, _total: None,
    also: Callable[["Checker"], None] = lambda _: None,
) -> Report:
    """Check a brick that nobody serves; blocks. Closes the disk.

    data: read the logs and the chunks too. also: more checks over the same state, such as the
    filesystem's. Raises SetupError if this is no brick, is in use, or is of a newer format.
    """
    disk.lock()
    try:
        checker = Checker(disk, repair=repair, progress=progress)
        checker.run(data=data, also=also)
        return checker.report
    finally:
        disk.close()


class Checker:
    """One check."""

    def __init__(self, disk: Disk, *, repair: bool, progress: Progress) -> None:
        self._disk = disk
        self._repair = repair
        self._progress = progress
        self.report = Report()
        self._opening = Opening(disk, Options())
        self._changed = self._lost_blocks = False

    def run(self, *, data: bool, also: Callable[["Checker"], None]) -> None:
        """Do all checks, then write what was repaired."""
        if self._disk.read_superblock() is None:
            raise SetupError("there is no brick.json here; give the directory of a brick")
        superblock = open_superblock(self._disk, store_id=None, cluster_id="", segment_bytes=0)
        self._progress("checkpoint", 0, 1)
        try:
            self._opening.table = self._disk.open_table()
        except SetupError as error:
            self.report.add("checkpoint", str(error))
            return
        try:
            self._opening.inspect(superblock, len(self._disk.segments()))
            self.state, self.contents = self._opening.contents.state, self._opening.contents
            self._check_state()
            if data:
                self._check_logs()
                self._check_data()
            also(self)
            if self._changed:
                self._write()
        except (BrickDamaged, BrickFailed) as error:
            self.report.add("checkpoint or log", str(error))
        finally:
            self._opening.table.close()

    def objects(self) -> Iterator[ObjectId]:
        """Yield all objects, in order."""
        return self.state.every_object()

    def problem(self, kind: str, text: str, fix: Callable[[], None] | None = None) -> None:
        """Note a problem; repair it if there is a way, and it is wanted."""
        repaired = self._repair and fix is not None
        if repaired and fix is not None:
            fix()
            self._changed = True
        self.report.add(kind, text, repaired=repaired)

    def _check_state(self) -> None:
        self._progress("checkpoint", 1, 1)
        maps = self._maps = MapChecks(self.contents, self.problem)
        maps.count_users()
        self._check_leftovers()
        maps.check_pages()
        self._check_references()
        maps.check_blocks(silently=self._lost_blocks)
        self._check_live()
        self._check_indexes()

    # -- references

    def _check_references(self) -> None:
        chunks = self.state.chunks
        numbers = chunks.numbers()
        counted = live = 0
        step = max(1, WINDOW_CHUNKS // PAGE_CIDS)
        for first in range(0, max(1, len(numbers)), step):
            window = numbers[first : first + step]
            counts = self._count(window, last=first + step >= len(numbers), first=first == 0)
            counted += sum(counts)
            for index, number in enumerate(window):
                if not index % _PAGE:
                    self._progress("references", first + index, len(numbers))
                live += self._compare(number, counts[index * PAGE_CIDS : (index + 1) * PAGE_CIDS])
        said = (chunks.references_total, chunks.count)
        if (counted, live) != said:
            self.problem(
                "references",
                f"there are {counted} to {live} chunks in all, the checkpoint says {said}",
                self._fix_totals(counted, live),
            )
        self.report.facts |= {"references": counted, "chunks": live}

    def _fix_totals(self, references: int, count: int) -> Callable[[], None]:
        def fix() -> None:
            self.state.chunks.references_total, self.state.chunks.count = references, count

        return fix

    def _count(self, window: "array[int]", *, first: bool, last: bool) -> "array[int]":
        """Count the references to the chunks in these pages."""
        counts = array("I", bytes(4 * PAGE_CIDS * len(window)))
        low = 0 if first else window[0]
        high = (1 << 60) if last or not window else window[-1]
        known, base = -1, -1
        for object_id, block, cid in self.references():
            number = cid // PAGE_CIDS
            if number != known:
                known = number
                at = bisect_left(window, number)
                found = at < len(window) and window[at] == number
                base = at * PAGE_CIDS if found else -1
            if base >= 0:
                counts[base + cid % PAGE_CIDS] += 1
            elif low <= number <= high:
                self._lost(object_id, block, cid)
        return counts

    def references(self) -> Iterator[tuple[ObjectId, int, int]]:
        """Yield (object, block, cid) of every reference there is to a chunk."""
        return self.contents.references()

    def _lost(self, object_id: ObjectId, block: int, cid: int) -> None:
        where = f"block {block} of object {object_id.hex()}"
        if cid == LOST:
            self.problem("lost block", f"{where} has no chunk any more; a replica may have it")
            return
        self.problem("lost chunk", f"{where} is chunk {cid}: there is none")
        if self._repair and self.state.cids(object_id, block, 1)[0] == cid:
            self.state.lose(object_id, block)
            self._changed = self._lost_blocks = True

    def _compare(self, number: int, counts: "array[int]") -> int:
        """Compare a page of the chunk table with what was counted; return its living chunks."""
        page = self.state.chunks.page(number)
        assert page is not None
        if page.references != counts:
            pairs = list(zip(page.references, counts, strict=True))
            for slot, (has, should) in enumerate(pairs):
                cid = number * PAGE_CIDS + slot
                if has != should:
                    self.problem(
                        "references",
                        f"chunk {cid} has {should}, the table says {has}",
                        lambda cid=cid, should=should: (  # type: ignore[misc]
                            self.state.chunks.correct(cid, should)
                        ),
                    )
        return PAGE_CIDS - counts.count(0)

    # -- where chunks are

    def _check_live(self) -> None:
        """Live counts, and places: each in a segment in use, no two chunks in one place."""
        segments, chunks = self._opening.segments, self.state.chunks
        live: dict[int, int] = {}
        usable = {*segments.used, *segments.open}
        for first in range(0, len(usable), _WINDOW_SEGMENTS):
            window = sorted(usable)[first : first + _WINDOW_SEGMENTS]
            places = {segment: bytearray(segments.size_blocks * 8) for segment in window}
            for cid, location in self._places():
                segment = segment_of(location)
                if not first:
                    live[segment] = live.get(segment, 0) + units_of(location)
                if not first and segment not in usable:
                    self.problem("place", f"chunk {cid} is in segment {segment}, not in use")
                elif segment in places and not _take(places[segment], location):
                    self.problem("place", f"chunk {cid} lies where another one is, or outside")
        known = {segment: units for segment, units in chunks.live.items() if units}
        if live != known or sum(live.values()) != chunks.live_total:
            self.problem("live counts", "they differ from the chunk table", self._fix_live(live))

    def _places(self) -> Iterator[tuple[int, int]]:
        """Yield (cid, location) of every living chunk."""
        for number in self.state.chunks.numbers():
            page = self.state.chunks.page(number)
            assert page is not None
            for cid, _ in cids_of_page(number, page):
                yield cid, page.locations[cid % PAGE_CIDS]

    def _fix_live(self, live: dict[int, int]) -> Callable[[], None]:
        def fix() -> None:
            self.state.chunks.live = live
            self.state.chunks.live_total = sum(live.values())

        return fix

    # -- indexes

    def _check_leftovers(self) -> None:
        """Keys and maps belong to objects that exist; or a map is shared under its number."""
        state = self.state
        for owner in state.owners():
            number = number_of(owner)
            exists = self._maps.is_used(owner) if number else state.head(ObjectId(owner))
            if not exists and state.has_records(owner):
                what = f"map {number}, which nobody has" if number else _NO_OBJECT % owner.hex()
                self.problem(
                    "leftover",
                    f"records of {what}",
                    lambda owner=owner: state.clear(owner),  # type: ignore[misc]
                )

    def _check_indexes(self) -> None:
        state = self.state
        marked: set[ObjectId] = set()
        objects = 0
        for objects, object_id in enumerate(self.objects(), 1):
            if not objects % _PAGE:
                self._progress("indexes", objects, 0)
            if not state.is_indexed(object_id):
                self.problem(
                    "group index",
                    f"object {object_id.hex()} is missing",
                    lambda o=object_id: state.index(o),  # type: ignore[misc]
                )
            if state.get(object_id, MARK) is not None:
                marked.add(object_id)
        for group, object_id in state.misfiled():
            self.problem(
                "group index",
                f"object {object_id.hex()} is in group {group}'s, but not in the group",
                lambda g=group, o=object_id: state.unfile(g, o),  # type: ignore[misc]
            )
        if marked != state.marked:
            self.problem(
                "marks", "the index of marked objects is wrong", lambda: state.remark(marked)
            )
        self.report.facts["objects"] = objects

    # -- what is on the disk

    def _check_logs(self) -> None:
        segments, reader = self._opening.segments, self._opening.reader
        used, tail = dict(segments.used), self._opening.recovered.tail
        for place in tail.places:
            if place.segment >= 0 and place.first_id:
                used[place.segment] = (place.first_id, place.last_id)
        for done, (segment, (first, last)) in enumerate(sorted(used.items())):
            self._progress("log", done, len(used))
            seen = first - 1
            for log in reader.chain(segment, first, last):
                seen = log.header.id
            if seen != last:
                self.problem(
                    "log", f"segment {segment} is unreadable after log {seen}, up to log {last}"
                )

    def _check_data(self) -> None:
        numbers = self.state.chunks.numbers()
        damaged: set[int] = set()
        for at in range(0, len(numbers), _DATA_PAGES):
            self._progress("data", at, len(numbers))
            wanted = []
            for number in numbers[at : at + _DATA_PAGES]:
                page = self.state.chunks.page(number)
                assert page is not None
                for cid, _ in cids_of_page(number, page):
                    slot = cid % PAGE_CIDS
                    wanted.append((cid, page.locations[slot], page.checksums[slot]))
            damaged.update(wrong_chunks(self._disk.read, wanted))
        if damaged:
            for object_id, block, cid in self.references():
                if cid in damaged:
                    self.problem(
                        "data", f"block {block} of object {object_id.hex()} (chunk {cid}) rotted"
                    )

    # -- the end

    def _write(self) -> None:
        """Write the corrected state as a checkpoint."""
        recovered, checkpoint = self._opening.recovered, self._opening.checkpoint
        self._disk.sync(sorted(recovered.touched))
        tail = recovered.tail
        last = Sealed(tail.next_id - 1, -1, 0, memoryview(b""))
        last.checksum = tail.previous
        checkpoint.write(checkpoint.freeze(last, tail, recovered.epoch))


def _take(units: bytearray, location: int) -> bool:
    """Note that a chunk lies there, one bit a unit; False if one did already, or it is outside."""
    _, offset, length = place_of(location)
    first, count = offset // UNIT_BYTES, length // UNIT_BYTES
    start, end = first >> 3, (first + count + 7) >> 3
    if end > len(units):
        return False
    if count == BLOCK_UNITS and not first & 7:  # a raw chunk: most are
        free = units.count(0, start, end) == end - start
        units[start:end] = _WHOLE
        return free
    mask = ((1 << count) - 1) << (first & 7)
    before = int.from_bytes(units[start:end], "little")
    units[start:end] = (before | mask).to_bytes(end - start, "little")
    return not before & mask
