"""Ranges in whole simulated clusters: exclusion, no wait forgotten, nothing left over."""

import os

import pytest

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
