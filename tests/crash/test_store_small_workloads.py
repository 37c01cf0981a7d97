"""Every workload of up to three operations, cut everywhere: most bugs need no more than that.

Each operation becomes a log of its own. The power is cut after every event, and at every 512 bytes
of each log; of the logs before it that no sync covered, any subset arrived, was lost, or is
garbage. After each cut the brick equals the model after some prefix that has all that was
acknowledged, and fsck finds nothing.

Workloads that begin alike have the same history so far, so each is cut only in its last operation:
the cuts before that are those of the shorter workload. Each is tried on an empty brick, and on one
with something in it all of up to two operations and a third of those with three. With
CLUSTERFS_EXHAUSTIVE=1 (`make soak`) all, with more seeds, and every sector with every fate of the
logs before.
"""

import itertools
import os
import random
from collections.abc import Iterator

import msgspec
import pytest
import trio

from clusterfs.sim.bricks import SMALL, TIGHT, Trial, open_trial
from clusterfs.sim.disk import (
    SECTOR_BYTES,
    Fate,
    Synced,
    Written,
    arrived,
    cut_after,
    dropped,
    seeded,
)

pytestmark = pytest.mark.trio

OPERATIONS = (
    "transact",
    "prepare",
    "decide",
    "note",
    "replace",
    "stabilise",
    "sync",
    "checkpoint",
    "clean",
)
TINY = msgspec.structs.replace(
    SMALL, segment_bytes=64 << 10, size_limit_bytes=1 << 20, cache_bytes=0
)
EXHAUSTIVE = bool(os.environ.get("CLUSTERFS_EXHAUSTIVE"))
STEP = 1 if EXHAUSTIVE else 7
SEED = int(os.environ.get("CLUSTERFS_SEED", "0"))


def workloads(first: str, part: int) -> Iterator[tuple[str, ...]]:
    for length in (0, 1, 2):
        for number, rest in enumerate(itertools.product(OPERATIONS, repeat=length)):
            if length < 2 or number % part == SEED % part:
                yield (first, *rest)


async def run(seed: int, operations: tuple[str, ...], *, empty: bool) -> tuple[Trial, int]:
    """Do them, each in a log of its own; return the trial, and the events before the last."""
    trial = await open_trial(seed, TINY)
    trial.counts = (1, 1, 2)
    if not empty:
        for _ in range(3):
            await trial.transact()
        await trial.prepare()
        await trial.sync()
        await trial.checkpoint()
    born = 0
    for operation in operations:
        born = len(trial.disk.journal)
        await getattr(trial, operation)()
        trial.store._log.seal()
        while trial.store._log.backlog:
            await trio.sleep(0)
    return trial, born


def cuts(trial: Trial, born: int, seed: int) -> Iterator[tuple[int, Fate]]:
    """Yield every (events, fate) worth a look."""
    journal = trial.disk.journal
    for at in range(born, len(journal) + 1):
        pending = unsynced(journal[:at])
        last = journal[at - 1]
        if isinstance(last, Written):
            sectors = len(last.content) // SECTOR_BYTES
            for before in (arrived, dropped, seeded(seed)) if len(pending) > 1 else (arrived,):
                for sector in range(0, sectors + 1, 1 if before is arrived else STEP):
                    yield at, only_last(last, cut_after(sector), before)
        fates = (dropped, arrived, seeded(seed + at))
        for chosen in itertools.product(fates, repeat=min(3, len(pending))):
            yield at, one_after_the_other(chosen)


def unsynced(journal: list[object]) -> list[Written]:
    found: list[Written] = []
    for event in journal:
        if isinstance(event, Written):
            found.append(event)
        elif isinstance(event, Synced):
            found = [write for write in found if write.segment not in event.segments]
    return found


def only_last(last: Written, fate: Fate, before: Fate) -> Fate:
    return lambda write, old: (fate if write is last else before)(write, old)


def one_after_the_other(fates: tuple[Fate, ...]) -> Fate:
    turns = itertools.chain(fates, itertools.repeat(dropped))

    def fate(write: Written, old: bytes) -> bytes:
        return next(turns)(write, old)

    return fate


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(SEED, SEED + (8 if EXHAUSTIVE else 1)))
@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize("first", OPERATIONS)
async def test_every_small_workload_cut_everywhere(first: str, seed: int, *, empty: bool) -> None:
    crashes = 0
    for operations in workloads(first, 1 if empty or EXHAUSTIVE else 3):
        trial, born = await run(seed, operations, empty=empty)
        for at, fate in cuts(trial, born, seed):
            try:
                trial.check_cold(at, fate)
            except AssertionError as error:
                raise AssertionError(f"{operations}, seed {seed}, {at} events: {error}") from error
            crashes += 1
        await trial.store.close()
    assert crashes > 100


@pytest.mark.parametrize("seed", range(SEED, SEED + (200 if EXHAUSTIVE else 6)))
async def test_a_crash_in_the_replay_of_a_crash_and_one_in_a_checkpoint(seed: int) -> None:
    """The second crash comes at every event of the opening and of the checkpoint after it."""
    chooser = random.Random(seed)
    trial = await open_trial(seed, TINY)
    await trial.run(25)
    born = chooser.randrange(8, len(trial.disk.journal))
    brick = trial.disk.crash(born, seeded(seed))
    life = await trial.next_life(brick, born)
    await life.run(3)
    await life.checkpoint()
    await life.run(3)
    for at in range(len(brick.journal) + 1):
        for fate in (dropped, arrived, seeded(seed + at)):
            if at < life.acknowledged[0][0]:
                trial.check_cold_of(brick, at, fate, born)
            else:
                life.check_cold(at, fate)
    for store in (trial.store, life.store):
        await store.close()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(SEED, SEED + (100 if EXHAUSTIVE else 3)))
async def test_long_runs_cut_at_every_sector_of_the_last_logs(seed: int) -> None:
    trial = await open_trial(1000 + seed, (SMALL, TIGHT)[seed % 2])
    await trial.run(150)
    journal = trial.disk.journal
    last = [at for at, event in enumerate(journal, 1) if isinstance(event, Written)][-6:]
    for at in last:
        write = journal[at - 1]
        assert isinstance(write, Written)
        for sector in range(len(write.content) // SECTOR_BYTES + 1):
            for before in (arrived, seeded(seed + at)) if not sector % 5 else (arrived,):
                trial.check_cold(at, only_last(write, cut_after(sector), before))
    chooser = random.Random(seed)
    for _ in range(60):
        at = chooser.randrange(10, len(journal) + 1)
        trial.check_cold(at, seeded(chooser.randrange(1 << 30)))
    await trial.store.close()
