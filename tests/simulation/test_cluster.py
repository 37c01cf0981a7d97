"""Whole clusters in one thread: what clients saw must be explainable, whatever happened."""

import os
from collections import Counter
from collections.abc import Callable

import pytest

from clusterfs.sim.cluster_story import KINDS, Broken, Story
from clusterfs.sim.cluster_world import World, run_world

FIRST_SEED = int(os.environ.get("CLUSTERFS_SEED", "0"))
SEEDS = 100
CHUNK = 25


def live(seed: int) -> Story:
    """Let the seed's story happen; raises what it finds."""
    told: list[Story] = []

    async def tell(world: World) -> None:
        told.append(Story(world))
        await told[0].tell()

    run_world(seed, tell)
    return told[0]


@pytest.mark.parametrize("first", range(FIRST_SEED, FIRST_SEED + SEEDS, CHUNK))
def test_everything_that_clients_saw_can_be_explained(first: int) -> None:
    met: Counter[str] = Counter()
    for seed in range(first, first + CHUNK):
        try:
            met.update(live(seed).met)
        except BaseException as failure:
            failure.add_note(f"seed {seed}")
            raise
    assert not [kind for kind in KINDS if not met[kind]], met


def test_a_seed_is_a_complete_bug_report() -> None:
    assert live(1).records == live(1).records
