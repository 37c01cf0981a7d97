"""Listings with attributes: what they bring, what they cost, and whom they leave alone."""

import os
from collections.abc import Sequence

import pytest

from clusterfs.fs.filesystem import Filesystem
from clusterfs.fs.keys import ROOT
from clusterfs.fs.results import Listed
from clusterfs.sim.memory_volume import MemoryVolume
from clusterfs.sim.mounts import World


async def create(fs: Filesystem, *names: bytes) -> list[int]:
    handles = []
    for name in names:
        created = await fs.create(ROOT, name, 0o644, os.O_RDWR)
        handles.append(created.opened.handle)
        await fs.write(handles[-1], 0, name)
    return handles


async def look_up(fs: Filesystem, *names: bytes) -> None:
    for name in names:
        assert (await fs.lookup(ROOT, name)).attributes is not None


async def sizes(fs: Filesystem) -> dict[bytes, int | None]:
    """List the root; None: without attributes."""
    opened = await fs.opendir(ROOT)
    return {listed.name: size_of(listed) for listed in await fs.readdir(opened.handle, 0, 200)}


def size_of(listed: Listed) -> int | None:
    if listed.entry is None:
        return None
    assert listed.entry.attributes is not None
    return listed.entry.attributes.size


def count_fetches(volume: MemoryVolume, monkeypatch: pytest.MonkeyPatch) -> list[Sequence[bytes]]:
    """Note the keys of each read of an inode object."""
    fetched: list[Sequence[bytes]] = []
    fetch_nowait = volume.fetch_nowait

    def fetch(object_id: bytes, group: int, keys: Sequence[bytes]) -> object:
        fetched.append(keys)
        return fetch_nowait(object_id, group, keys)

    monkeypatch.setattr(volume, "fetch_nowait", fetch)
    return fetched


async def test_entries_have_attributes() -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        await create(one, b"a", b"bcd")
        entry = await one.lookup(ROOT, b"a")
        assert entry.attributes is not None
        await one.link(entry.attributes.inode, ROOT, b"e")
        await look_up(two, b"a", b"bcd")
        expected = {b".": None, b"..": None, b"a": 1, b"bcd": 3, b"e": 1}
        assert await sizes(one) == expected
        assert await sizes(two) == expected
        world.validate()


async def test_nobody_has_to_look_an_entry_up_before_it_is_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node that has never heard of the files gets all locks and values in a few batches."""
    async with World(3).running() as world:
        names = [b"f%d" % n for n in range(50)]
        await create(world.nodes[1].fs, *names)
        await look_up(world.nodes[2].fs, *names)  # node 1 keeps PR
        node = world.nodes[3]
        opened = await node.fs.opendir(ROOT)
        fetched = count_fetches(node.volume, monkeypatch)
        before = node.lockspace.outbox.batches
        page = await node.fs.readdir(opened.handle, 2, 200)
        assert node.lockspace.outbox.batches - before <= 2  # one to each other node
        assert {listed.name: size_of(listed) for listed in page} == {n: len(n) for n in names}
        assert fetched == []
        assert node.fs.statistics()["lock_values"] >= len(names)
        world.validate()


async def test_a_listing_takes_no_file_from_its_writer() -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        await create(one, b"idle", b"busy")
        await look_up(two, b"idle")
        before = one.statistics()["lock_revokes"]
        assert await sizes(two) == {b".": None, b"..": None, b"idle": 4, b"busy": None}
        assert one.statistics()["lock_revokes"] == before
        await look_up(two, b"busy")
        assert (await sizes(two))[b"busy"] == 4


async def test_locks_that_a_listing_took_are_given_up_like_all_others() -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        [handle] = await create(one, b"file")
        await look_up(two, b"file")
        assert (await sizes(two))[b"file"] == 4
        await one.write(handle, 0, b"longer")
        await look_up(two, b"file")
        assert (await sizes(two))[b"file"] == 6
        world.validate()
