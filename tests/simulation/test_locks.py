import os
import tomllib
from pathlib import Path
from typing import Any

import pytest

from dlm.core.overtaking import OvertakingResource
from dlm.sim.run import simulate
from dlm.sim.world import Faults

REGRESSIONS = tomllib.loads(Path(__file__).with_name("regressions.toml").read_text())["locks"]


FIRST_SEED = int(os.environ.get("CLUSTERFS_SEED", "0"))


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + 40))
def test_locks_exclude_survive_and_answer_under_any_faults(seed: int) -> None:
    outcome = simulate(seed, until_s=0.6)
    assert outcome.violation is None, (outcome.violation, *outcome.trace)
    assert outcome.completed


@pytest.mark.parametrize("first", range(10_000 + FIRST_SEED, 10_800 + FIRST_SEED, 100))
def test_a_hundred_short_lives(first: int) -> None:
    for seed in range(first, first + 100):
        outcome = simulate(seed, until_s=0.15, calm_s=0.05)
        assert outcome.violation is None, (seed, outcome.violation, *outcome.trace)


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + 20))
def test_every_deadlock_is_found_and_nothing_else_under_any_faults(seed: int) -> None:
    outcome = simulate(seed, until_s=0.6, transactions=True)
    assert outcome.violation is None, (outcome.violation, *outcome.trace)
    assert outcome.completed


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + 5))
def test_the_rules_of_o2dlm_hold_under_any_faults(seed: int) -> None:
    outcome = simulate(seed, until_s=0.6, transactions=True, rules=OvertakingResource)
    assert outcome.violation is None, (outcome.violation, *outcome.trace)
    assert outcome.completed


@pytest.mark.parametrize("entry", REGRESSIONS, ids=lambda entry: str(entry["seed"]))
def test_fixed_bugs_stay_fixed(entry: dict[str, Any]) -> None:
    outcome = simulate(entry["seed"], **entry.get("life", {}))
    assert outcome.violation is None, (outcome.violation, *outcome.trace)


def test_a_seed_is_a_complete_bug_report() -> None:
    assert simulate(7, until_s=0.3) == simulate(7, until_s=0.3)


@pytest.mark.parametrize("nodes", [1, 2])
def test_small_clusters(nodes: int) -> None:
    outcome = simulate(3, nodes, until_s=0.5, faults=Faults(crash_interval_s=0.05))
    assert outcome.violation is None, (outcome.violation, *outcome.trace)
