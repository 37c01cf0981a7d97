"""Power cuts while the cleaner moves and packs, while a checkpoint is taken, and in transactions
that are longer than a segment; after each the store equals the model, and fsck is clean."""

import msgspec
import pytest
import trio

from clusterfs.sim.bricks import SMALL, TIGHT, Trial, open_trial
from clusterfs.sim.disk import (
    SECTOR_BYTES,
    Committed,
    Fate,
    SimulatedDisk,
    Synced,
    Written,
    arrived,
    cut_after,
    dropped,
    seeded,
)
from clusterfs.store.format import parse_header
from clusterfs.store.location import is_packed
from clusterfs.store.objects import BLOCK_BYTES, stripe_object
from clusterfs.store.packing import Codec
from clusterfs.store.tail import CLEANER, USER

pytestmark = pytest.mark.trio

BLOCKS = 22  # of each of five objects: with 24 payload blocks to a segment, five segments


def writes(disk: SimulatedDisk, since: int = 0) -> list[Written]:
    return [event for event in disk.journal[since:] if isinstance(event, Written)]


def stream_of(write: Written) -> int:
    header = parse_header(write.content[:BLOCK_BYTES], write.content[16:32])
    assert header is not None
    return header.stream


async def until_written(trial: Trial) -> None:
    while trial.store._log.backlog:
        await trio.sleep(0)


@pytest.mark.parametrize(("seed", "codec"), [(1, "lz4"), (2, "zstd"), (3, "off")])
async def test_cuts_while_the_cleaner_moves_and_packs(seed: int, codec: Codec) -> None:
    trial = await open_trial(seed, msgspec.structs.replace(TIGHT, compression=codec))
    while trial.store.statistics()["relocated_blocks"] < 60:
        await trial.run(30)
    await trial.sync()
    assert bool(trial.store.statistics()["packed_blocks"]) == (codec != "off")
    assert {stream_of(write) for write in writes(trial.disk)} == {USER, CLEANER}
    chunks = trial.store._state.chunks
    locations = [page.locations[slot] for _, page in chunks.pages() for slot in range(64)]
    assert any(map(is_packed, locations)) == (codec != "off")
    events = len(trial.disk.journal)
    for cut in range(max(1, events - 60), events + 1, 4):
        for fate in (dropped, seeded(seed + cut)):
            trial.check_cold(cut, fate)
    await trial.check_live()
    await trial.store.close()


async def test_cuts_around_every_commit_of_a_checkpoint() -> None:
    trial = await open_trial(5)
    for _ in range(4):
        await trial.run(12)
        await trial.checkpoint()
    journal = trial.disk.journal
    commits = [at for at, event in enumerate(journal) if isinstance(event, Committed)]
    assert len(commits) >= 4
    for at in commits:
        for cut in (at, at + 1):
            for fate in (dropped, arrived, seeded(at)):
                trial.check_cold(cut, fate)
    await trial.store.close()


async def test_a_transaction_over_several_segments_is_there_whole_or_not_at_all() -> None:
    trial = await open_trial(6)
    await trial.run(10)
    await trial.sync()
    begun = len(trial.disk.journal)
    await trial.write_all(BLOCKS)
    await until_written(trial)
    logs = writes(trial.disk, begun)
    assert len({log.segment for log in logs}) >= 4
    for cut in range(begun, len(trial.disk.journal) + 1):
        for fate in (dropped, arrived, seeded(cut)):
            trial.check_cold(cut, fate)
    for log in (logs[0], logs[-1]):  # every sector of the first and of the last piece
        cut = trial.disk.journal.index(log) + 1
        for sectors in range(0, len(log.content) // SECTOR_BYTES + 1, 3):
            trial.check_cold(cut, all_but(log, cut_after(sectors)))
    await trial.sync()
    trial.check_cold(len(trial.disk.journal), dropped)
    await trial.store.close()


def all_but(log: Written, its_fate: Fate) -> Fate:
    """Return a fate: everything arrived but this log, which has one of its own."""

    def fate(write: Written, old: bytes) -> bytes:
        return its_fate(write, old) if write is log else write.content

    return fate


async def test_atomicity_costs_no_second_write_of_the_data() -> None:
    trial = await open_trial(7)
    begun = len(trial.disk.journal)
    payload = await trial.write_all(BLOCKS)
    await trial.sync()
    written = b"".join(write.content for write in writes(trial.disk, begun))
    for at in range(0, len(payload), BLOCK_BYTES):
        assert written.count(payload[at : at + BLOCK_BYTES]) == 1
    # One header block for seven of payload in logs as small as these, and the records.
    assert len(written) <= len(payload) * 8 / 7 + 8 * BLOCK_BYTES
    assert sum(isinstance(event, Synced) for event in trial.disk.journal[begun:]) == 1
    await trial.store.close()


@pytest.mark.parametrize("codec", ["off", "lz4"])
async def test_cuts_while_a_long_transaction_is_cleaned_and_another_one_is_written(
    codec: Codec,
) -> None:
    trial = await open_trial(8, msgspec.structs.replace(SMALL, compression=codec))
    await trial.write_all(BLOCKS)
    await trial.checkpoint()
    await trial.run(12)  # some of it dies
    while trial.model.prepared:  # and holds objects
        await trial.decide()
    await trial.checkpoint()
    begun = len(trial.disk.journal)
    chunks, segments = trial.store._state.chunks, trial.store._segments
    victims = [segment for segment in segments.used if chunks.live.get(segment)]
    assert len(victims) >= 4
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clean_all, trial, victims)
        for _ in range(2):
            await trial.write_all(BLOCKS // 2)
            await trio.sleep(0)
    await trial.sync()
    assert trial.store.statistics()["relocated_blocks"] > BLOCKS
    assert {stream_of(write) for write in writes(trial.disk, begun)} == {USER, CLEANER}
    await trial.checkpoint()
    for cut in range(begun, len(trial.disk.journal) + 1):
        trial.check_cold(cut, dropped)
        trial.check_cold(cut, seeded(cut))
    await trial.check_live()
    await trial.store.close()


@pytest.mark.parametrize("cached", [True, False], ids=["page cache", "disk"])
async def test_packed_chunks_read_right_alone_and_in_rows_from_cache_and_disk(cached: bool) -> None:  # noqa: FBT001
    options = msgspec.structs.replace(SMALL, compression="zstd", cache_bytes=0)
    trial = await open_trial(9, options)
    payload = await trial.write_all(BLOCKS)
    await trial.checkpoint()
    await clean_all(trial, list(trial.store._segments.used))
    await trial.sync()
    await until_written(trial)
    assert trial.store.statistics()["packed_blocks"]
    trial.disk.cached = cached
    for number in range(5):
        object_id = stripe_object(7, number)
        wanted = payload[number * BLOCKS * BLOCK_BYTES : (number + 1) * BLOCKS * BLOCK_BYTES]
        assert await trial.store.read(object_id, 0, BLOCKS) == wanted
        for first in range(BLOCKS):
            end = min(BLOCKS, first + 1 + first % 3)
            found = await trial.store.read(object_id, first, end - first)
            assert found == wanted[first * BLOCK_BYTES : end * BLOCK_BYTES]
    await trial.store.close()


async def clean_all(trial: Trial, victims: list[int]) -> None:
    for segment in victims:
        while len(trial.store._segments.ready) < 3:
            trial.store._upkeep.poke()
            await trio.sleep(0.001)
        await trial.store._cleaner.clean(segment, no_pace)


async def no_pace(_: int) -> None:
    await trio.lowlevel.checkpoint()
