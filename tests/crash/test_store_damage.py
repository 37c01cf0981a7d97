"""Rot on the medium: found by reads and the scrub, never shared, healed with a replica's data."""

from array import array

import pytest
import trio

from clusterfs.errors import BrickFailed, ChunkCorrupted
from clusterfs.sim.bricks import KEY, SMALL
from clusterfs.sim.disk import SimulatedDisk
from clusterfs.store import scrubbing
from clusterfs.store.checking import check_brick
from clusterfs.store.location import place_of
from clusterfs.store.objects import BLOCK_BYTES, Discard, ObjectId, Version, Write, stripe_object
from clusterfs.store.store import LOST_IDENTITY, Store

pytestmark = pytest.mark.trio

FAST = 1 << 40
NAME, OTHER = stripe_object(1, 0), stripe_object(2, 0)


def block(number: int) -> bytes:
    return number.to_bytes(8, "little") * (BLOCK_BYTES // 8)


async def store_with(disk: SimulatedDisk, blocks: int) -> Store:
    store = await Store.open(disk, KEY, options=SMALL)
    for first in range(0, blocks, 4):
        await store.admit(4 * BLOCK_BYTES)
        put(store, NAME, first, *range(first + 1, first + 5))
    await store.admit(BLOCK_BYTES)
    put(store, OTHER, 0, 3)  # shares a chunk with NAME
    await store.sync()
    await until_written(store)
    return store


def put(store: Store, name: ObjectId, first: int, *numbers: int) -> None:
    version = Version(1, store.version(name).counter + 1)
    data = b"".join(map(block, numbers))
    store.replace(name, 1, version, (Write(first, len(numbers)),), data)


async def until_written(store: Store) -> None:
    while store._log.backlog:
        await trio.sleep(0)


def rot(disk: SimulatedDisk, store: Store, number: int) -> int:
    """Flip a bit of a block of NAME; return its chunk's number."""
    cid = store._state.cids(NAME, number, 1)[0]
    found = store._state.chunks.find(cid)
    assert found is not None
    segment, offset, _ = place_of(found[0])
    disk.rot(segment, offset + 100)
    return int(cid)


async def scrubbed(store: Store) -> dict[str, int | float | bool | None]:
    passes = store.scrub_progress()["passes"]
    store.start_scrub(FAST)
    with trio.fail_after(300):
        while store.scrub_progress()["passes"] == passes:
            await trio.sleep(0.001)
    return store.scrub_progress()


async def test_the_scrub_reads_every_chunk_and_finds_what_rotted() -> None:
    disk = SimulatedDisk()
    store = await store_with(disk, 40)
    found = await scrubbed(store)
    assert (found["checked_chunks"], found["damaged"], store.damaged()) == (40, 0, 0)
    assert (found["running"], found["eta_s"]) == (False, None)
    rotten = {rot(disk, store, 2), rot(disk, store, 17)}
    assert (await scrubbed(store))["damaged"] == 2
    assert store._damage.cids == rotten
    places = await store.damaged_blocks(10)
    assert sorted(places) == [(NAME, 2), (NAME, 17)]
    identity = dict(store.blocks(NAME))[2]
    assert not store.has_chunk(identity), "a damaged chunk is not shared"
    await store.close()


async def test_good_data_heals_a_chunk_for_all_who_refer_to_it() -> None:
    disk = SimulatedDisk()
    store = await store_with(disk, 8)
    rot(disk, store, 2)
    for name, number in ((NAME, 2), (OTHER, 0)):
        with pytest.raises(ChunkCorrupted, match=f"object {name.hex()}, blocks {number}"):
            await store.read(name, number, 1)
    assert not store.heal(NAME, 2, block(99)), "only what was there"
    assert store.heal(NAME, 2, block(3))
    assert store.heal(NAME, 2, block(3)), "once is enough"
    await store.sync()
    assert await store.read(OTHER, 0, 1) == await store.read(NAME, 2, 1) == block(3)
    assert (store.damaged(), store.statistics()["damage_healed"]) == (0, 1)
    assert store.has_chunk(dict(store.blocks(NAME))[2])
    store.validate()
    await store.checkpoint()  # or replay would need the log that rotted
    again = await Store.open(disk.killed(), KEY, options=SMALL)
    assert await again.read(OTHER, 0, 1) == block(3)
    again.validate()
    for opened in (again, store):
        await opened.close()
    report = check_brick(disk)
    assert report.counts["data"] == 0


async def test_a_chunk_that_died_is_no_damage_any_more() -> None:
    disk = SimulatedDisk()
    store = await store_with(disk, 8)
    rot(disk, store, 5)
    with pytest.raises(ChunkCorrupted):
        await store.read(NAME, 5, 1)
    assert store.damaged() == 1
    put(store, NAME, 5, 77)
    assert store.damaged() == 0
    await store.close()


async def test_the_scrub_goes_on_where_it_was_after_a_restart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scrubbing, "_BATCH_PAGES", 1)
    disk = SimulatedDisk()
    store = await store_with(disk, 200)
    store.start_scrub(2 * BLOCK_BYTES)  # after a page it waits for half a minute
    while not store.scrub_progress()["checked_chunks"]:
        await trio.sleep(0.001)
    progress = store.scrub_progress()
    assert progress["running"]
    assert isinstance(progress["part"], float)
    assert 0 < progress["part"] < 1
    assert isinstance(progress["eta_s"], float)
    assert progress["eta_s"] > 0.3
    checked = progress["checked_chunks"]
    await store.close()
    store = await Store.open(disk, KEY, options=SMALL)
    later = store.scrub_progress()
    assert later["running"]
    assert later["checked_chunks"] == checked
    store.stop_scrub()
    stopped = store.scrub_progress()["part"]
    assert stopped
    store.start_scrub(FAST)
    assert store.scrub_progress()["part"] == stopped, "it goes on, it does not begin anew"
    while not store.scrub_progress()["passes"]:
        await trio.sleep(0.001)
    assert store.scrub_progress()["checked_chunks"] == 200
    await store.close()


