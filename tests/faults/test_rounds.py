"""Clients on all hosts share files while hosts, links, daemons, etcd fail; histories are checked.

Seeded: round after round from `CLUSTERFS_SEED` (default 0), for `CLUSTERFS_FAULT_MINUTES` minutes
in this file and test_rounds_of_five.py together (if that is set, nodes that reach etcd are parted
from each other, too). A failing round is named, and leaves everything in
`build/faults`; `CLUSTERFS_FAULT_ROUND=NAME` plays that one alone, over and over.
"""

from collections.abc import Callable

import pytest

from tests.faults.cluster import HostCluster
from tests.faults.rounds import MINUTES, play_for_minutes


@pytest.mark.timeout(MINUTES * 60 + 1800)
def test_histories_are_linearizable_and_lose_nothing_synced(
    make_hosts: Callable[..., HostCluster],
) -> None:
    play_for_minutes(make_hosts(3, small_brick_mib=256), 0.6 * MINUTES)
