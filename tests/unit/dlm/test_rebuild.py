import pytest

from dlm.core.rebuild import rebuild
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


def test_queues_keep_their_order_whoever_reports_first() -> None:
    reports = [
        (2, record(1, None, EX, sequence=5)),
        (3, record(1, None, PR, sequence=-1)),
        (4, record(1, EX)),
        (5, record(9, NL, PR, sequence=7)),
        (6, record(9, NL, CW, sequence=3)),
    ]
    resource = rebuild(R, 2, reports, 0.0)
    assert [copy.node for copy in resource.waiting] == [3, 2]
    assert [copy.node for copy in resource.converting] == [6, 5]


@pytest.mark.parametrize(("other", "resolved"), [(CW, CW), (PR, PR), (CR, PR)])
def test_a_middle_conversion_becomes_what_fits_the_others(other: Mode, resolved: Mode) -> None:
    reports = [(1, record(1, PR, CW)), (2, record(1, other))]
    resource = rebuild(R, 2, reports, 0.0)
    modes = {copy.node: copy.granted for copy in resource.granted}
    assert modes == {1: resolved, 2: other}


def test_a_convdeadlk_conversion_has_lost_its_mode_if_somebody_else_has_it() -> None:
    asking = record(1, PR, EX, sequence=1, flags=Flags.CONVDEADLK)
    alone = rebuild(R, 2, [(1, asking)], 0.0)
    assert [copy.granted for copy in alone.converting] == [PR]
    beaten = rebuild(R, 2, [(1, asking), (2, record(1, EX))], 0.0)
    assert [copy.granted for copy in beaten.converting] == [NL]


def test_a_new_master_trusts_a_lock_that_keeps_writers_out() -> None:
    reports = [(1, record(1, NL, lvb=(b"old", 2))), (2, record(1, PR, lvb=(b"now", 5)))]
    resource = rebuild(R, 2, reports, 0.0)
    assert (resource.lvb, resource.lvb_sequence, resource.lvb_valid) == (b"now", 5, True)


def test_but_not_one_that_has_read_before_its_last_grant() -> None:
    resource = rebuild(R, 2, [(2, record(1, PR, lvb=(b"old", 2), known=5))], 0.0)
    assert (resource.lvb, resource.lvb_valid) == (b"old", False)


def test_with_weak_locks_only_it_takes_the_newest_and_doubts_it() -> None:
    reports = [(1, record(1, NL, lvb=(b"old", 2))), (2, record(1, CR, lvb=(b"newer", 4)))]
    resource = rebuild(R, 2, reports, 0.0)
    assert (resource.lvb, resource.lvb_valid) == (b"newer", False)
