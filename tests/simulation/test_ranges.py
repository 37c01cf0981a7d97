"""Ranges in whole simulated clusters: exclusion, no wait forgotten, nothing left over."""

import os
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from dlm.core import range_user, recovery
from dlm.core.range_keeper import Keeper
from dlm.core.range_past import Past
from dlm.core.range_user import _Page
from dlm.core.range_witness import Witnesses
from dlm.events import Hearing
from dlm.range_messages import RangeTell
from dlm.sim.faults import Faults
from dlm.sim.ranges import simulate_ranges

FIRST_SEED = int(os.environ.get("CLUSTERFS_SEED", "0"))
NO_FAULTS = Faults(crash_interval_s=float("inf"))


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + 40))
def test_ranges_exclude_survive_and_end_under_any_faults(seed: int) -> None:
    outcome = simulate_ranges(seed)
    if outcome.violation is not None:
        outcome = simulate_ranges(seed, tracing=True)
    assert outcome.violation is None, (outcome.violation, *outcome.trace)


@pytest.mark.parametrize("seed", range(1000 + FIRST_SEED, 1010 + FIRST_SEED))
def test_so_they_do_where_members_tell_what_they_hold_in_many_slices(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "SLICE", 2)
    monkeypatch.setattr(range_user, "NAMES", 1)
    outcome = simulate_ranges(seed)
    assert outcome.violation is None, outcome.violation


def test_who_comes_back_may_be_sure_of_what_it_held_or_not() -> None:
    met: Counter[str] = Counter()
    for seed in range(FIRST_SEED, FIRST_SEED + 12):
        met.update(simulate_ranges(seed).returns)
    assert met.keys() == {"stands", "clashed", "unsure"}


def forget_grants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Past, "note", lambda *_: None)


def forget_who_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hearing, "stands", lambda self, party: party.number not in self.clashing)


def believe_it_without_a_witness(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(self: Witnesses, hearing: Hearing) -> None:
        self._end(hearing)

    monkeypatch.setattr(Witnesses, "_conclude", hasty)


@pytest.mark.parametrize("plant", [forget_grants, forget_who_is_gone, believe_it_without_a_witness])
def test_a_witness_that_forgets_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    outcomes = (simulate_ranges(seed) for seed in range(60))
    assert any("somebody had it" in (outcome.violation or "") for outcome in outcomes)


def tell_nothing_of_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Page, "messages", _without("wanted"))


def tell_nothing_of_what_is_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Page, "messages", _without("borrowed"))


def tell_nothing_of_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Page, "messages", _without("held"))


def _without(what: str) -> Callable[..., Iterator[RangeTell]]:
    messages = _Page.messages

    def fewer(self: _Page, epoch: int, *, last: bool) -> Iterator[RangeTell]:
        setattr(self, what, [])
        return messages(self, epoch, last=last)

    return fewer


def decide_before_all_have_told(monkeypatch: pytest.MonkeyPatch) -> None:
    tell = Keeper.tell

    def hasty(self: Keeper, sender: int, message: RangeTell) -> None:
        if message.last and message.epoch == self._here.epoch:
            self.missing = {sender}
        tell(self, sender, message)

    monkeypatch.setattr(Keeper, "tell", hasty)


@pytest.mark.parametrize(
    "plant",
    [
        tell_nothing_of_what_waits,
        tell_nothing_of_what_is_lent,
        tell_nothing_of_what_is_held,
        decide_before_all_have_told,
    ],
)
def test_a_bug_in_telling_anew_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "SLICE", 2)
    monkeypatch.setattr(range_user, "NAMES", 1)
    plant(monkeypatch)
    assert any(simulate_ranges(seed).violation for seed in range(60))


def test_everything_that_can_happen_to_a_request_happens() -> None:
    met: set[str] = set()
    recalls = 0
    for seed in range(FIRST_SEED, FIRST_SEED + 6):
        outcome = simulate_ranges(seed, 4, 1.0, NO_FAULTS)
        assert outcome.violation is None, outcome.violation
        met |= outcome.verdicts.keys()
        recalls += outcome.recalls
    assert met >= {"GRANTED", "WOULD_BLOCK", "FREE", "CANCELLED", "DEADLOCK"}
    assert recalls
