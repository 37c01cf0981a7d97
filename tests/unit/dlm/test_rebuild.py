import pytest

from dlm.core.master_copy import Copy
from dlm.core.rebuild import rebuild
from dlm.core.resource import Resource
from dlm.events import Name
from dlm.messages import Record
from dlm.modes import Flags, Mode

NL, CR, CW, PR, PW, EX = Mode
NO_FLAGS = Flags(0)
R = Name(b"r")


def record(  # noqa: PLR0913
    lock: int,
    granted: Mode | None,
    requested: Mode | None = None,
    *,
    sequence: int = 0,
    flags: Flags = NO_FLAGS,
    lvb: tuple[bytes, int] | None = None,
    known: int | None = None,
    valid: bool = True,
) -> Record:
    value, at = lvb or (None, 0)
    known = at if known is None else known
    return Record(
        lock, *R, granted, requested, sequence, int(flags), "", True, value, at, known, valid
    )


def old_resource(lvb: bytes, sequence: int, *holders: tuple[int, int, Mode]) -> Resource:
    resource = Resource(R, 1)
    resource.lvb, resource.lvb_sequence = lvb, sequence
    copies = []
    for node, lock, mode in holders:
        copy = Copy(node, lock, resource)
        copy.granted, copy.uses_lvb = mode, True
        copies.append(copy)
    resource.restore(copies)
    return resource


def test_queues_keep_their_order_whoever_reports_first() -> None:
    reports = [
        (2, record(1, None, EX, sequence=5)),
        (3, record(1, None, PR, sequence=-1)),
        (4, record(1, EX)),
        (5, record(9, NL, PR, sequence=7)),
        (6, record(9, NL, CW, sequence=3)),
    ]
    resource = rebuild(R, 2, reports, None, 0.0)
    assert [copy.node for copy in resource.waiting] == [3, 2]
    assert [copy.node for copy in resource.converting] == [6, 5]


@pytest.mark.parametrize(("other", "resolved"), [(CW, CW), (PR, PR), (CR, PR)])
def test_a_middle_conversion_becomes_what_fits_the_others(other: Mode, resolved: Mode) -> None:
    reports = [(1, record(1, PR, CW)), (2, record(1, other))]
    resource = rebuild(R, 2, reports, None, 0.0)
    modes = {copy.node: copy.granted for copy in resource.granted}
    assert modes == {1: resolved, 2: other}


def test_a_convdeadlk_conversion_has_lost_its_mode_if_somebody_else_has_it() -> None:
    asking = record(1, PR, EX, sequence=1, flags=Flags.CONVDEADLK)
    alone = rebuild(R, 2, [(1, asking)], None, 0.0)
    assert [copy.granted for copy in alone.converting] == [PR]
    beaten = rebuild(R, 2, [(1, asking), (2, record(1, EX))], None, 0.0)
    assert [copy.granted for copy in beaten.converting] == [NL]


def test_a_surviving_master_keeps_the_value_block() -> None:
    old = old_resource(b"v3", 3, (1, 1, NL))
    resource = rebuild(R, 2, [(1, record(1, NL, lvb=(b"v2", 2)))], old, 0.0)
    assert (resource.lvb, resource.lvb_sequence, resource.lvb_valid) == (b"v3", 3, True)


def test_it_takes_a_value_that_a_demotion_wrote_and_it_has_not_seen() -> None:
    old = old_resource(b"v3", 3, (1, 1, EX))
    resource = rebuild(R, 2, [(1, record(1, PR, lvb=(b"v4", 4)))], old, 0.0)
    assert (resource.lvb, resource.lvb_sequence, resource.lvb_valid) == (b"v4", 4, True)


@pytest.mark.parametrize(("mode", "valid"), [(EX, False), (PW, False), (PR, True)])
def test_it_doubts_the_value_if_a_writer_is_gone_without_a_word(mode: Mode, *, valid: bool) -> None:
    old = old_resource(b"v3", 3, (1, 1, NL), (2, 1, mode))
    resource = rebuild(R, 2, [(1, record(1, NL))], old, 0.0)
    assert resource.lvb_valid is valid


def test_a_new_master_trusts_a_lock_that_keeps_writers_out() -> None:
    reports = [(1, record(1, NL, lvb=(b"old", 2))), (2, record(1, PR, lvb=(b"now", 5)))]
    resource = rebuild(R, 2, reports, None, 0.0)
    assert (resource.lvb, resource.lvb_sequence, resource.lvb_valid) == (b"now", 5, True)


def test_but_not_one_that_has_read_before_its_last_grant() -> None:
    resource = rebuild(R, 2, [(2, record(1, PR, lvb=(b"old", 2), known=5))], None, 0.0)
    assert (resource.lvb, resource.lvb_valid) == (b"old", False)


def test_with_weak_locks_only_it_takes_the_newest_and_doubts_it() -> None:
    reports = [(1, record(1, NL, lvb=(b"old", 2))), (2, record(1, CR, lvb=(b"newer", 4)))]
    resource = rebuild(R, 2, reports, None, 0.0)
    assert (resource.lvb, resource.lvb_valid) == (b"newer", False)


def test_waiting_times_survive_on_a_surviving_master() -> None:
    old = Resource(R, 1)
    waiter = Copy(3, 8, old)
    waiter.requested, waiter.sequence, waiter.since_s = EX, 1, 12.5
    old.restore([waiter])
    reports = [(1, record(1, EX)), (3, record(8, None, EX, sequence=1))]
    resource = rebuild(R, 2, reports, old, 99.0)
    assert [copy.since_s for copy in resource.waiting] == [12.5]
