"""The volume's pure decisions: unions, verdicts, answers, credits, placement, parts."""

from typing import NamedTuple

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterfs.store.objects import (
    ABSENT,
    BLOCK_BYTES,
    Change,
    Delete,
    ObjectId,
    Put,
    Transaction,
    Version,
    Write,
    inode_object,
)
from clusterfs.volume import placement
from clusterfs.volume.credits import RESERVE_FRACTION, Ledger, Purse
from clusterfs.volume.memory import Memory
from clusterfs.volume.merge import differing, newer
from clusterfs.volume.messages import (
    Apply,
    Code,
    Known,
    Touched,
    Trace,
    decode_message,
    decode_request,
)
from clusterfs.volume.parts import of_groups, payload_bytes
from clusterfs.volume.pending import Outcome, judge
from clusterfs.volume.rollforward import components, lacks, union, verdict
from dlm.net.errors import Malformed
from dlm.net.wire import encode

IDS = [inode_object(n) for n in range(6)]


def version(counter: int) -> Version:
    return Version(1, counter)


# -- roll-forward by object is roll-forward by transaction ---------------------------------------


class History(NamedTuple):
    """Transactions of one client in order; each replica has applied a prefix."""

    transactions: list[list[int]]  # the objects that each one touches
    prefixes: dict[int, int]


@st.composite
def histories(draw: st.DrawFn) -> History:
    touched = st.lists(st.integers(0, len(IDS) - 1), min_size=1, max_size=3, unique=True)
    transactions = draw(st.lists(touched, max_size=12))
    cut = st.integers(0, len(transactions))
    return History(transactions, {node: draw(cut) for node in (1, 2, 3)})


def state(history: History, prefix: int) -> dict[ObjectId, Version]:
    counters: dict[ObjectId, int] = {}
    for objects in history.transactions[:prefix]:
        for n in objects:
            counters[IDS[n]] = counters.get(IDS[n], 0) + 1
    return {object_id: version(n) for object_id, n in counters.items()}


def traces(history: History, prefix: int) -> list[Trace]:
    counters: dict[int, int] = {}
    found = []
    for sequence, objects in enumerate(history.transactions[:prefix], start=1):
        for n in objects:
            counters[n] = counters.get(n, 0) + 1
        found.append(
            Trace(
                9,
                sequence,
                tuple(Touched(IDS[n], 0, version(counters[n]), deleted=False) for n in objects),
            )
        )
    return found


@given(histories())
def test_the_newest_objects_are_what_all_transactions_together_give(history: History) -> None:
    reports = {node: traces(history, prefix) for node, prefix in history.prefixes.items()}
    newest = union(reports, lambda _node, _group: True)
    together = state(history, max(history.prefixes.values()))
    assert {o: found.touched.version for o, found in newest.items()} == together
    for object_id, found in newest.items():
        assert state(history, history.prefixes[found.node])[object_id] == together[object_id]


@given(histories())
def test_what_comes_forward_in_one_step_never_leaves_half_a_transaction(history: History) -> None:
    reports = {node: traces(history, prefix) for node, prefix in history.prefixes.items()}
    every = [trace for some in reports.values() for trace in some]
    newest = union(reports, lambda _node, _group: True)
    mine = state(history, history.prefixes[1])
    lacking = [o for o, f in newest.items() if lacks(f.touched, mine.get(o, ABSENT), None)]
    steps = components(every, lacking)
    assert sorted(o for step in steps for o in step) == sorted(lacking)
    missing = history.transactions[history.prefixes[1] : max(history.prefixes.values())]
    for objects in missing:
        assert sum(any(IDS[n] in step for n in objects) for step in steps) == 1


def test_a_copy_that_does_not_count_is_not_heard() -> None:
    reports = {
        1: [Trace(9, 1, (Touched(IDS[0], 0, version(1), deleted=False),))],
        2: [Trace(9, 2, (Touched(IDS[0], 0, version(2), deleted=False),))],
    }
    assert union(reports, lambda node, _: node == 1)[IDS[0]].touched.version == version(1)


