"""Dedup: sparse images and clones cost almost nothing, similar guests share, memory is bounded."""

import random

import pytest

from clusterfs.sim.bricks import KEY, SMALL
from clusterfs.sim.disk import SimulatedDisk
from clusterfs.store.objects import BLOCK_BYTES, STRIPE_BLOCKS, Version, Write, stripe_object
from clusterfs.store.opening import Options
from clusterfs.store.store import Store

pytestmark = pytest.mark.trio

_BLOCKS = 20 << 30 >> 12
ROOM = Options(
    segment_bytes=1 << 20, log_bytes=1 << 18, size_limit_bytes=64 << 20, hints=1 << 16, buffers=8
)


async def write(store: Store, inode: int, first: int, data: bytes | bytearray) -> None:
    """Write blocks of a file, wherever in its stripes."""
    name = stripe_object(inode, first // STRIPE_BLOCKS)
    version = store.version(name).after(1)
    await store.admit(len(data))
    blocks = len(data) // BLOCK_BYTES
    store.replace(name, 1, version, (Write(first % STRIPE_BLOCKS, blocks),), data)


async def test_a_sparse_image_and_its_copy_cost_almost_nothing() -> None:
    """20 GiB, of which 2 MiB here and there are data."""
    store = await Store.open(SimulatedDisk(), KEY, options=ROOM)
    chooser = random.Random(1)
    islands = {at: chooser.randbytes(16 * BLOCK_BYTES) for at in range(0, _BLOCKS, _BLOCKS // 32)}
    for first, data in islands.items():
        await write(store, 1, first, data)
    written = store.statistics()["log_bytes_written"]
    nothing = memoryview(bytes(4 << 20))
    for first in range(0, _BLOCKS, 1024):  # the copy writes everything, zeros too
        data = islands.get(first, b"")
        await write(store, 2, first, b"".join((data, nothing[len(data) :])))
    found = store.statistics()
    assert found["unique_blocks"] == 32 * 16
    assert found["logical_blocks"] == 2 * 32 * 16
    assert found["zero_blocks"] == _BLOCKS - 32 * 16
    assert found["log_bytes_written"] - written < 40 << 20, "a record for each write, no data"
    store.validate()
    await store.close()


async def test_ten_guests_share_what_they_share() -> None:
    """Images of one distribution, each with its own files in between; then all of them updated."""
    chooser = random.Random(2)
    base = [chooser.randbytes(BLOCK_BYTES) for _ in range(300)]
    update = [chooser.randbytes(BLOCK_BYTES) for _ in range(50)]
    store = await Store.open(SimulatedDisk(), KEY, options=ROOM)
    different = set()
    for guest in range(10):
        image = list(base)
        for _ in range(20):
            image[chooser.randrange(300)] = chooser.randbytes(BLOCK_BYTES)
        different |= set(image)
        await write(store, guest, 0, b"".join(image))
    found = store.statistics()
    assert found["logical_blocks"] == 3000
    assert found["unique_blocks"] == len(different)
    assert found["shared_blocks"] == 3000 - found["unique_blocks"]
    hits = found["deduplicated_blocks"]
    assert hits / (hits + found["new_blocks"]) == pytest.approx(1 - found["unique_blocks"] / 3000)
    for guest in range(10):
        await write(store, guest, 100, b"".join(update))
    assert store.statistics()["new_blocks"] == found["new_blocks"] + 50
    store.validate()
    await store.close()


async def test_the_window_finds_the_newest_after_a_restart_and_no_more_than_it_holds() -> None:
    disk = SimulatedDisk()
    chooser = random.Random(3)
    blocks = [chooser.randbytes(BLOCK_BYTES) for _ in range(2000)]
    small = SMALL.__class__(
        segment_bytes=1 << 20,
        log_bytes=1 << 18,
        size_limit_bytes=64 << 20,
        hints=1024,
        buffers=8,
    )
    store = await Store.open(disk, KEY, options=small)
    for at in range(0, 2000, 100):
        await write(store, 1, at, b"".join(blocks[at : at + 100]))
    assert store.statistics()["hints"] <= 1024
    await store.close()
    store = await Store.open(disk, KEY, options=small)
    await write(store, 2, 0, b"".join(blocks[:100]) + b"".join(blocks[1900:]))
    found = store.statistics()
    assert found["hints_bytes"] == 12 * 1024
    assert found["new_blocks"] >= 100, "the oldest are out of the window"
    assert found["deduplicated_blocks"] > 80, "the newest are in it"
    assert found["unique_blocks"] == 2000 + found["new_blocks"]
    store.validate()
    await store.close()


async def test_a_stored_block_is_read_as_it_was_however_it_was_shared() -> None:
    store = await Store.open(SimulatedDisk(), KEY, options=ROOM)
    half = bytes(2048)
    odd = [half + b"\1" * 2048, b"\1" * 2048 + half, b"\0" + b"\1" * 4094 + b"\0", bytes(4096)]
    data = b"".join(odd)
    await write(store, 1, 0, data)
    store.replace(stripe_object(2, 0), 1, Version(1, 1), (Write(0, 4),), data)
    assert await store.read(stripe_object(2, 0), 0, 4) == data
    found = store.statistics()
    assert (found["unique_blocks"], found["zero_blocks"]) == (3, 2)
    await store.close()
