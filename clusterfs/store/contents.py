"""Everything the log tells: objects, chunks, outcomes, facts. The one place where a record acts.

The door appends a record to the log and then enacts it; replay enacts what the log holds. Since
both go through `enact`, the state after a crash is the state before it.

Invariants: see `validate`, which executes them.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from clusterfs.store.chunks import cids_of_page
from clusterfs.store.layers import Values
from clusterfs.store.location import locate_units, place_of, segment_of, units_of
from clusterfs.store.maps import MAP_BITS
from clusterfs.store.objects import BLOCK_BYTES, MARK, ObjectId
from clusterfs.store.outcomes import Outcomes
from clusterfs.store.records import (
    HOLE,
    LOST,
    Abort,
    Changes,
    Commit,
    Fact,
    ForgetClient,
    ForgetOutcomes,
    Placed,
    Prepared,
    Record,
    Relocate,
    Replaced,
    Resolved,
    ResolvedChange,
    SharedMap,
    SharedPages,
    Stable,
)
from clusterfs.store.state import State, shares_of
from clusterfs.store.whole_maps import UNKNOWN, SharedCounts, number_of, owner_of

Run = tuple[int, int]


class Contents:
    """The state of one brick."""

    def __init__(self, values: Values) -> None:
        self.state = State(values)
        self.outcomes = Outcomes()
        self.facts: dict[str, int | bytes] = {}
        self.changed_facts: set[str] = set()

    def enact(
        self,
        record: Record,
        runs: Sequence[Run] = (),
        checksums: Sequence[int] = (),
        first_cid: int = 0,
    ) -> None:
        """Make what the record says so.

        runs: where its payload blocks are; checksums: of each; first_cid: of its new chunks.
        """
        if isinstance(record, Changes):
            if checksums:
                identities = _identities(record.changes)
                self.state.chunks.add(first_cid, runs, checksums, identities)
            self._enact_changes(record)
        elif (small := _ENACT.get(type(record))) is not None:
            small(self, record)
        else:
            assert isinstance(record, Relocate)
            move = self.state.chunks.move
            for cid, source, target in zip(
                record.cids, record.sources, targets(record, runs[0][0]), strict=True
            ):
                move(cid, source, target)

    def _enact_changes(self, record: Changes) -> None:
        state = self.state
        if isinstance(record, Prepared):
            state.hold(record.changes)
            self.outcomes.prepare(record)
            return
        state.adopt(record.changes)
        for change in record.changes:
            state.perform(change)
        if not isinstance(record, Replaced):
            self.outcomes.add(record.client, record.sequence)

    def on_commit(self, record: Commit) -> None:
        """Apply a prepared transaction; nothing if it was not prepared here."""
        prepared = self.outcomes.decide(record.client, record.sequence, committed=True)
        if prepared is not None:
            for change in prepared.changes:
                self.state.perform(change)
            self.state.let_go(prepared.changes, performed=True)
            self.outcomes.add(record.client, record.sequence)

    def on_abort(self, record: Abort) -> None:
        """Let a prepared transaction go; remember the outcome in any case."""
        prepared = self.outcomes.decide(record.client, record.sequence, committed=False)
        if prepared is not None:
            self.state.let_go(prepared.changes, performed=False)

    def on_stable(self, record: Stable) -> None:
        """Raise a client's watermark."""
        self.outcomes.set_stable(record.client, record.sequence)

    def on_forget_client(self, record: ForgetClient) -> None:
        """Forget a client."""
        self.outcomes.forget_client(record.client)

    def on_forget_outcomes(self, record: ForgetOutcomes) -> None:
        """Forget outcomes that nobody will ask for."""
        self.outcomes.forget_outcomes(record.client, record.below)

    def on_fact(self, record: Fact) -> None:
        """Set a fact; an empty value removes it."""
        if record.value == b"":
            self.facts.pop(record.name, None)
        else:
            self.facts[record.name] = record.value
        self.changed_facts.add(record.name)

    def validate(self) -> None:
        """Execute the invariants; reads everything, for tests and fsck."""
        self._validate_shared()
        every = self._count_references()
        del every[LOST]
        counted = dict(every)
        live: dict[int, int] = {}
        chunks = self.state.chunks
        places: set[int] = set()
        for number, page in chunks.pages():
            assert page.live == sum(1 for n in page.references if n), "live count of a chunk page"
            for cid, references in cids_of_page(number, page):
                assert references == counted.pop(cid, 0), f"references of chunk {cid}"
                found = chunks.find(cid)
                assert found is not None
                assert found[0] not in places, f"two chunks at {found[0]}"
                places.add(found[0])
                segment = segment_of(found[0])
                live[segment] = live.get(segment, 0) + units_of(found[0])
        assert sum(every.values()) == chunks.references_total, "sum of references"
        assert len(every) == chunks.count, "number of chunks"
        assert not counted, f"maps refer to dead chunks {sorted(counted)[:5]}"
        assert live == {s: n for s, n in chunks.live.items() if n}, "live counts of segments"
        assert sum(live.values()) == chunks.live_total, "live total"
        self._validate_indexes()

    def _count_references(self) -> dict[int, int]:
        """Count what refers to each chunk; a shared page does so once."""
        return Counter(cid for _, _, cid in self.references())

    def references(self) -> Iterator[tuple[ObjectId, int, int]]:
        """Yield (object, block, cid), LOST among them, of each reference that a chunk may have.

        A page or a map that several objects share is told of the first one only; one that just a
        prepared transaction holds, of the object that may have it.
        """
        seen: set[int] = set()
        for object_id, owner in self.maps_in_use():
            for number, value in self.state.maps.entries(owner, 0):
                if not isinstance(value, int):
                    yield from _blocks_in(object_id, number, value)
                elif value not in seen:
                    seen.add(value)
                    cids = self.state.maps.get(owner, number)
                    yield from _blocks_in(object_id, number, cids or ())
        for prepared in self.outcomes.prepared.values():
            for change in prepared.changes:
                for operation in change.operations:
                    yield from self._prepared_references(change.object_id, operation, seen)

    def _prepared_references(
        self, object_id: ObjectId, operation: Resolved, seen: set[int]
    ) -> Iterator[tuple[ObjectId, int, int]]:
        if isinstance(operation, Placed):
            for index, cid in enumerate(operation.cids):
                if cid not in {HOLE, LOST}:
                    yield object_id, operation.first + index, cid
        elif isinstance(operation, SharedPages):
            for index, number in enumerate(operation.numbers):
                page = self.state.maps.shared(number) if number and number not in seen else None
                if page is not None:
                    seen.add(number)
                    yield from _blocks_in(object_id, operation.first_page + index, page.cids)

    def maps_in_use(self) -> Iterator[tuple[ObjectId, bytes]]:
        """Yield (object, owner of its pages) of each map there is, once.

        One that just a prepared transaction holds is told of the object that may have it.
        """
        shared = {number for number, _ in self.state.whole_maps.all_shared()}
        seen: set[int] = set()
        for object_id, number in self.map_users():
            if number not in seen:
                if number in shared:
                    seen.add(number)
                yield object_id, owner_of(object_id, number)

    def map_users(self) -> Iterator[tuple[ObjectId, int]]:
        """Yield (object, number of the map) of what refers to maps; 0: it is under its id."""
        for object_id in self.state.every_object():
            yield object_id, number_of(self.state.owner(object_id))
        for prepared in self.outcomes.prepared.values():
            for change in prepared.changes:
                for operation in change.operations:
                    if isinstance(operation, SharedMap):
                        yield change.object_id, operation.number

    def page_references(self) -> Counter[int]:
        """Count what refers to each shared page: maps, and prepared transactions."""
        counted: Counter[int] = Counter()
        for _, owner in self.maps_in_use():
            entries = self.state.maps.entries(owner, 0)
            counted.update(value for _, value in entries if isinstance(value, int))
        for prepared in self.outcomes.prepared.values():
            for clone in shares_of(prepared.changes):
                if isinstance(clone, SharedPages):
                    counted.update(filter(None, clone.numbers))
        return counted

    def _validate_shared(self) -> None:
        maps = self.state.maps
        counted, repeated = self.page_references(), self._validate_maps()
        for number, page in maps.all_shared():
            assert page.references == counted.pop(number, 0), f"references of map page {number}"
            assert page.references > 0, f"map page {number} is left over"
            assert number < maps.next_number, "the next number of a map page"
            repeated += (page.references - 1) * page.blocks
        assert not counted, f"maps refer to pages that do not exist {sorted(counted)[:5]}"
        assert repeated == maps.repeated, "blocks repeated by sharing"

    def _validate_maps(self) -> int:
        """Execute the invariants of whole maps; return how many blocks they repeat."""
        state, repeated = self.state, 0
        users = Counter(number for _, number in self.map_users() if number)
        for number, references in users.items():
            counts = state.whole_maps.find(number) or SharedCounts(1, 0)
            assert references == counts.references, f"references of map {number}"
            assert number < state.whole_maps.next_number, "the next number of a map"
        for number, counts in state.whole_maps.all_shared():
            assert number in users, f"map {number} is left over"
            assert counts.blocks == state.maps.count(owner_of(b"", number)), f"blocks of {number}"
            repeated += (counts.references - 1) * counts.blocks
        for owner in state.maps.owners():
            number = number_of(owner)
            assert not number or number in users or not any(state.maps.entries(owner, 0)), (
                f"pages of map {number} are left over"
            )
        for object_id in state.every_object():
            head = state.head(object_id)
            assert head is not None
            known = head.blocks != UNKNOWN
            owner = owner_of(object_id, head.map)
            assert not known or head.blocks == state.maps.count(owner), "blocks of an object"
            assert known or not head.map, "a numbered map whose blocks are not counted"
        return repeated

    def _validate_indexes(self) -> None:
        state = self.state
        by_group = 0
        everything = state.objects(None, b"", 1 << 40)
        for group in {head.group for o, _ in everything if (head := state.head(o))}:
            members = state.objects(group, b"", 1 << 40)
            assert all((h := state.head(o)) and h.group == group for o, _ in members), "group index"
            by_group += len(members)
        assert by_group == len(everything), "an object is in no group's index"
        marked = {o for o, _ in everything if state.get(o, MARK) is not None}
        assert marked == state.marked, "index of marked objects"
        locked = {c.object_id for p in self.outcomes.prepared.values() for c in p.changes}
        assert locked == set(self.outcomes.locked), "objects of prepared transactions"


