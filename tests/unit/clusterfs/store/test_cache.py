"""The chunk cache: bounded, fair to what is used again, deaf to scans; and the store reads it."""

import msgspec
import pytest

from clusterfs.errors import WouldBlock
from clusterfs.sim.bricks import KEY, SMALL
from clusterfs.sim.disk import SimulatedDisk
from clusterfs.store.cache import _COST_BYTES, ChunkCache
from clusterfs.store.objects import BLOCK_BYTES, Version, Write, stripe_object
from clusterfs.store.store import Store

CACHING = msgspec.structs.replace(SMALL, cache_bytes=64 << 20)
pytestmark = pytest.mark.trio


def block(cid: int) -> bytes:
    return cid.to_bytes(8, "little") * (BLOCK_BYTES // 8)


def read(cache: ChunkCache, cid: int) -> bool:
    """Read as the store does; tell whether it was a hit."""
    if cache.get(cid) == block(cid):
        return True
    cache.offer(cid, memoryview(block(cid)))
    return False


async def test_it_is_bounded_and_keeps_what_is_used() -> None:
    cache = ChunkCache(10 * _COST_BYTES)
    for cid in range(1, 11):
        assert not read(cache, cid)
    assert all(read(cache, cid) for cid in range(1, 11))
    for cid in range(100, 200):
        read(cache, cid)
        read(cache, cid)
        assert read(cache, 3), "used all the time"
        assert len(cache) <= 10
        assert cache.nbytes <= 10 * _COST_BYTES
    assert not read(cache, 5)
    assert read(cache, 199)


async def test_a_scan_displaces_nothing() -> None:
    cache = ChunkCache(50 * _COST_BYTES)
    for cid in range(50):
        read(cache, cid)
    for cid in range(1000, 100_000):
        assert not read(cache, cid)
    assert all(read(cache, cid) for cid in range(50))


async def test_what_was_written_is_kept_for_a_while_and_displaces_little() -> None:
    cache = ChunkCache(40 * _COST_BYTES)
    for cid in range(20):
        cache.wrote(cid, [block(cid)])
    for cid in range(20, 40):
        read(cache, cid)
    assert all(read(cache, cid) for cid in range(40))
    for cid in range(1000, 2000):
        cache.wrote(cid, [block(cid)])
        assert read(cache, cid)
        assert len(cache) <= 40
        assert cache.nbytes <= 40 * _COST_BYTES
    assert [cid for cid in range(40) if cache.get(cid)] == list(range(10, 40))
    assert [cid for cid in range(1000, 2000) if cache.get(cid)] == list(range(1990, 2000))


async def test_none_is_a_size_too() -> None:
    cache = ChunkCache(0)
    assert not read(cache, 1)
    assert not read(cache, 1)
    cache.wrote(2, [block(2)])
    assert (len(cache), cache.nbytes, cache.misses) == (0, 0, 2)


async def test_the_store_reads_what_it_wrote_without_the_disk() -> None:
    disk = SimulatedDisk()
    store = await Store.open(disk, KEY, options=CACHING)
    await store.admit(4 * BLOCK_BYTES)
    data = block(7) + bytes(BLOCK_BYTES) + block(8) + block(7)
    store.replace(stripe_object(1, 0), 1, Version(1, 1), (Write(0, 4),), data)
    await store.sync()
    disk.cached = False
    assert store.read_nowait(stripe_object(1, 0), 0, 4) == data
    assert (store.statistics()["cache_hits"], store.statistics()["reads_that_waited"]) == (3, 0)
    await store.close()


async def test_similar_images_occupy_it_once() -> None:
    disk = SimulatedDisk()
    store = await Store.open(disk, KEY, options=CACHING)
    shared = b"".join(block(n) for n in range(1, 31))
    for image in range(10):
        await store.admit(len(shared) + BLOCK_BYTES)
        store.replace(
            stripe_object(image, 0),
            1,
            Version(1, 1),
            (Write(0, 31),),
            shared + block(1000 + image),
        )
    await store.close()
    store = await Store.open(disk, KEY, options=CACHING)
    for image in range(10):
        assert await store.read(stripe_object(image, 0), 0, 31) == shared + block(1000 + image)
    found = store.statistics()
    assert found["cached_chunks"] == 40
    assert (found["cache_hits"], found["cache_misses"]) == (270, 40)
    assert 40 * BLOCK_BYTES < found["cached_bytes"] < 41 * _COST_BYTES
    disk.cached = False
    assert store.read_nowait(stripe_object(5, 0), 3, 28) == shared[3 * 4096 :] + block(1005)
    await store.close()
    store = await Store.open(disk, KEY, options=CACHING)
    with pytest.raises(WouldBlock):
        store.read_nowait(stripe_object(5, 0), 3, 1)
    await store.close()
