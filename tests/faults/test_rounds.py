"""Clients on all hosts share files while hosts, links, daemons, etcd fail; histories are checked.

Seeded: round after round from `CLUSTERFS_SEED` (default 0), for `CLUSTERFS_FAULT_MINUTES` minutes.
A failing round is named; `CLUSTERFS_FAULT_ROUND=NAME` plays that one alone, over and over.
"""

import os
import time
from collections.abc import Callable

import pytest

from tests.faults.cluster import HostCluster
from tests.faults.rounds import Rounds

SEED = os.environ.get("CLUSTERFS_SEED", "0")
MINUTES = float(os.environ.get("CLUSTERFS_FAULT_MINUTES", "6"))
ONLY = os.environ.get("CLUSTERFS_FAULT_ROUND")
SHARES = {3: 0.6, 5: 0.4}  # of the time, by the number of hosts


@pytest.mark.timeout(MINUTES * 60 + 1800)
@pytest.mark.parametrize("hosts", SHARES)
def test_histories_are_linearizable_and_lose_nothing_synced(
    make_hosts: Callable[..., HostCluster], hosts: int
) -> None:
    rounds = Rounds(make_hosts(hosts, small_brick_mib=256))
    end_s = time.monotonic() + MINUTES * 60 * SHARES[hosts]
    number = 0
    while time.monotonic() < end_s:
        name = ONLY or f"{SEED}-{hosts}-{number}"
        wrong = rounds.play(name, again=number if ONLY else 0)
        assert not wrong, "\n".join([f"round {name}", *wrong])
        number += 1
    print(f"{number} rounds, {rounds.operations} operations, faults: {dict(rounds.kinds)}")
    print(
        f"{rounds.checked} histories, {rounds.undecided} too hard to check, "
        f"{rounds.apart} of names checked name by name"
    )
    print(f"errors that programs saw: {dict(rounds.errors)}")
    assert number
    assert rounds.operations > 100, "hardly anything was done"
    assert rounds.undecided <= rounds.checked / 4, "too many histories are too hard to check"
