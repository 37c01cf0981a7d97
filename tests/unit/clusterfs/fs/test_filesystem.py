import os

import pytest

from clusterfs.errors import NoSuchEntry
from clusterfs.fs.keys import ROOT
from clusterfs.sim.mounts import Node, World


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


def asked(node: Node) -> int:
    """Return how often another node was asked for a lock; names are told later, in batches."""
    sent = node.lockspace.dump()["sent"]
    assert isinstance(sent, dict)
    return sum(sent.get(kind, 0) for kind in ("Request", "Convert"))


async def test_who_makes_something_holds_its_locks_and_the_kernel_may_cache_it() -> None:
    async with World(3).running() as world:
        node = world.nodes[2]
        fs = node.fs
        await fs.mkdir(ROOT, b"folder", 0o755)
        before = asked(node)
        for number in range(10):
            created = await fs.create(ROOT, b"%d" % number, 0o644, os.O_RDWR)
            assert created.entry.attribute_timeout_s > 0
            assert fs.write_nowait(created.opened.handle, 0, b"x") == 1
            await fs.mkdir(ROOT, b"folder %d" % number, 0o755)
        assert asked(node) == before
        assert (await world.nodes[1].fs.lookup(ROOT, b"3")).attributes is not None
        world.validate()


async def test_an_inode_is_marked_only_when_others_may_ask_for_its_lock() -> None:
    async with World(3).running() as world:
        marked: list[bool] = []
        for number in range(12):  # names of any directory node
            one, two = world.nodes[1], world.nodes[2]
            created = await one.fs.create(ROOT, b"f", 0o644, os.O_RDWR)
            assert created.entry.attributes is not None
            inode = created.entry.attributes.inode
            await one.fs.write(created.opened.handle, 0, b"data")
            claims, root = one.lockspace._core.mastery.claims, inode.to_bytes(8, "big")
            one.volume.before_commit = lambda c=claims, r=root: marked.append(c.awaits(r))
            await one.fs.unlink(ROOT, b"f")
            assert marked
            assert not any(marked), "the directory of locks does not know it yet"
            one.volume.before_commit = None
            assert await two.fs.reclaim_marked(range(256)) == 1, "found without any lock"
            await world.settle()
            assert await one.fs.read(created.opened.handle, 0, 9) == b"data", number
            await one.fs.release(created.opened.handle)
            await world.settle()
            with pytest.raises(NoSuchEntry):
                await two.fs.getattr(inode)
