"""Files made without a name: given one, or gone when they are closed."""

import os

import pytest

from clusterfs.errors import NoSuchEntry
from clusterfs.fs.keys import ROOT
from clusterfs.sim.mounts import World


async def test_a_file_without_a_name_is_open_to_others_once_it_has_one() -> None:
    async with World(3).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        made = await one.tmpfile(ROOT, 0o644, os.O_RDWR)
        assert made.entry.attributes is not None
        inode = made.entry.attributes.inode
        assert made.entry.attributes.nlink == 0
        await one.write(made.opened.handle, 0, b"data")
        assert await two.reclaim_marked(range(256)) == 1, "found by its mark, and left alone"
        await world.settle()
        await one.link(inode, ROOT, b"name")
        opened = await two.open(inode, os.O_RDONLY)
        assert await two.read(opened.handle, 0, 9) == b"data", "while its maker has it open"
        await one.release(made.opened.handle)
        await two.release(opened.handle)
        await world.settle()
        entry = await world.nodes[3].fs.lookup(ROOT, b"name")
        assert entry.attributes is not None
        assert entry.attributes.nlink == 1
        assert await two.reclaim_marked(range(256)) == 0
        world.validate()


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_RDWR | os.O_EXCL])
async def test_a_file_that_never_had_a_name_goes_when_it_is_closed(flags: int) -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        made = await one.tmpfile(ROOT, 0o644, flags)
        assert made.entry.attributes is not None
        inode = made.entry.attributes.inode
        if flags & os.O_EXCL:
            with pytest.raises(NoSuchEntry):
                await one.link(inode, ROOT, b"name")
        await one.release(made.opened.handle)
        await world.settle()
        with pytest.raises(NoSuchEntry):
            await two.getattr(inode)
        world.validate()
