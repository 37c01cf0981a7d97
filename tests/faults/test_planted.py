"""Daemons with a planted bug: the check of the histories finds it."""

from collections.abc import Callable

import pytest

from tests.faults.cluster import HostCluster
from tests.faults.rounds import Rounds
from tests.faults.schedule import Fault

ATTEMPTS = 10
QUIET = [Fault("rest", 1, 2, 0.0, 3.0)]
CUT = [Fault("cut", 2, 1, 0.5, 4.0)]

pytestmark = pytest.mark.timeout(1800)


def found(rounds: Rounds, schedule: list[list[Fault]], on: tuple[int, ...]) -> list[str]:
    """Play until something is found."""
    for attempt in range(ATTEMPTS):
        wrong = rounds.play("planted", schedule=schedule, on=on, again=attempt)
        if wrong:
            return wrong
    return []


def test_one_stale_read_is_found(make_hosts: Callable[..., HostCluster]) -> None:
    rounds = Rounds(make_hosts(3, plants={2: "stale_read"}))
    assert "not linearizable" in "".join(found(rounds, [QUIET], ()))


def test_an_answer_before_the_second_replica_has_it_is_found(
    make_hosts: Callable[..., HostCluster],
) -> None:
    rounds = Rounds(make_hosts(3, plants={2: "early_answer"}))
    assert "not linearizable" in "".join(found(rounds, [CUT], (2,)))


def test_without_a_bug_nothing_is_found(make_hosts: Callable[..., HostCluster]) -> None:
    rounds = Rounds(make_hosts(3))
    assert rounds.play("planted", schedule=[QUIET, CUT], on=(2,)) == []
