"""Sectors that cannot be read, and a checkpoint that rots below a running store.

The rest of tests/crash flips bits, which always read. A real medium also says EIO: in a log that is
cleaned, replayed or checked, and in the pages of the checkpoint. None of that may end the process
that holds the brick, and nothing may be taken for a torn tail that was not.
"""

import errno
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import trio

from clusterfs.errors import BrickDamaged, BrickFailed, ChunkCorrupted, SetupError
from clusterfs.sim.bricks import KEY, SMALL, TIGHT
from clusterfs.sim.disk import SimulatedDisk, Written, dropped
from clusterfs.store.checking import check_brick
from clusterfs.store.disk import DirectoryDisk
from clusterfs.store.objects import BLOCK_BYTES, Version, Write, stripe_object
from clusterfs.store.store import Store

pytestmark = pytest.mark.trio

NAME = stripe_object(1, 0)
FAST = 1 << 40
PATIENCE_S = 300
ROOMY = msgspec.structs.replace(SMALL, size_limit_bytes=64 << 20)


def block(number: int) -> bytes:
    return number.to_bytes(8, "little") * (BLOCK_BYTES // 8)


async def put(store: Store, first: int, *numbers: int) -> None:
    data = b"".join(map(block, numbers))
    await store.admit(len(data))
    version = Version(1, store.version(NAME).counter + 1)
    store.replace(NAME, 1, version, (Write(first, len(numbers)),), data)


async def fill(store: Store, blocks: int) -> None:
    for first in range(0, blocks, 4):
        await put(store, first, *range(first + 1, first + 5))
    await store.sync()


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not condition():
            await trio.sleep(0.001)


def logs(disk: SimulatedDisk) -> list[Written]:
    return [event for event in disk.journal if isinstance(event, Written)]


async def no_pace(_: int) -> None:
    await trio.lowlevel.checkpoint()


async def test_the_cleaner_leaves_a_segment_that_it_cannot_read_and_goes_on() -> None:
    disk = SimulatedDisk()
    store = await Store.open(disk, KEY, options=TIGHT)
    await fill(store, 80)
    await store.checkpoint()
    held = {first: first + 1 for first in range(80)}
    live = store._state.chunks.live
    bad = next(s for s in store._segments.used if live.get(s) and s not in store._segments.cold)
    disk.unreadable |= {(bad, at) for at in range(8, 16)}
    await store._cleaner.clean(bad, no_pace)
    assert bad in store._segments.damaged
    chooser = random.Random(1)
    for number in range(1000, 2000):  # more than the brick holds: it has to be cleaned
        first = chooser.randrange(80)
        await put(store, first, number)
        held[first] = number
    assert store.failed is None
    await store.sync()
    disk.cached = False
    lost = 0
    for first, number in held.items():
        try:
            assert await store.read(NAME, first, 1) == block(number)
        except ChunkCorrupted:
            lost += 1
    assert lost <= 8
    store.validate()
    await store.close()


async def test_a_log_that_was_durable_and_cannot_be_read_is_damage() -> None:
    disk = SimulatedDisk()
    store = await Store.open(disk, KEY, options=SMALL)
    await fill(store, 40)
    await until(lambda: store._log.flusher.marked >= store._log.durable)
    victim = logs(disk)[2]
    brick = disk.killed()
    brick.unreadable.add((victim.segment, victim.offset // BLOCK_BYTES))
    events = len(brick.journal)
    with pytest.raises(BrickDamaged, match="was durable"):
        await Store.open(brick, KEY, options=SMALL)
    assert len(brick.journal) == events, "nothing may be truncated or written"
    await store.close()


async def test_an_unreadable_tail_that_nobody_calls_durable_is_torn() -> None:
    disk = SimulatedDisk()
    store = await Store.open(disk, KEY, options=SMALL)
    await fill(store, 8)
    await until(lambda: store._log.flusher.marked >= store._log.durable)
    events = len(disk.journal)
    await put(store, 50, 7)
    store._log.seal()
    await until(lambda: not store._log.backlog)
    torn = logs(disk)[-1]
    brick = disk.crash(len(disk.journal), dropped)
    brick.unreadable.add((torn.segment, torn.offset // BLOCK_BYTES))
    assert len(disk.journal) > events
    again = await Store.open(brick, KEY, options=SMALL)
    assert await again.read(NAME, 0, 8) == b"".join(map(block, range(1, 9)))
    brick.unreadable.clear()  # writing to a bad sector has the drive put a good one there
    await put(again, 50, 8)
    await again.sync()
    assert await again.read(NAME, 50, 1) == block(8)
    await again.close()
    await store.close()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENODEV, errno.ETIMEDOUT])
async def test_of_a_disk_that_is_away_nothing_is_concluded(code: int) -> None:
    disk = SimulatedDisk()
    store = await Store.open(disk, KEY, options=SMALL)
    await fill(store, 40)
    victim = logs(disk)[1]
    brick = disk.killed()
    brick.unreadable.add((victim.segment, victim.offset // BLOCK_BYTES))
    brick.unreadable_errno = code
    events = len(brick.journal)
    with pytest.raises(SetupError, match="nothing is concluded") as refusal:
        await Store.open(brick, KEY, options=SMALL)
    assert not isinstance(refusal.value, BrickDamaged), "nobody may set it aside for that"
    assert len(brick.journal) == events
    brick.unreadable.clear()
    again = await Store.open(brick, KEY, options=SMALL)
    assert await again.read(NAME, 0, 4) == b"".join(map(block, range(1, 5)))
    for opened in (again, store):
        await opened.close()


async def test_fsck_names_what_it_cannot_read() -> None:
    disk = SimulatedDisk()
    store = await Store.open(disk, KEY, options=SMALL)
    await fill(store, 40)
    await store.close()
    victim = logs(disk)[1]
    disk.unreadable.add((victim.segment, victim.offset // BLOCK_BYTES))
    report = check_brick(disk)
    assert (report.exit_code, set(report.counts)) == (4, {"log"})
    data = next(log for log in logs(disk) if len(log.content) > 3 * BLOCK_BYTES)
    disk.unreadable = {(data.segment, data.offset // BLOCK_BYTES + 1)}
    report = check_brick(disk)
    assert report.exit_code == 4
    assert report.counts["data"] >= 1


async def opened_with_a_rotten_chunk_page() -> tuple[SimulatedDisk, Store, list[OSError]]:
    """Return a store that serves, whose second page of the chunk table rotted meanwhile."""
    disk = SimulatedDisk()
    store = await Store.open(disk, KEY, options=SMALL)
    await fill(store, 200)
    await store.close()
    failures: list[OSError] = []
    store = await Store.open(disk, KEY, options=SMALL, on_failed=failures.append)
    table = disk.medium.table
    key = sorted(key for key in table if key.startswith(b"C"))[1]
    table[key] = table[key][:-1] + b"\xff"
    store._opening.table.refresh()
    store._state.chunks._clean.clear()
    return disk, store, failures


async def test_a_scrub_that_meets_a_rotten_page_of_the_checkpoint_ends_and_says_so() -> None:
    _, store, failures = await opened_with_a_rotten_chunk_page()
    store.start_scrub(FAST)
    await until(lambda: not store.scrub_progress()["running"])
    assert store.failed is not None
    assert len(failures) == 1
    assert "damaged" in str(failures[0])
    with pytest.raises(BrickFailed):
        store.set_fact("x", 1)
    store.start_scrub(FAST)  # nobody waits for ever for the end of the next one either
    await until(lambda: not store.scrub_progress()["running"])
    await store.close()


async def test_known_damage_is_counted_although_the_checkpoint_rotted() -> None:
    _, store, failures = await opened_with_a_rotten_chunk_page()
    store._damage.note([70])
    assert store.statistics()["damaged_chunks"] == 1
    assert len(failures) == 1
    await store.close()


async def test_the_dedup_window_is_not_filled_from_a_checkpoint_that_rotted() -> None:
    _, store, failures = await opened_with_a_rotten_chunk_page()
    store._hints._unfilled = iter([0, 1, 2])
    await store._fill_hints()
    assert len(failures) == 1
    await store.close()


async def test_lmdb_pages_that_rot_below_a_running_store_make_it_read_only(tmp_path: Path) -> None:
    failures: list[OSError] = []

    async def opened() -> Store:
        disk = DirectoryDisk(tmp_path, reserve_bytes=0)
        return await Store.open(disk, KEY, options=ROOMY, on_failed=failures.append)

    store = await opened()
    await fill(store, 1000)
    await store.close()
    store = await opened()
    store._state.chunks._clean.clear()
    pages = tmp_path / "checkpoint" / "data.mdb"
    with pages.open("r+b") as file:  # no page but the first two says any more what kind it is
        for at in range(2 * 4096, pages.stat().st_size, 4096):
            file.seek(at)
            file.write(bytes(16))
    with pytest.raises(BrickFailed, match="checkpoint cannot be read"):
        await store.read(NAME, 0, 1)
    assert len(failures) == 1
    store.start_scrub(FAST)
    await until(lambda: not store.scrub_progress()["running"])
    with pytest.raises(BrickFailed):
        store.set_fact("x", 1)
    await store.close()


async def test_a_filesystem_that_answers_nothing_makes_the_brick_read_only() -> None:
    disk = SimulatedDisk()
    failures: list[OSError] = []
    store = await Store.open(disk, KEY, options=SMALL, on_failed=failures.append)

    def away() -> int:
        raise OSError(errno.EIO, "the filesystem was shut down")

    disk.free_bytes = away  # type: ignore[method-assign]
    store._upkeep.poke()
    await until(lambda: store.failed)
    assert len(failures) == 1
    await store.close()
