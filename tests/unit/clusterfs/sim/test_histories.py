"""From what clients noted to histories: what is certain, what may be lost, what proves nothing."""

from typing import Any

from clusterfs.sim import file_models, histories
from clusterfs.sim.histories import Losses, Record
from clusterfs.sim.linearizability import check

NOBODY: Losses = {}


def note(node: int, begin: int, end: int | None, *action: Any, **more: Any) -> Record:
    return Record(node, node * 10, "f", action, begin, end, **more)


def data(*records: Record, losses: Losses = NOBODY) -> bool | None:
    operations = histories.of_data(records, losses)
    return check(operations, file_models.EMPTY_REGISTER, file_models.register).linearizable


def names(*records: Record, losses: Losses = NOBODY) -> bool | None:
    operations = histories.of_names(records, losses)
    return check(operations, file_models.EMPTY_TREE, file_models.tree).linearizable


WRITE = note(1, 0, 1, "write", 7, handle=3)
SYNC = note(1, 2, 3, "sync", handle=3)
OLD = note(2, 20, 21, "read", result=0)


def test_a_stale_read_is_a_violation_while_nobody_was_lost() -> None:
    assert data(WRITE, OLD) is False


def test_what_was_not_synced_may_go_with_its_node() -> None:
    assert data(WRITE, OLD, losses={1: [10]})
    assert data(WRITE, OLD, losses={2: [10]}) is False


def test_what_was_synced_may_not_be_lost() -> None:
    assert data(WRITE, SYNC, OLD, losses={1: [10]}) is False


def test_a_sync_through_another_handle_does_not_count() -> None:
    assert data(WRITE, SYNC._replace(handle=4), OLD, losses={1: [10]})
    assert data(WRITE, SYNC._replace(error=5), OLD, losses={1: [10]})


def test_what_another_node_has_seen_may_not_be_lost() -> None:
    seen = note(3, 5, 6, "read", result=7)
    assert data(WRITE, seen, OLD, losses={1: [10]}) is False


def test_what_only_its_own_node_has_seen_may_be_lost() -> None:
    seen = note(1, 5, 6, "read", result=7)
    assert data(WRITE, seen, OLD, losses={1: [10]})


def test_a_failed_write_may_take_effect_later_or_never() -> None:
    failed = WRITE._replace(error=5)
    assert data(failed, OLD)
    assert data(failed, OLD, note(2, 30, 31, "read", result=7))
    assert data(failed, note(2, 30, 31, "read", result=7), note(3, 40, 41, "read", result=0)) is (
        False
    )


def test_what_nobody_saw_of_uncertain_appends_makes_no_check_hard() -> None:
    lost = [note(1, 0, None, "append", 100 + n) for n in range(40)]
    sizes = [note(2, 50 + n, 50 + n, "size", result=n % 3) for n in range(10)]
    known = [note(2, 70, 71, "append", 1), note(2, 80, 81, "read", result=(1,))]
    operations = histories.of_data([*lost, *sizes, *known], NOBODY)
    assert check(operations, (), file_models.log, limit=1000).linearizable
    wrong = [*lost, *known, note(2, 90, 91, "read", result=())]
    operations = histories.of_data(wrong, NOBODY)
    assert check(operations, (), file_models.log, limit=1000).linearizable is False


def test_beginnings_and_ends_belong_together() -> None:
    lines = [
        {"thing": "r", "action": ["write", 1], "at": 1},
        {"result": 8, "handle": 2, "at": 2},
        {"thing": "r", "action": ["read"], "at": 3},
        {"error": 5, "at": 4},
        {"thing": "r", "action": ["read"], "at": 5},
    ]
    first, failed, open_ended = histories.parsed(lines, 1, 10)
    assert first == Record(1, 10, "r", ("write", 1), 1, 2, 8, None, 2)
    assert first.succeeded
    assert not failed.succeeded
    assert open_ended.returned is None


def test_names_of_files_whose_maker_died() -> None:
    lost = note(1, 0, None, "create", "a/x", 5)
    assert names(lost, note(2, 10, 11, "stat", "a/x", result=99))
    assert names(lost, note(2, 10, 11, "stat", "a/x", result=None))
    assert names(note(2, 10, 11, "stat", "a/x", result=99)) is False
    assert names(lost, note(2, 10, 11, "stat", "a/y", result=99)) is False


def test_a_blackout_takes_what_was_done_just_before_and_not_synced() -> None:
    second = 10**9
    seen = note(3, 5, 6, "read", result=7)
    old = OLD._replace(invoked=20 * second, returned=21 * second)
    writing, dark = [WRITE, seen, old], [10]
    operations = histories.of_data(writing, NOBODY, dark)
    assert check(operations, 0, file_models.register).linearizable
    operations = histories.of_data([WRITE, SYNC, old], NOBODY, dark)
    assert check(operations, 0, file_models.register).linearizable is False
    gone = note(2, 20 * second, 21 * second, "stat", "a/x", result=None)
    for at, possible in ((5, True), (15 * second, False)):
        operations = histories.of_names([MADE, gone], NOBODY, [at])
        assert check(operations, frozenset(), file_models.tree).linearizable is possible


