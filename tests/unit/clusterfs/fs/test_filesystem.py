import os

import pytest

from clusterfs.errors import NoSuchEntry
from clusterfs.fs.keys import ROOT
from clusterfs.sim.mounts import World


async def test_what_one_node_writes_the_other_reads() -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        created = await one.create(ROOT, b"f", 0o644, os.O_RDWR)
        await one.write(created.opened.handle, 0, b"hello")
        entry = await two.lookup(ROOT, b"f")
        assert entry.attributes is not None
        assert entry.attributes.size == 5
        opened = await two.open(entry.attributes.inode, os.O_RDONLY)
        assert await two.read(opened.handle, 0, 100) == b"hello"
        world.validate()
        await two.unlink(ROOT, b"f")
        assert (await one.lookup(ROOT, b"f")).attributes is None
        with pytest.raises(NoSuchEntry):
            await one.unlink(ROOT, b"f")
