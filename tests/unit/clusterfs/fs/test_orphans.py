"""Inodes without a name live as long as somebody has them open, anywhere, and no longer."""

# ruff: noqa: ARG001  a clock that is asked for is the clock of the test

import os

import pytest
import trio
import trio.testing

from clusterfs.errors import NoSuchEntry, OutOfSpace
from clusterfs.fs.filesystem import Filesystem
from clusterfs.fs.keys import ROOT
from clusterfs.fs.results import Changes
from clusterfs.sim.memory_volume import GROUPS
from clusterfs.sim.mounts import World
from clusterfs.store.objects import MARK, STRIPE_BYTES, inode_object

Clock = trio.testing.MockClock


async def make(fs: Filesystem, name: bytes = b"f", data: bytes = b"data") -> tuple[int, int]:
    created = await fs.create(ROOT, name, 0o644, os.O_RDWR)
    await fs.write(created.opened.handle, 0, data)
    assert created.entry.attributes is not None
    return created.entry.attributes.inode, created.opened.handle


async def test_open_elsewhere_keeps_it_until_closed(autojump_clock: Clock) -> None:
    async with World(3).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        inode, handle = await make(one)
        await two.lookup(ROOT, b"f")
        reading = (await two.open(inode, os.O_RDONLY)).handle
        await one.release(handle)
        await one.unlink(ROOT, b"f")
        await world.settle()
        assert await two.read(reading, 0, 9) == b"data"
        assert (await two.getattr(inode)).attributes.nlink == 0
        again = (await two.open(inode, os.O_RDONLY)).handle  # as through /proc/self/fd
        await two.release(reading)
        await world.settle()
        assert await two.read(again, 0, 9) == b"data"
        await two.release(again)
        await world.settle()
        assert set(world.shelf.objects) == {inode_object(ROOT)}
        with pytest.raises(NoSuchEntry):
            await world.nodes[3].fs.open(inode, os.O_RDONLY)


async def test_dirty_data_of_a_deleted_file_is_dropped(autojump_clock: Clock) -> None:
    async with World(1).running() as world:
        fs, volume = world.nodes[1].fs, world.nodes[1].volume
        _, handle = await make(fs, data=bytes(100) + b"x" * 100_000)
        await fs.unlink(ROOT, b"f")
        assert volume.reserved
        await fs.release(handle)
        await world.settle()
        assert not volume.reserved
        assert set(world.shelf.objects) == {inode_object(ROOT)}


async def test_another_node_reclaims_what_a_dead_one_left(autojump_clock: Clock) -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        inode, handle = await make(one, data=b"x")
        await one.write(handle, 3 * STRIPE_BYTES, b"far")
        await one.fsync(handle)
        await one.unlink(ROOT, b"f")
        await world.settle()
        assert MARK in world.shelf.objects[inode_object(inode)].keys
        assert await two.reclaim_marked(range(GROUPS)) == 1
        await world.settle()
        assert inode_object(inode) in world.shelf.objects, "node 1 has it open"
        world.crash(1)
        await world.settle()
        assert set(world.shelf.objects) == {inode_object(ROOT)}


async def test_reclaiming_what_is_no_orphan_does_no_harm(autojump_clock: Clock) -> None:
    async with World(2).running() as world:
        inode, handle = await make(world.nodes[1].fs)
        await world.nodes[1].fs.fsync(handle)
        for node in world.nodes.values():
            node.fs._orphans.queue(inode)
        await world.settle()
        assert await world.nodes[1].fs.read(handle, 0, 9) == b"data"


async def test_a_truncation_that_a_dead_node_began_is_finished(autojump_clock: Clock) -> None:
    async with World(2).running() as world:
        node = world.nodes[1]
        inode, handle = await make(node.fs)
        for stripe in range(1, 5):
            await node.fs.write(handle, stripe * STRIPE_BYTES, b"x")
        await node.fs.fsync(handle)
        commits = []

        def die_at_the_second() -> None:
            commits.append(1)
            if len(commits) == 2:
                node.volume.out = True

        node.volume.before_commit = die_at_the_second
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.fs.setattr, inode, Changes(size=2))
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        assert len(world.shelf.objects) == 2 + 5
        world.crash(1)
        two = world.nodes[2].fs
        assert await two.reclaim_marked(range(GROUPS)) == 1
        await world.settle()
        assert len(world.shelf.objects) == 2 + 1
        await two.setattr(inode, Changes(size=5 * STRIPE_BYTES))
        reading = (await two.open(inode, os.O_RDONLY)).handle
        assert await two.read(reading, 0, 5) == b"da\0\0\0"
        assert await two.read(reading, 2 * STRIPE_BYTES, 1) == b"\0"


