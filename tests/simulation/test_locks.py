import os
import random
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dlm.core.lockspace import LockspaceCore
from dlm.core.master_copy import Copy
from dlm.core.overtaking import OvertakingResource
from dlm.core.resource import Resource
from dlm.effects import Effect
from dlm.events import Event, Lock, Owner
from dlm.sim.faults import CIRCUMSTANCES, KINDS, MOVES, Faults
from dlm.sim.run import short_life, simulate

REGRESSIONS = tomllib.loads(Path(__file__).with_name("regressions.toml").read_text())["locks"]


FIRST_SEED = int(os.environ.get("CLUSTERFS_SEED", "0"))


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + 40))
def test_locks_exclude_survive_and_answer_under_any_faults(seed: int) -> None:
    outcome = simulate(seed, until_s=0.6)
    assert outcome.violation is None, (outcome.violation, *outcome.trace)
    assert outcome.completed


@pytest.mark.parametrize("first", range(20_000 + FIRST_SEED, 22_000 + FIRST_SEED, 250))
def test_short_lives_meet_every_fault_and_nothing_breaks(first: int) -> None:
    met: Counter[str] = Counter()
    for seed in range(first, first + 250):
        outcome = short_life(seed)
        assert outcome.violation is None, (seed, outcome.violation, *outcome.trace)
        met.update(outcome.met)
        met[f"{outcome.nodes} nodes"] += 1
    sizes = [f"{nodes} nodes" for nodes in range(3, 10)]
    assert not [what for what in (*KINDS, *CIRCUMSTANCES, *sizes) if not met[what]], met


@pytest.mark.parametrize("first", range(40_000 + FIRST_SEED, 40_250 + FIRST_SEED, 250))
def test_trees_that_move_all_the_time_break_nothing(first: int) -> None:
    met: Counter[str] = Counter()
    for seed in range(first, first + 250):
        outcome = short_life(seed, migrations=True)
        assert outcome.violation is None, (seed, outcome.violation, *outcome.trace)
        met.update(outcome.met)
    assert met["tree moved"] > 1000
    assert not [what for what in (*KINDS, *MOVES) if not met[what]], met


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
    rules = OvertakingResource if entry.get("rules") == "o2dlm" else Resource
    seed, short = entry["seed"], entry.get("short", False)
    storm = entry.get("migrations", False)
    outcome = (
        short_life(seed, migrations=storm)
        if short or storm
        else simulate(seed, rules=rules, **entry.get("life", {}))
    )
    assert outcome.violation is None, (outcome.violation, *outcome.trace)


@pytest.mark.parametrize("transactions", [False, True])
def test_a_seed_is_a_complete_bug_report(
    monkeypatch: pytest.MonkeyPatch, *, transactions: bool
) -> None:
    """Wherever things lie in memory: by that, sets of locks and of owners are ordered."""
    first, again = (
        _all_that_is_said(monkeypatch, salt, 20, until_s=0.3, transactions=transactions)
        for salt in (1, 2)
    )
    assert len(first) > 100
    assert first == again


def _all_that_is_said(monkeypatch: pytest.MonkeyPatch, salt: int, *seed: int, **life: Any) -> Any:
    handle, dice, said = LockspaceCore.handle, random.Random(salt), []
    known: dict[int, tuple[int, object]] = {}  # by the place in memory, which stays taken

    def listen(core: LockspaceCore, event: Event, now_s: float) -> list[Effect]:
        effects = handle(core, event, now_s)
        said.append(f"{now_s} {core.here.me} {effects}")
        return effects

    def shuffled(thing: object) -> int:
        return known.setdefault(id(thing), (dice.getrandbits(32), thing))[0]

    with monkeypatch.context() as patch:
        patch.setattr(LockspaceCore, "handle", listen)
        for kind in (Lock, Owner, Copy):
            patch.setattr(kind, "__hash__", shuffled)
        outcome = simulate(*seed, **life)
    return *said, outcome


@pytest.mark.parametrize("nodes", [1, 2])
def test_small_clusters(nodes: int) -> None:
    outcome = simulate(3, nodes, until_s=0.5, faults=Faults(crash_interval_s=0.05))
    assert outcome.violation is None, (outcome.violation, *outcome.trace)
