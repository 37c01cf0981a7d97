"""The store's promise under power cuts: what sync acknowledged is there, the rest whole or not."""

import itertools
import os
import random

import pytest
import trio

from clusterfs.sim.bricks import SMALL, TIGHT, Trial, open_trial
from clusterfs.sim.disk import SECTOR_BYTES, Fate, Written, arrived, cut_after, dropped, seeded

pytestmark = pytest.mark.trio
FIRST_SEED = int(os.environ.get("CLUSTERFS_SEED", "0"))


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + 12))
async def test_the_store_equals_the_model_while_it_runs(seed: int) -> None:
    trial = await open_trial(seed)
    for _ in range(8):
        await trial.run(20)
        await trial.check_live()
    await trial.store.close()


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + 10))
async def test_random_cuts_with_lost_torn_and_garbled_writes(seed: int) -> None:
    trial = await open_trial(seed)
    await trial.run(90)
    events = len(trial.disk.journal)
    chooser = random.Random(seed)
    for cut in [events, *(chooser.randrange(1, events) for _ in range(14))]:
        for fate in (dropped, arrived, seeded(seed * 1000 + cut)):
            await trial.check_crash(cut, fate)
    await trial.store.close()


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + 8))
async def test_several_lives_each_ended_by_a_power_cut(seed: int) -> None:
    chooser = random.Random(seed)
    trial = await open_trial(seed, TIGHT if seed % 2 else SMALL)
    for life in range(5):
        born = len(trial.disk.journal)
        await trial.run(40)
        cut = chooser.randrange(born, len(trial.disk.journal) + 1)
        brick = trial.disk.crash(cut, seeded(seed * 100 + life))
        await trial.store.close()
        trial = await trial.next_life(brick, cut)
        trial.store.validate()
    await trial.store.close()


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + 6))
async def test_killed_then_replayed_then_cut_off_from_power(seed: int) -> None:
    """What a replay found must be durable before anything is built on it."""
    trial = await open_trial(seed)
    await trial.run(60)
    brick = trial.disk.killed()
    events = len(brick.journal)
    life = await trial.next_life(brick, events)
    await life.store.sync()
    opened = len(brick.journal)
    await life.run(10)
    await life.check_crash(opened, dropped)
    for cut in range(events, opened):  # in the middle of the replay
        other = await trial.next_life(brick.crash(cut, dropped), cut)
        await other.store.close()
    for store in (trial.store, life.store):
        await store.close()


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + 6))
async def test_cuts_while_the_cleaner_moves_chunks(seed: int) -> None:
    trial = await open_trial(seed, TIGHT)
    while trial.store.statistics()["relocated_blocks"] < 40:
        await trial.run(30)
    events = len(trial.disk.journal)
    for cut in range(max(1, events - 40), events + 1, 3):
        await trial.check_crash(cut, seeded(seed + cut))
    await trial.check_live()
    await trial.store.close()


async def test_every_event_and_every_sector_of_a_short_workload() -> None:
    trial = await open_trial(4)
    await trial.run(14)
    await trial.store.checkpoint()
    await trial.run(8)
    for cut in range(1, len(trial.disk.journal) + 1):
        last = trial.disk.journal[cut - 1]
        sectors = len(last.content) // SECTOR_BYTES if isinstance(last, Written) else 0
        for sector in range(sectors + 1):
            await trial.check_crash(cut, cut_after(sector))
    await trial.store.close()


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + 3))
async def test_every_subset_of_the_last_unsynced_writes(seed: int) -> None:
    """B3-like: small workloads, all of lost, arrived and garbled for each pending write."""
    trial = await open_trial(100 + seed)
    for _ in range(3):
        await trial.transact()
        trial.store._log.seal()
    await trial.sync()
    for _ in range(4):
        await trial.transact()
        trial.store._log.seal()
    await wait_all_written(trial)
    events = len(trial.disk.journal)
    for fates in itertools.product((dropped, arrived, seeded(seed)), repeat=5):
        await trial.check_crash(events, one_after_the_other(fates))
    await trial.store.close()


def one_after_the_other(fates: tuple[Fate, ...]) -> Fate:
    turns = itertools.chain(fates, itertools.repeat(dropped))

    def fate(write: Written, old: bytes) -> bytes:
        return next(turns)(write, old)

    return fate


async def wait_all_written(trial: Trial) -> None:
    while trial.store._log.backlog:
        await trio.sleep(0)
