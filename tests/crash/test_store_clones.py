"""Clones of clones, written, punched, shortened and deleted, through several power cuts."""

import os
import random

import pytest

from clusterfs.sim.clones import CloneTrial, open_clones
from clusterfs.sim.disk import dropped, seeded
from clusterfs.sim.older import as_older
from clusterfs.store.checking import check_brick

pytestmark = pytest.mark.trio
FIRST_SEED = int(os.environ.get("CLUSTERFS_SEED", "0"))
SEEDS = range(FIRST_SEED, FIRST_SEED + (400 if "CLUSTERFS_EXHAUSTIVE" in os.environ else 8))


@pytest.mark.parametrize("seed", SEEDS)
async def test_clones_of_clones_equal_the_model_through_several_lives(seed: int) -> None:
    await live_and_die(await open_clones(seed), seed, lives=4)


@pytest.mark.parametrize("seed", SEEDS)
async def test_clones_of_what_an_older_format_has_equal_the_model(seed: int) -> None:
    """Maps have no numbers there, and nobody counted their blocks."""
    older = await open_clones(seed)
    older.clones = False
    await older.run(12)
    await older.decide_all()
    await older.sync()
    await older.store.checkpoint()
    await older.store.close()
    as_older(older.disk, 2 + seed % 2)
    assert not check_brick(older.disk).problems
    trial = await older.next_life(older.disk, len(older.disk.journal))
    await live_and_die(trial, seed, lives=2)


async def live_and_die(trial: CloneTrial, seed: int, lives: int) -> None:
    """Lose power several times, at the last moment or before; then delete all there is."""
    chooser = random.Random(seed)
    for life in range(lives):
        born = len(trial.disk.journal)
        await trial.run(30)
        await trial.check_live()
        ends = len(trial.disk.journal)
        trial.check_cold(ends, dropped)
        cut = chooser.choice((ends, chooser.randrange(born, ends + 1)))
        brick = trial.disk.crash(cut, seeded(seed * 100 + life))
        await trial.store.close()
        trial = await trial.next_life(brick, cut)
        trial.store.validate()
    await trial.end()
    await trial.store.close()