async def test_the_scrub_looks_up_seldom_which_pages_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """It did so for every batch, at the cost of looking at all that is changed in memory."""
    store = await store_with(SimulatedDisk(), 400)
    monkeypatch.setattr(scrubbing, "_BATCH_PAGES", 1)
    chunks = store._state.chunks
    looked: list[int] = []
    numbers = chunks.numbers

    def counted(first: int = 0, limit: int = 1 << 60) -> "array[int]":
        looked.append(first)
        return numbers(first, limit)

    monkeypatch.setattr(chunks, "numbers", counted)
    assert (await scrubbed(store))["checked_chunks"] == 400
    assert len(looked) == 2, "once for all of them, and once at the end"
    monkeypatch.setattr(scrubbing, "_LOOK_AHEAD_PAGES", 2)
    assert (await scrubbed(store))["checked_chunks"] == 400
    monkeypatch.setattr(scrubbing, "_LOOK_AHEAD_PAGES", 4096)
    store.start_scrub(1)  # waits for long after its first batch
    with trio.fail_after(300):
        while not store.scrub_progress()["part"]:
            await trio.sleep(0.001)
    version = Version(1, store.version(NAME).counter + 1)
    store.replace(NAME, 1, version, (Discard(100, 200),))  # pages that it knows die
    await store.checkpoint()
    store.start_scrub(FAST)
    with trio.fail_after(300):
        while store.scrub_progress()["running"]:
            await trio.sleep(0.001)
    assert store.damaged() == 0
    await store.close()


async def test_the_scrub_walks_the_checkpoint_too() -> None:
    disk = SimulatedDisk()
    store = await store_with(disk, 8)
    await store.checkpoint()
    table = disk.medium.table
    key = next(key for key in table if key.startswith(b"O"))  # no later checkpoint rewrites it
    table[key] = table[key][:-1] + b"\xff"
    await scrubbed(store)
    assert store.failed is not None
    with pytest.raises(BrickFailed):
        store.set_fact("x", 1)
    await store.close()


async def test_a_block_whose_chunk_is_gone_is_an_error_and_can_be_written() -> None:
    disk = SimulatedDisk()
    store = await store_with(disk, 70)
    await store.close()
    key = min(k for k in disk.medium.table if k.startswith(b"C"))
    disk.open_table().commit([(key, None)])
    assert check_brick(disk).counts["lost chunk"] == 64
    assert check_brick(disk, repair=True).exit_code == 4
    store = await Store.open(disk, KEY, options=SMALL)
    store.validate()
    with pytest.raises(ChunkCorrupted, match=f"object {NAME.hex()}, blocks 0 to 1: chunk"):
        await store.read(NAME, 0, 2)
    assert store.damaged() == 2
    assert sorted(await store.damaged_blocks(9)) == [(NAME, 0), (NAME, 1)]
    assert store.blocks(NAME)[0] == (0, LOST_IDENTITY)
    put(store, NAME, 0, 1, 2, 3)
    assert await store.read(NAME, 0, 3) == block(1) + block(2) + block(3)
    assert await store.damaged_blocks(9) == []
    store.validate()
    await store.close()
    store = await Store.open(disk, KEY, options=SMALL)
    store.validate()
    await store.close()
    report = check_brick(disk)
    assert report.counts == {"lost block": 61}


async def reopened(store: Store, disk: SimulatedDisk) -> Store:
    await store.checkpoint()  # replay would find the damage, and refuse the brick
    await store.sync()
    await until_written(store)
    killed = disk.killed()
    await store.close()
    return await Store.open(killed, KEY, options=SMALL)


async def test_a_damaged_chunk_is_not_shared_after_a_restart_either() -> None:
    """It was known to one process only: the next one had a backup refer to the damaged chunk."""
    disk = SimulatedDisk()
    store = await store_with(disk, 8)
    cid = rot(disk, store, 5)
    with pytest.raises(ChunkCorrupted):
        await store.read(NAME, 5, 1)
    store = await reopened(store, disk)
    put(store, NAME, 5, 6)  # what was there
    assert store._state.cids(NAME, 5, 1)[0] != cid
    assert await store.read(NAME, 0, 8) == b"".join(map(block, range(1, 9)))
    assert store.damaged() == 0, "nothing refers to it any more"
    store = await reopened(store, store._disk)  # type: ignore[arg-type]
    assert store.fact("damage") is None
    await store.close()


async def test_what_was_damaged_and_reads_well_again_is_forgotten() -> None:
    disk = SimulatedDisk()
    store = await store_with(disk, 8)
    cid, other = rot(disk, store, 5), rot(disk, store, 2)
    for number in (2, 5):
        with pytest.raises(ChunkCorrupted):
            await store.read(NAME, number, 1)
    rot(disk, store, 5)  # the bit flips back
    store = await reopened(store, disk)
    assert store.statistics()["damage_found"] == 0
    with trio.fail_after(300):
        while cid in store._damage.cids:
            await trio.sleep(0.001)
    assert store._damage.cids == {other}
    assert await store.read(NAME, 5, 1) == block(6)
    assert store.heal(NAME, 2, block(3))
    assert store.fact("damage") is None
    await store.close()
