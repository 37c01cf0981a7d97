from itertools import product

import pytest

from dlm.modes import (
    INCOMPATIBLE,
    LVB_TRANSFER,
    Mode,
    Transfer,
    floor,
    is_down,
    is_middle,
    may_queue_conversion,
)

NL, CR, CW, PR, PW, EX = Mode
PAIRS = list(product(Mode, Mode))

COMPATIBLE = ["YYYYYY", "YYYYYn", "YYYnnn", "YYnYnn", "YYnnnn", "Ynnnnn"]

LVB = ["RRRRRR", "-RRRRR", "--RRRR", "---RRR", "WWWWWR", "WWWWWW"]

QUECVT = {NL: {CR, CW, PR, PW, EX}, CR: {CW, PR, PW, EX}, CW: {PR, PW, EX}}
QUECVT |= {PR: {CW, PW, EX}, PW: {EX}, EX: set()}


@pytest.mark.parametrize(("held", "wanted"), PAIRS)
def test_the_matrices_are_those_of_fs_dlm(held: Mode, wanted: Mode) -> None:
    assert held.compatible(wanted) == (COMPATIBLE[held][wanted] == "Y")
    assert (held in INCOMPATIBLE[wanted]) == (COMPATIBLE[held][wanted] == "n")
    letter = {Transfer.NOTHING: "-", Transfer.READ: "R", Transfer.WRITE: "W"}
    assert letter[LVB_TRANSFER[held][wanted]] == LVB[held][wanted]
    assert may_queue_conversion(held, wanted) == (wanted in QUECVT[held])


@pytest.mark.parametrize(("held", "wanted"), PAIRS)
def test_weakening_never_conflicts_with_anybody_the_held_mode_admits(
    held: Mode, wanted: Mode
) -> None:
    if is_down(held, wanted):
        admitted = [other for other in Mode if held.compatible(other)]
        assert all(wanted.compatible(other) for other in admitted)


def test_only_pr_and_cw_are_a_middle_conversion() -> None:
    assert {(a, b) for a, b in PAIRS if is_middle(a, b)} == {(PR, CW), (CW, PR)}
    assert not is_down(PR, CW)


@pytest.mark.parametrize(("held", "wanted"), PAIRS)
def test_the_floor_is_covered_by_whatever_the_master_may_have_made_of_it(
    held: Mode, wanted: Mode
) -> None:
    undecided = floor(held, wanted, 0)
    for outcome in (held, wanted) if not is_down(held, wanted) else ():
        admitted = [other for other in Mode if outcome.compatible(other)]
        assert all(undecided.compatible(other) for other in admitted)
