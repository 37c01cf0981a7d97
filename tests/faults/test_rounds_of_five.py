"""The rounds of test_rounds.py on five hosts: not every host has a copy of everything.

(In a file of its own for another processor.)
"""

from collections.abc import Callable

import pytest

from tests.faults.cluster import HostCluster
from tests.faults.rounds import MINUTES, play_for_minutes


@pytest.mark.timeout(MINUTES * 60 + 1800)
def test_histories_of_five_hosts_are_linearizable_and_lose_nothing_synced(
    make_hosts: Callable[..., HostCluster],
) -> None:
    play_for_minutes(make_hosts(5, small_brick_mib=256), 0.4 * MINUTES)
