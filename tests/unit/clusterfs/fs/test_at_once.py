"""Answers without waiting: the same as the others', and none where one would have to wait."""

import os
from typing import Any

import pytest
import trio

from clusterfs.errors import NoSuchEntry, WouldBlock
from clusterfs.fs.events import Event
from clusterfs.fs.file_locks import EXCLUSIVE
from clusterfs.fs.filesystem import Filesystem, Settings
from clusterfs.fs.keys import ROOT
from clusterfs.sim.mounts import World
from clusterfs.store.objects import split_object_id


async def make(fs: Filesystem, name: bytes = b"f", data: bytes = b"data") -> int:
    created = await fs.create(ROOT, name, 0o644, os.O_RDWR)
    assert created.entry.attributes is not None
    await fs.write(created.opened.handle, 0, data)
    await fs.release(created.opened.handle)
    return created.entry.attributes.inode


async def test_they_are_what_those_that_wait_would_say() -> None:
    async with World(1).running() as world:
        fs = world.nodes[1].fs
        inode = await make(fs)
        known = fs._inodes.get(inode)
        assert (await fs.lookup(ROOT, b"none")).attributes is None
        before = known.lookups
        found, absent = fs.at_once.lookup(ROOT, b"f"), fs.at_once.lookup(ROOT, b"none")
        assert known.lookups == before + 1, "the kernel has one more reference"
        assert found.attributes == (await fs.lookup(ROOT, b"f")).attributes
        assert absent.attributes is None
        assert min(found.entry_timeout_s, found.attribute_timeout_s, absent.entry_timeout_s) > 0
        assert fs.at_once.getattr(inode).attributes == (await fs.getattr(inode)).attributes
        opened = fs.at_once.open(inode, os.O_RDONLY, privileged=False)
        assert not opened.direct_io
        assert fs.read_nowait(opened.handle, 0, 9) == b"data"
        writing = fs.at_once.open(inode, os.O_RDWR, privileged=False)
        assert writing.direct_io
        assert fs.at_once.lookup(ROOT, b"never asked for").attributes is None
        world.validate()
        fs.at_once.release(writing.handle)
        fs.at_once.release(opened.handle)
        assert not known.opened
        world.validate()
        assert fs.statistics()["answers_at_once"] == 8


async def test_what_another_node_changes_is_not_answered_from_what_was_known() -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        inode = await make(one)
        assert one.at_once.lookup(ROOT, b"f").attributes is not None
        await two.rename(ROOT, b"f", ROOT, b"g")
        opened = await two.open(inode, os.O_RDWR)
        await two.write(opened.handle, 0, b"longer than before")
        for ask in (
            lambda: one.at_once.lookup(ROOT, b"f"),
            lambda: one.at_once.getattr(inode),
            lambda: one.at_once.open(inode, os.O_RDONLY, privileged=False),
        ):
            with pytest.raises(WouldBlock):
                ask()
        assert (await one.getattr(inode)).attributes.size == 18
        assert (await one.lookup(ROOT, b"f")).attributes is None
        assert one.at_once.getattr(inode).attributes.size == 18
        assert one.at_once.lookup(ROOT, b"f").attributes is None


async def test_nothing_is_said_while_the_lease_is_over_or_the_node_is_out() -> None:
    async with World(2).running() as world:
        node = world.nodes[1]
        inode = await make(node.fs)
        node.fs.at_once.getattr(inode)
        node.lease_left_s = 0.0
        with pytest.raises(WouldBlock):
            node.fs.at_once.getattr(inode)
        node.lease_left_s = 1e9
        world.remove(1)
        for ask in (
            lambda: node.fs.at_once.lookup(ROOT, b"f"),
            lambda: node.fs.at_once.getattr(inode),
            lambda: node.fs.at_once.open(inode, os.O_RDONLY, privileged=False),
        ):
            with pytest.raises(WouldBlock):
                ask()


async def test_nothing_is_said_while_somebody_here_changes_it() -> None:
    async with World(1).running() as world:
        fs = world.nodes[1].fs
        inode = await make(fs)
        lock = fs._inodes.get(inode).lock
        async with lock.excluding():
            with pytest.raises(WouldBlock):
                fs.at_once.getattr(inode)
            with pytest.raises(WouldBlock):
                fs.at_once.lookup(ROOT, b"f")
            with pytest.raises(WouldBlock):
                fs.at_once.open(inode, os.O_RDONLY, privileged=False)
        fs.at_once.getattr(inode)