def _blocks_in(
    object_id: ObjectId, page: int, cids: Iterable[int]
) -> Iterator[tuple[ObjectId, int, int]]:
    """Yield (object, block, cid) of what is in a map page."""
    for slot, cid in enumerate(cids):
        if cid:
            yield object_id, page << MAP_BITS | slot, cid


_ENACT: dict[type, Callable[..., None]] = {
    Commit: Contents.on_commit,
    Abort: Contents.on_abort,
    Stable: Contents.on_stable,
    ForgetClient: Contents.on_forget_client,
    ForgetOutcomes: Contents.on_forget_outcomes,
    Fact: Contents.on_fact,
}


def locations(runs: Iterable[Run]) -> "array[int]":
    """Return the location of every block of the runs."""
    return array("Q", [at for first, count in runs for at in range(first, first + count)])


def targets(record: Relocate, first: int) -> "array[int]":
    """Return the new location of each chunk; `first` is that of the payload's first block."""
    segment, offset, _ = place_of(first)
    block, unit = offset // BLOCK_BYTES, 0
    found = array("Q")
    for units in record.units:
        found.append(locate_units(segment, block, unit, units))
        unit += units
    return found


def _identities(changes: Sequence[ResolvedChange]) -> bytes:
    if len(changes) == 1 and len(changes[0].operations) == 1:
        only = changes[0].operations[0]
        return only.identities if type(only) is Placed else b""
    return b"".join(
        operation.identities
        for change in changes
        for operation in change.operations
        if type(operation) is Placed
    )
