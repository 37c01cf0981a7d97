"""SEEK_DATA and SEEK_HOLE: right wherever data lies, whatever is written back, and cheap."""

import itertools
import os
import random

import pytest
import trio

from clusterfs.errors import NoDataBeyond
from clusterfs.fs.filesystem import Filesystem
from clusterfs.fs.keys import ROOT
from clusterfs.fs.results import Caller, Changes
from clusterfs.fs.seeking import SEEK_DATA, SEEK_HOLE
from clusterfs.sim.memory_volume import MemoryVolume
from clusterfs.sim.mounts import World
from clusterfs.store.objects import BLOCK_BYTES, STRIPE_BLOCKS, ObjectId

USER = Caller(uid=1000, gid=1000)
BLOCKS = 3 * STRIPE_BLOCKS


async def make(fs: Filesystem) -> int:
    created = await fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
    assert created.entry.attributes is not None
    await fs.setattr(created.entry.attributes.inode, Changes(size=BLOCKS * BLOCK_BYTES))
    return created.opened.handle


async def walk(fs: Filesystem, handle: int) -> list[range]:
    """Return the stretches of blocks with data, as qemu-img map finds them."""
    found, position = [], 0
    while True:
        try:
            start = await fs.seek(handle, position, SEEK_DATA)
        except NoDataBeyond:
            return found
        position = await fs.seek(handle, start, SEEK_HOLE)
        found.append(range(start // BLOCK_BYTES, position // BLOCK_BYTES))
        if position == BLOCKS * BLOCK_BYTES:
            return found


async def test_data_is_found_wherever_it_is() -> None:
    async with World(1).running() as world:
        fs, some = world.nodes[1].fs, random.Random(1)
        handle, written = await make(fs), set[int]()
        borders = [0, STRIPE_BLOCKS - 1, STRIPE_BLOCKS, BLOCKS - 1]
        for number in [*borders, *(some.randrange(BLOCKS) for _ in range(60))]:
            blocks = min(some.choice((1, 2, 70)), BLOCKS - number)
            await fs.write(handle, number * BLOCK_BYTES, b"x" * blocks * BLOCK_BYTES)
            written |= set(range(number, number + blocks))
            if some.random() < 0.3:
                await fs.fsync(handle)
            assert await fs.seek(handle, number * BLOCK_BYTES + 1, SEEK_DATA) == (
                number * BLOCK_BYTES + 1
            )
        found = await walk(fs, handle)
        assert {number for stretch in found for number in stretch} == written
        assert all(one.stop < two.start for one, two in itertools.pairwise(found))


async def test_a_walk_over_a_fragmented_file_asks_for_each_block_a_few_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with World(1).running() as world:
        fs = world.nodes[1].fs
        handle = await make(fs)
        for number in range(0, 4000, 2):
            await fs.write(handle, number * BLOCK_BYTES, b"x" * BLOCK_BYTES)
        await fs.fsync(handle)
        found = 0
        extents = MemoryVolume.extents

        async def counted(
            volume: MemoryVolume, object_id: ObjectId, group: int, first: int, count: int
        ) -> list[tuple[int, int]]:
            nonlocal found
            answer = await extents(volume, object_id, group, first, count)
            found += len(answer)
            return answer

        monkeypatch.setattr(MemoryVolume, "extents", counted)
        assert len(await walk(fs, handle)) == 2000
        assert found < 2000 * 100


async def test_what_is_written_back_meanwhile_is_no_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    async with World(1).running() as world:
        fs = world.nodes[1].fs
        handle = await make(fs)
        await fs.write(handle, 5 * BLOCK_BYTES, b"x" * BLOCK_BYTES)
        extents = MemoryVolume.extents

        async def slow(
            volume: MemoryVolume, object_id: ObjectId, group: int, first: int, count: int
        ) -> list[tuple[int, int]]:
            answer = await extents(volume, object_id, group, first, count)
            with trio.fail_after(300):
                await fs.fsync(handle)
            return answer

        monkeypatch.setattr(MemoryVolume, "extents", slow)
        assert await fs.seek(handle, 0, SEEK_DATA) == 5 * BLOCK_BYTES