def test_a_tombstone_counts_as_a_version() -> None:
    deleted = Touched(IDS[0], 0, version(3), deleted=True)
    changed = Touched(IDS[0], 0, version(2), deleted=False)
    assert lacks(deleted, version(2), None)
    assert not lacks(deleted, ABSENT, None)
    assert lacks(changed, ABSENT, None)
    assert not lacks(changed, ABSENT, version(3))


def test_a_tombstone_says_nothing_while_the_object_is_there() -> None:
    """It was on disk before the deletion, which is lost: what others have newer is wanted."""
    changed = Touched(IDS[0], 0, version(2), deleted=False)
    assert lacks(changed, version(1), version(3))
    mine, theirs = {IDS[0]: (0, version(1))}, {IDS[0]: (0, version(2))}
    assert newer(mine, theirs, {IDS[0]: version(3)}) == [IDS[0]]
    assert newer({}, theirs, {IDS[0]: version(3)}) == []


@given(known=st.dictionaries(st.integers(1, 4), st.sampled_from(Known)), all_present=st.booleans())
def test_a_verdict_never_contradicts_what_someone_did(
    known: dict[int, Known], *, all_present: bool
) -> None:
    outcome = verdict([(1, 2), (3, 4)], known, all_present=all_present)
    if Known.COMMITTED in known.values():
        assert outcome is Known.COMMITTED
    elif Known.ABORTED in known.values():
        assert outcome is Known.ABORTED
    elif not all_present:
        assert outcome is Known.PREPARED
    elif outcome is Known.COMMITTED:
        assert [known.get(node) for node in (1, 2, 3, 4)] == [Known.PREPARED] * 4
    else:
        assert outcome is Known.ABORTED


# -- what replicas remember -----------------------------------------------------------------------


def transaction(sequence: int, *changes: Change) -> Transaction:
    return Transaction(9, sequence, 1, changes)


def test_memory_keeps_what_is_above_the_watermark() -> None:
    memory = Memory()
    memory.remember(transaction(1, Change(IDS[0], 0, version(1), version(2), (Delete(),))))
    memory.remember(transaction(2, Change(IDS[1], 0, ABSENT, version(1), (Put(b"k", b"v"),))))
    assert memory.tombstone(IDS[0]) == version(2)
    assert memory.set_stable(9, 1) == [IDS[0]]
    assert memory.tombstone(IDS[0]) is None
    assert [trace.sequence for trace in memory.traces([9])] == [2]
    memory.remember(transaction(1, Change(IDS[2], 0, ABSENT, version(1), ())))
    assert [trace.sequence for trace in memory.traces([9])] == [2]
    memory.forget(9)
    assert not memory.clients()
    assert memory.count() == 0


def test_the_last_deletion_counts() -> None:
    memory = Memory()
    memory.remember(transaction(2, Change(IDS[0], 0, version(4), version(5), (Delete(),))))
    memory.remember(transaction(1, Change(IDS[0], 0, version(1), version(2), (Delete(),))))
    assert memory.tombstone(IDS[0]) == version(5)


def test_tombstones_of_an_earlier_life_stay_until_dropped() -> None:
    memory = Memory()
    memory.load({IDS[0]: version(4)})
    memory.forget(9)
    assert memory.tombstone(IDS[0]) == version(4)
    assert memory.drop_loaded() == [IDS[0]]
    assert memory.tombstone(IDS[0]) is None


# -- answers --------------------------------------------------------------------------------------


def test_who_fails_alone_must_leave_and_who_fails_together_fails() -> None:
    assert judge([0b1110], 0b1110, {}) == Outcome()
    assert judge([0b1110], 0b0110, {3: Code.SPACE}) == Outcome(drop=(3,))
    both = {1: Code.SPACE, 2: Code.SPACE}
    assert judge([0b0110], 0b1000, both) == Outcome(error=Code.SPACE)
    assert judge([0b0110, 0b1000], 0b0110, {3: Code.MISMATCH}) == Outcome(error=Code.MISMATCH)


@given(st.integers(1, 15), st.integers(0, 15), st.sampled_from([Code.SPACE, Code.BRICK]))
def test_a_transaction_fails_only_if_some_group_has_it_nowhere(
    mask: int, applied: int, code: Code
) -> None:
    failed = {node: code for node in range(4) if ~applied >> node & 1}
    outcome = judge([mask], applied, failed)
    assert (outcome.error is Code.OK) == (bool(applied & mask) or not failed)
    assert not (outcome.drop and outcome.error is not Code.OK)


