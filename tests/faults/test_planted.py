"""Daemons with a planted bug: the check of the histories finds it."""

from collections.abc import Callable

import pytest

from tests.faults.cluster import HostCluster
from tests.faults.rounds import Rounds
from tests.faults.schedule import Fault

ATTEMPTS = 10
BUSY = 20  # operations of each client before anything breaks: then its node has the locks it needs
QUIET = [Fault("rest", 1, 2, 0.0, 3.0)]
CUT = [Fault("cut", 2, 1, 0.5, 4.0)]

pytestmark = pytest.mark.timeout(1800)


def assert_found(rounds: Rounds, schedule: list[list[Fault]], on: tuple[int, ...]) -> None:
    """Play until a history is found that cannot be; nearly always that is the first one."""
    seen: list[str] = []
    for attempt in range(ATTEMPTS):
        try:
            wrong = rounds.play("planted", schedule=schedule, on=on, again=attempt, busy=BUSY)
        except OSError as failure:  # what the round is played on could not even be made
            wrong = [repr(failure)]
        if "not linearizable" in "".join(wrong):
            return
        seen += [f"attempt {attempt}: {line}" for line in wrong or ["nothing is wrong"]]
    pytest.fail("the bug was not found\n" + "\n".join(seen))


def test_one_stale_read_is_found(make_hosts: Callable[..., HostCluster]) -> None:
    assert_found(Rounds(make_hosts(3, plants={2: "stale_read"})), [QUIET], ())


def test_an_answer_before_the_second_replica_has_it_is_found(
    make_hosts: Callable[..., HostCluster],
) -> None:
    assert_found(Rounds(make_hosts(3, plants={2: "early_answer"})), [CUT, CUT], (2,))


def test_without_a_bug_nothing_is_found(make_hosts: Callable[..., HostCluster]) -> None:
    rounds = Rounds(make_hosts(3))
    assert rounds.play("planted", schedule=[QUIET, CUT, CUT], on=(2,), busy=BUSY) == []
