import random

import pytest
import trio
import trio.testing

from clusterfs.errors import TooManyOpenInodes
from clusterfs.fuse.beat import TABLE, USED, Beat
from clusterfs.fuse.cached import CachedInodes


class World:
    def __init__(self, capacity: int) -> None:
        self.beat = Beat(capacity)
        self.cached = CachedInodes(self.beat)
        self.cached.use(self.drop)
        self.dropped: list[int] = []
        self.parked: trio.Event | None = None

    async def drop(self, inode: int) -> None:
        self.dropped.append(inode)
        if self.parked is not None:
            await self.parked.wait()

    def listed(self) -> set[int]:
        used = self.beat.words[USED]
        return {word for word in self.beat.words[TABLE : TABLE + used] if word}


async def test_an_inode_is_listed_from_its_open_to_its_forget() -> None:
    world = World(4)
    await world.cached.opened(10, handle=1)
    await world.cached.opened(10, handle=2)
    world.cached.released(1)
    world.cached.forgotten(10)  # the kernel would not: it is open
    assert world.listed() == {10}
    world.cached.released(2)
    assert world.listed() == {10}  # closed, but its pages are still cached
    world.cached.forgotten(10)
    assert world.listed() == set()
    world.cached.validate()


async def test_a_full_table_drops_what_was_closed_longest_ago() -> None:
    world = World(2)
    for inode in (10, 11):
        await world.cached.opened(inode, handle=inode)
        world.cached.released(inode)
    await world.cached.opened(10, handle=100)
    world.cached.released(100)
    await world.cached.opened(12, handle=12)
    assert world.dropped == [11]
    assert world.listed() == {10, 12}
    world.cached.validate()


async def test_an_inode_stays_listed_until_its_pages_are_gone() -> None:
    world = World(2)
    for inode in (10, 11):
        await world.cached.opened(inode, handle=inode)
        world.cached.released(inode)
    world.parked = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.cached.opened, 12, 12)
        await trio.testing.wait_all_tasks_blocked()
        assert world.listed() == {10, 11}
        assert set(world.cached.inodes()) == {10, 11}
        world.cached.validate()
        world.parked.set()
    assert world.listed() == {11, 12}


async def test_more_open_inodes_than_slots_are_refused() -> None:
    world = World(2)
    await world.cached.opened(10, handle=1)
    await world.cached.opened(11, handle=2)
    with pytest.raises(TooManyOpenInodes):
        await world.cached.opened(12, handle=3)
    world.cached.released(3)  # its open never took place
    world.cached.validate()
    assert world.listed() == {10, 11}


@pytest.mark.parametrize("seed", range(20))
async def test_every_open_inode_is_listed_whatever_happens(seed: int) -> None:
    rng = random.Random(seed)
    world = World(8)
    handles: dict[int, int] = {}
    for handle in range(1, 400):
        inode = rng.randrange(1, 20)
        if rng.random() < 0.5 and len(set(handles.values()) | {inode}) <= 8:
            await world.cached.opened(inode, handle)
            handles[handle] = inode
        elif handles and rng.random() < 0.8:
            closed = rng.choice(sorted(handles))
            world.cached.released(closed)
            del handles[closed]
        elif inode not in handles.values():
            world.cached.forgotten(inode)
        world.cached.validate()
        assert set(handles.values()) <= world.listed() == set(world.cached.inodes())