# -- merging --------------------------------------------------------------------------------------

listings = st.dictionaries(
    st.sampled_from(IDS), st.tuples(st.just(0), st.builds(version, st.integers(1, 4)))
)


@given(listings, listings)
def test_pulling_what_differs_makes_equal(
    mine: dict[ObjectId, tuple[int, Version]], theirs: dict[ObjectId, tuple[int, Version]]
) -> None:
    after = dict(mine)
    for object_id in differing(mine, theirs):
        after.pop(object_id, None)
        if object_id in theirs:
            after[object_id] = theirs[object_id]
    assert after == theirs


@given(listings, listings)
def test_equals_that_take_the_newer_from_each_other_become_equal(
    one: dict[ObjectId, tuple[int, Version]], other: dict[ObjectId, tuple[int, Version]]
) -> None:
    ours = one | {o: other[o] for o in newer(one, other, {})}
    others = other | {o: one[o] for o in newer(other, one, {})}
    assert ours == others


# -- credits --------------------------------------------------------------------------------------


class Room(NamedTuple):
    total: int
    free: int


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 300)), max_size=60))
def test_promises_never_exceed_the_room(steps: list[tuple[int, int]]) -> None:
    free = total = 10_000
    ledger = Ledger(lambda: Room(total, free))
    purses = {client: Purse() for client in (1, 2, 3)}
    for client, nbytes in steps:
        purse = purses[client]
        purse.granted(7, ledger.grant(client))
        if purse.available([7]) >= nbytes:
            purse.reserved += nbytes
            purse.spend([7], nbytes)
            purse.reserved -= nbytes
            ledger.consumed(client, nbytes)
            free -= nbytes
        ledger.returned(client, purse.give_back(7))
        outstanding = sum(max(0, p.available([7])) for p in purses.values())
        assert outstanding <= max(0, free)
        assert free >= total // RESERVE_FRACTION


# -- small parts ----------------------------------------------------------------------------------


@given(st.integers(0, 1023), st.integers(1, 2**24 - 1), st.integers(0, 2**28 - 1))
def test_an_inode_number_tells_its_group(group: int, incarnation: int, counter: int) -> None:
    number = placement.inode_number(group, incarnation, counter)
    assert 1 < number < 2**63 or (group, incarnation, counter) == (0, 0, 1)
    assert placement.group_of_inode(number, 1024) == group
    assert placement.group_of_stripe(number, 0, 1024) == group


def test_a_large_file_is_spread_over_the_groups() -> None:
    used = {placement.group_of_stripe(77, n, 64) for n in range(1, 512)}
    assert len(used) == 64


@given(st.sets(st.integers(0, 1023)))
def test_group_bitmaps_read_back(groups: set[int]) -> None:
    assert placement.bitmap_to_groups(placement.groups_to_bitmap(groups)) == groups


def test_a_part_takes_its_own_data_along() -> None:
    data = [bytes([n]) * BLOCK_BYTES for n in range(4)]
    whole = transaction(
        1,
        Change(IDS[0], 0, ABSENT, version(1), (Write(0, 1),)),
        Change(IDS[1], 1, ABSENT, version(1), (Put(b"k", b"v"), Write(5, 2))),
        Change(IDS[2], 0, ABSENT, version(1), (Write(9, 1),)),
    )
    part, payload = of_groups(whole, b"".join(data), {0})
    assert [change.object_id for change in part.changes] == [IDS[0], IDS[2]]
    assert bytes(payload) == data[0] + data[3]
    assert sum(map(payload_bytes, part.changes)) == len(payload)
    assert of_groups(whole, b"".join(data), {0, 1})[0] is whole


def test_messages_read_back_and_ranges_are_checked() -> None:
    message = Apply(transaction(3, Change(IDS[0], 7, ABSENT, version(1), (Delete(),))), 2)
    assert decode_message(encode(message)) == message
    for garbage in (b"", b"\xc1", msgpack.packb([1, [1, -1, 0, []], 0]), msgpack.packb([99])):
        with pytest.raises(Malformed):
            decode_message(garbage)
        with pytest.raises(Malformed):
            decode_request(garbage)