MADE = note(1, 0, 1, "create", "a/x", 5, result=99)


def test_only_one_of_two_unlinks_succeeds_unless_a_node_was_lost_meanwhile() -> None:
    unlinks = (
        note(1, 2, 3, "unlink", "a/x", result=True),
        note(2, 4, 5, "unlink", "a/x", result=True),
    )
    assert names(MADE, *unlinks) is False
    assert names(MADE, *unlinks, losses={2: [5]})


def test_two_clients_may_both_be_told_that_they_renamed_the_same() -> None:
    one = note(1, 2, 6, "rename", "a/x", "b/x", result=True)
    two = note(2, 4, 8, "rename", "a/x", "b/x", result=True)
    assert names(MADE, one, two)
    assert names(MADE, one, two._replace(invoked=7)) is False
    assert names(MADE, one, two._replace(action=("rename", "a/x", "b/y"))) is False


def apart(*records: Record) -> bool | None:
    """Check each name alone: no search may look at more than one configuration of all."""
    operations = histories.of_names(records, NOBODY)
    found = [
        check(some, file_models.NOTHING, file_models.name).linearizable
        for some in histories.by_name(operations).values()
    ]
    return all(found)


def test_each_name_alone_is_explained_as_all_are_together() -> None:
    made = note(1, 0, 1, "create", "a/x", 5, result=77)
    moved = note(1, 2, 3, "rename", "a/x", "b/y", result=True)
    there = note(2, 4, 5, "stat", "b/y", result=77)
    listed = note(2, 6, 7, "list", "b", result=["y"])
    removed = note(1, 8, 9, "unlink", "b/y", result=True)
    gone = note(2, 10, 11, "stat", "b/y", result=None)
    right = (made, moved, there, listed, removed, gone)
    assert names(*right)
    assert apart(*right)
    for wrong in (
        there._replace(result=None),
        listed._replace(result=[]),
        removed._replace(result=False),
        gone._replace(result=77),
        moved._replace(result=False),
        made._replace(result=0),
    ):
        story = [wrong if record.invoked == wrong.invoked else record for record in right]
        assert names(*story) is False, wrong
        assert apart(*story) is False, wrong


def test_names_too_hard_together_are_checked_apart() -> None:
    made = note(1, 0, 1, "create", "a/x", 5, result=77)
    lost = [note(2, 2, None, "rename", f"a/{n}", f"b/{n}") for n in range(10)]
    looks = [note(1, 4 + n, 4 + n, "stat", "a/x", result=77) for n in range(10)]
    operations = histories.of_names([made, *lost, *looks], NOBODY)
    found = histories.check_names(operations, 15)
    assert found.apart
    assert found.verdict.linearizable
    stale = note(1, 30, 31, "stat", "a/x", result=None)
    operations = histories.of_names([made, *lost, *looks, stale], NOBODY)
    assert histories.check_names(operations, 15).verdict.linearizable is False


def locks(*records: Record, losses: Losses = NOBODY) -> bool | None:
    operations = histories.of_locks(records, losses)
    return check(operations, file_models.FREE, file_models.mutex).linearizable


TAKEN = note(1, 0, 1, "lock", 10, result=True)
LEFT = note(1, 20, 21, "unlock", 10)
ALSO = note(2, 5, 6, "lock", 20, result=True)
REFUSED = note(2, 5, 6, "lock", 20, result=False)


def test_two_that_have_one_lock_are_a_violation_while_nobody_was_lost() -> None:
    assert locks(TAKEN, REFUSED, LEFT)
    assert locks(TAKEN, ALSO, LEFT) is False
    assert locks(TAKEN, ALSO, LEFT, losses={2: [3]}) is False


def test_a_lock_ends_when_its_node_is_lost() -> None:
    assert locks(TAKEN, ALSO, LEFT, losses={1: [3]})
    assert locks(TAKEN, REFUSED, LEFT, losses={1: [3]})
    assert locks(TAKEN, ALSO, losses={1: [3]})


def test_a_lock_ends_when_its_node_was_last_seen_if_its_loss_is_noted_late() -> None:
    seconds = 10**9
    served = note(1, seconds, seconds + 1, "read", result=0)
    stopped = {1: [6 * seconds]}
    early = ALSO._replace(invoked=seconds - 5, returned=seconds - 4)
    late = ALSO._replace(invoked=seconds + 5, returned=seconds + 6)
    for also, right in ((late, True), (early, False)):
        operations = histories.of_locks([TAKEN, also], stopped, [TAKEN, served, also])
        assert check(operations, file_models.FREE, file_models.mutex).linearizable is right


def test_nobody_is_refused_a_lock_that_is_free() -> None:
    assert locks(TAKEN, LEFT, REFUSED._replace(invoked=30, returned=31)) is False
    assert locks(TAKEN._replace(result=None, error=5), REFUSED)