async def unlinked_by(fs: Filesystem, name: bytes) -> float:
    """Take a name away; return how many transactions that took, with all that follows."""
    before = fs.statistics()["transactions"]
    await fs.unlink(ROOT, name)
    await trio.testing.wait_all_tasks_blocked(0.01)
    return fs.statistics()["transactions"] - before


async def test_a_closed_file_goes_with_its_last_name_in_one_transaction(
    autojump_clock: Clock,
) -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        inode, handle = await make(one)
        await one.fsync(handle)
        await one.release(handle)
        await two.lookup(ROOT, b"f")
        assert await unlinked_by(one, b"f") == 1
        assert set(world.shelf.objects) == {inode_object(ROOT)}
        assert one.statistics()["orphans_reclaimed"] == 0
        with pytest.raises(NoSuchEntry):
            await two.open(inode, os.O_RDONLY)
        assert (await two.lookup(ROOT, b"f")).attributes is None
        before = one.statistics()["inodes"]
        assert one.forget(inode, 1), "the kernel forgets it only now"
        assert one.statistics()["inodes"] == before - 1


async def test_dirty_data_of_a_closed_file_goes_with_its_last_name(autojump_clock: Clock) -> None:
    async with World(1).running() as world:
        fs, volume = world.nodes[1].fs, world.nodes[1].volume
        _, handle = await make(fs, data=b"x" * 100_000)
        await fs.release(handle)
        assert volume.reserved
        assert await unlinked_by(fs, b"f") == 1
        assert not volume.reserved
        assert set(world.shelf.objects) == {inode_object(ROOT)}


async def test_what_another_node_may_have_open_is_asked_for_first(autojump_clock: Clock) -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        inode, handle = await make(one)
        await one.release(handle)
        reading = (await two.open(inode, os.O_RDONLY)).handle
        await two.release(reading)  # it keeps the open lock nevertheless
        assert await unlinked_by(one, b"f") > 1
        await world.settle()
        assert set(world.shelf.objects) == {inode_object(ROOT)}


async def test_a_name_of_several_and_a_long_file_are_not_deleted_at_once(
    autojump_clock: Clock,
) -> None:
    async with World(1).running() as world:
        fs = world.nodes[1].fs
        inode, handle = await make(fs)
        await fs.write(handle, 2 * STRIPE_BYTES, b"far")
        await fs.release(handle)
        await fs.fsyncdir((await fs.opendir(ROOT)).handle)
        await fs.link(inode, ROOT, b"g")
        assert await unlinked_by(fs, b"f") == 1
        assert (await fs.getattr(inode)).attributes.nlink == 1
        await unlinked_by(fs, b"g")
        await world.settle()
        assert set(world.shelf.objects) == {inode_object(ROOT)}


async def test_a_failed_removal_leaves_the_file_open_to_all(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        inode, handle = await make(one)
        await one.release(handle)

        async def refused(*_: object, **__: object) -> bool:
            await trio.lowlevel.checkpoint()
            raise OutOfSpace

        with monkeypatch.context() as patched:
            patched.setattr(world.nodes[1].volume, "commit", refused)
            with pytest.raises(OutOfSpace):
                await one.unlink(ROOT, b"f")
        mine = (await one.open(inode, os.O_RDONLY)).handle
        with trio.fail_after(60):  # though node 1 keeps it open
            other = (await two.open(inode, os.O_RDONLY)).handle
        assert await two.read(other, 0, 9) == b"data"
        await two.release(other)
        await one.release(mine)
        await one.unlink(ROOT, b"f")
        await world.settle()
        assert set(world.shelf.objects) == {inode_object(ROOT)}
