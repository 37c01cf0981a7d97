"""What is dirty for a while goes to the replicas: small things together, attributes with data."""

import os
from collections.abc import Sequence

import pytest
import trio

from clusterfs.errors import OutOfSpace, ReadOnly
from clusterfs.fs.aging import MAXIMUM_AGE_S, TOGETHER
from clusterfs.fs.filesystem import Filesystem, Settings
from clusterfs.fs.keys import ROOT
from clusterfs.fs.results import Caller, Changes
from clusterfs.sim.mounts import World
from clusterfs.store.objects import BLOCK_BYTES, Change, split_object_id

pytestmark = pytest.mark.usefixtures("autojump_clock")
USER = Caller(uid=1000, gid=1000)
FILES = 2 * TOGETHER + 5


async def make(fs: Filesystem, name: bytes) -> tuple[int, int]:
    created = await fs.create(ROOT, name, 0o644, os.O_RDWR, USER)
    assert created.entry.attributes is not None
    return created.entry.attributes.inode, created.opened.handle


async def aged() -> None:
    await trio.sleep(3 * MAXIMUM_AGE_S)


def content(number: int) -> bytes:
    return number.to_bytes(4, "big") * 700


def transactions(world: World) -> float:
    return world.nodes[1].fs.statistics()["transactions"]


async def test_small_files_are_written_back_together() -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        files = [await make(one, b"%d" % number) for number in range(FILES)]
        before = transactions(world)
        for number, (inode, handle) in enumerate(files):
            await one.write(handle, 0, content(number))
            await one.setattr(inode, Changes(mtime_ns=number, atime_ns=7))
            await one.setattr(inode, Changes(mode=0o600 + number % 8, uid=5), None, Caller())
        assert transactions(world) == before
        await aged()
        assert transactions(world) - before <= 4
        assert one.statistics()["dirty_bytes"] == 0
        assert world.nodes[1].volume.reserved == 0
        world.validate()
        sent = transactions(world)
        for number, (inode, _) in enumerate(files):
            attributes = (await two.getattr(inode)).attributes
            assert attributes.mode & 0o7777 == 0o600 + number % 8
            assert (attributes.uid, attributes.atime_ns, attributes.mtime_ns) == (5, 7, number)
            reading = (await two.open(inode, os.O_RDONLY)).handle
            assert await two.read(reading, 0, BLOCK_BYTES) == content(number)
        assert transactions(world) == sent, "nothing was left to write back"
        world.validate()


async def test_who_writes_meanwhile_loses_nothing() -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        files = [await make(one, b"%d" % number) for number in range(8)]
        volume = world.nodes[1].volume
        begun = 0

        def write_more() -> None:
            nonlocal begun
            begun += 1
            if begun == 1:
                for inode, handle in files:
                    one.write_nowait(handle, 1, b"X")
                    one.write_nowait(handle, BLOCK_BYTES, b"more")
                    del inode

        for _, handle in files:
            await one.write(handle, 0, b"abc")
        volume.before_commit = write_more
        await aged()
        assert begun >= 2
        assert one.statistics()["dirty_bytes"] == 0
        for inode, _ in files:
            reading = (await two.open(inode, os.O_RDONLY)).handle
            data = await two.read(reading, 0, 2 * BLOCK_BYTES)
            assert (data[:3], data[BLOCK_BYTES:]) == (b"aXc", b"more")
        world.validate()


async def test_one_that_cannot_be_stored_keeps_nobody_else() -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        files = [await make(one, b"%d" % number) for number in range(5)]
        for number, (_, handle) in enumerate(files):
            await one.write(handle, 0, content(number))
        refused = files[3][0]
        commit = world.nodes[1].volume.commit

        async def refusing(changes: Sequence[Change], payload: bytes = b"", **how: bool) -> None:
            if any(split_object_id(change.object_id)[0] == refused for change in changes):
                raise OutOfSpace
            await commit(changes, payload, **how)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(world.nodes[1].volume, "commit", refusing)
            await aged()
            world.validate()
            for number, (_, handle) in enumerate(files):
                if number != 3:
                    await one.fsync(handle)
            with pytest.raises(OutOfSpace):
                await one.fsync(files[3][1])
        with pytest.raises(OutOfSpace):
            await one.fsync(files[3][1])  # what went wrong before anybody asked
        await one.fsync(files[3][1])
        for number, (inode, _) in enumerate(files):
            reading = (await two.open(inode, os.O_RDONLY)).handle
            assert await two.read(reading, 0, BLOCK_BYTES) == content(number)


async def test_times_wait_for_writeback_and_other_attributes_do_not() -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        inode, handle = await make(one, b"f")
        before = transactions(world)
        await one.setattr(inode, Changes(mtime_ns=3, atime_ns=4))
        assert transactions(world) == before
        attributes = (await two.getattr(inode)).attributes
        assert (attributes.mtime_ns, attributes.atime_ns) == (3, 4), "another node sees it"
        await one.getattr(inode)
        await one.setattr(inode, Changes(mode=0o400))
        assert transactions(world) == before + 2, "nothing else was dirty"
        await one.setattr(inode, Changes(mtime_ns=5))
        await one.fsync(handle)
        assert transactions(world) == before + 3, "fsync writes attributes back"
        folder = await one.mkdir(ROOT, b"d", 0o755)
        assert folder.attributes is not None
        await one.setattr(folder.attributes.inode, Changes(mtime_ns=6))
        assert transactions(world) == before + 5, "a directory has no fsync that would"


async def test_a_node_that_may_change_nothing_changes_no_times() -> None:
    async with World(1).running() as world:
        inode, _ = await make(world.nodes[1].fs, b"f")
        world.nodes[1].fs._transactions.read_only = True
        with pytest.raises(ReadOnly):
            await world.nodes[1].fs.setattr(inode, Changes(mtime_ns=3))


async def test_attributes_that_were_not_written_back_come_back_with_the_node() -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        inode, handle = await make(one, b"f")
        await one.write(handle, 0, b"data")
        await one.setattr(inode, Changes(mode=0o640, uid=11, gid=12, atime_ns=8), None, Caller())
        world.remove(1)
        await world.readmit(1)
        attributes = (await two.getattr(inode)).attributes
        found = (attributes.mode & 0o777, attributes.uid, attributes.gid, attributes.atime_ns)
        assert found == (0o640, 11, 12, 8)
        assert attributes.size == 4


async def test_large_and_atomic_files_go_alone() -> None:
    settings = Settings(dirty_bytes=64 << 20)
    async with World(2, settings=settings).running() as world:
        one = world.nodes[1].fs
        files = [await make(one, b"%d" % number) for number in range(4)]
        before = transactions(world)
        for number, (_, handle) in enumerate(files):
            await one.write(handle, 0, content(number) * 40)
        await aged()
        assert transactions(world) - before == len(files)
        assert one.statistics()["dirty_bytes"] == 0