async def test_a_file_opened_at_once_outlives_its_last_name() -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        inode = await make(one)
        opened = one.at_once.open(inode, os.O_RDONLY, privileged=False)
        await two.unlink(ROOT, b"f")
        await world.settle()
        assert await one.read(opened.handle, 0, 9) == b"data"
        one.at_once.release(opened.handle)
        with trio.fail_after(300):
            while inode in {split_object_id(name)[0] for name in world.shelf.objects}:
                await world.settle()
        with pytest.raises(NoSuchEntry):
            await two.getattr(inode)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC])
async def test_a_node_that_may_only_read_opens_nothing_to_write(flags: int) -> None:
    async with World(1, settings=Settings(read_only=False)).running() as world:
        fs = world.nodes[1].fs
        inode = await make(fs)
        fs._transactions.read_only = True
        with pytest.raises(WouldBlock):
            fs.at_once.open(inode, flags, privileged=True)
        fs.at_once.open(inode, os.O_RDONLY, privileged=True)


async def test_what_has_to_wait_is_left_alone() -> None:
    async with World(1).running() as world:
        fs = world.nodes[1].fs
        inode = await make(fs)
        folder = (await fs.mkdir(ROOT, b"folder", 0o755)).attributes
        assert folder is not None
        with pytest.raises(WouldBlock):
            fs.at_once.open(folder.inode, os.O_RDONLY, privileged=True)
        with pytest.raises(WouldBlock):
            fs.at_once.open(inode, os.O_RDWR | os.O_TRUNC, privileged=True)
        with pytest.raises(WouldBlock):
            fs.at_once.lookup(ROOT, b"..")
        with pytest.raises(WouldBlock):
            fs.at_once.lookup(ROOT, b"n" * 256)
        with pytest.raises(WouldBlock):
            fs.at_once.lookup(inode, b"f")  # no directory
        cached = fs.at_once.open(inode, os.O_RDONLY, privileged=True)
        fs.read_nowait(cached.handle, 0, 4096, page_io=True)
        with pytest.raises(WouldBlock):  # the kernel's pages have to be dropped first
            fs.at_once.open(inode, os.O_RDWR, privileged=True)
        assert fs.at_once.open(inode, os.O_RDONLY, privileged=True).keep_cache


async def test_a_close_that_somebody_waits_for_is_not_at_once() -> None:
    async with World(1).running() as world:
        fs = world.nodes[1].fs
        inode = await make(fs)
        told: list[Event] = []

        async def tell(event: Event) -> None:
            told.append(event)

        fs.events.listener, fs.events.watched = tell, frozenset({ROOT})
        writing = fs.at_once.open(inode, os.O_RDWR, privileged=True)
        reading = fs.at_once.open(inode, os.O_RDONLY, privileged=True)
        fs.at_once.release(reading.handle)
        with pytest.raises(WouldBlock):
            fs.at_once.release(writing.handle)
        await fs.release(writing.handle)
        assert [event.kind for event in told] == ["close_write"]
        unnamed: Any = await fs.tmpfile(ROOT, 0o644, os.O_RDWR)
        fs.events.watched = frozenset()
        with pytest.raises(WouldBlock):
            fs.at_once.release(unnamed.opened.handle)
        await fs.release(unnamed.opened.handle)
        await world.settle()
        with pytest.raises(NoSuchEntry):
            await fs.getattr(unnamed.entry.attributes.inode)
        with pytest.raises(WouldBlock):
            fs.at_once.release(unnamed.opened.handle)  # it is no handle any more
        world.validate()


async def test_a_release_at_once_gives_its_file_locks_back() -> None:
    async with World(1).running() as world:
        fs = world.nodes[1].fs
        inode = await make(fs)
        opened = fs.at_once.open(inode, os.O_RDONLY, privileged=True)
        await fs.file_locks.flock(opened.handle, 7, 1, EXCLUSIVE, wait=False)
        assert fs.statistics()["file_lockers"] == 1
        fs.at_once.release(opened.handle)
        await world.settle()
        assert fs.statistics()["file_lockers"] == 0
