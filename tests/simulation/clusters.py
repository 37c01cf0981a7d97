"""Whole simulated clusters by their seeds: what clients saw must be explainable."""

import os
from collections import Counter
from collections.abc import Sequence

from clusterfs.sim.cluster_story import KINDS, Story
from clusterfs.sim.cluster_world import World, run_world

FIRST_SEED = int(os.environ.get("CLUSTERFS_SEED", "0"))
CHUNK = 25


def live(seed: int, kinds: Sequence[str] = KINDS) -> Story:
    """Let the seed's story happen; raises what it finds."""
    told: list[Story] = []

    async def tell(world: World) -> None:
        told.append(Story(world, kinds))
        await told[0].tell()

    run_world(seed, tell)
    return told[0]


def live_through(first: int, kinds: Sequence[str] = KINDS) -> None:
    """Let the stories of a chunk of seeds happen; every kind of fault must be met in them."""
    met: Counter[str] = Counter()
    for seed in range(first, first + CHUNK):
        try:
            met.update(live(seed, kinds).met)
        except BaseException as failure:
            failure.add_note(f"seed {seed}")
            raise
    assert not [kind for kind in kinds if not met[kind]], met
