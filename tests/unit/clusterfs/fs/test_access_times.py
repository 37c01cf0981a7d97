"""Access times: relatime, seen here at once, elsewhere when it costs nobody anything."""

import os

import pytest
import trio
from msgspec.structs import replace

from clusterfs.fs.access_times import DAY_NS, counts
from clusterfs.fs.attributes import fresh
from clusterfs.fs.filesystem import Filesystem, Settings
from clusterfs.fs.keys import ROOT
from clusterfs.fs.results import Changes
from clusterfs.sim.mounts import World

OLD_NS = 10**15
LONG = Settings(access_time_delay_s=1000.0)
SHORT = Settings(access_time_delay_s=0.02)


async def make(fs: Filesystem, flags: int = os.O_RDWR) -> tuple[int, int]:
    created = await fs.create(ROOT, b"f", 0o644, flags)
    assert created.entry.attributes is not None
    await fs.write(created.opened.handle, 0, b"content")
    await fs.fsync(created.opened.handle)
    return created.entry.attributes.inode, created.opened.handle


async def accessed(fs: Filesystem, inode: int) -> int:
    return (await fs.getattr(inode)).attributes.atime_ns


@pytest.mark.parametrize(
    ("accessed_ns", "changed_ns", "now_ns", "expected"),
    [
        (5, 5, 6, True),
        (6, 5, 7, False),
        (6, 5, 6 + DAY_NS - 1, False),
        (6, 5, 6 + DAY_NS, True),
        (6, 9, 10, True),
    ],
)
def test_a_read_counts_once_after_a_change_and_once_a_day(
    accessed_ns: int, changed_ns: int, now_ns: int, *, expected: bool
) -> None:
    record = fresh(0o100644, 0, 0, 1, atime_ns=accessed_ns)
    assert counts(replace(record, mtime_ns=changed_ns), now_ns) == expected
    assert counts(replace(record, ctime_ns=changed_ns), now_ns) == expected


async def test_a_read_is_seen_here_at_once_and_costs_nothing() -> None:
    async with World(1, settings=LONG).running() as world:
        fs = world.nodes[1].fs
        inode, handle = await make(fs)
        before_ns, commits = await accessed(fs, inode), fs.statistics()["transactions"]
        await fs.read(handle, 0, 10)
        first_ns = await accessed(fs, inode)
        assert first_ns > before_ns
        await fs.read(handle, 0, 10)
        assert await accessed(fs, inode) == first_ns
        assert fs.statistics()["transactions"] == commits


@pytest.mark.parametrize("change", ["chmod", "lock"])
async def test_it_goes_to_others_with_the_next_commit_or_the_lock(change: str) -> None:
    async with World(2, settings=LONG).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        inode, handle = await make(one)
        await one.read(handle, 0, 10)
        if change == "chmod":
            await one.setattr(inode, Changes(mode=0o600))
        assert await accessed(two, inode) == await accessed(one, inode)
        assert one.statistics()["access_times_sent"] == 0


async def test_it_is_stored_by_itself_in_the_end() -> None:
    async with World(2, settings=SHORT).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        inode, handle = await make(one)
        await two.getattr(inode)  # now both share the lock
        await one.read(handle, 0, 10)
        read_ns = await accessed(one, inode)
        assert await accessed(two, inode) < read_ns
        with trio.fail_after(300):
            while await accessed(two, inode) < read_ns:
                await trio.sleep(0.01)
        assert await accessed(two, inode) == read_ns
        assert one.statistics()["access_times_sent"] == 1
        assert one.statistics()["access_times_waiting"] == 0


async def test_readers_elsewhere_keep_their_locks_for_a_while() -> None:
    async with World(2, settings=LONG).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        inode, handle = await make(one)
        await two.getattr(inode)
        await one.read(handle, 0, 10)
        revokes = two.statistics()["lock_revokes"]
        await one._access_times.send_all()
        assert two.statistics()["lock_revokes"] == revokes
        assert one.statistics()["access_times_sent"] == 0


async def test_what_utimes_sets_elsewhere_is_not_overwritten() -> None:
    async with World(2, settings=SHORT).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        inode, handle = await make(one)
        await two.getattr(inode)
        await one.read(handle, 0, 10)
        await two.setattr(inode, Changes(atime_ns=OLD_NS, mtime_ns=OLD_NS))
        with trio.fail_after(300):
            while one.statistics()["access_times_waiting"]:
                await trio.sleep(0.01)
        assert await accessed(one, inode) == await accessed(two, inode) == OLD_NS


@pytest.mark.parametrize(("delay_s", "flags"), [(None, 0), (1000.0, os.O_NOATIME)])
async def test_who_wants_none_gets_none(delay_s: float | None, flags: int) -> None:
    async with World(1, settings=Settings(access_time_delay_s=delay_s)).running() as world:
        fs = world.nodes[1].fs
        inode, handle = await make(fs, os.O_RDWR | flags)
        before_ns = await accessed(fs, inode)
        await fs.read(handle, 0, 10)
        assert await accessed(fs, inode) == before_ns


async def test_directories_and_symlinks_have_them_too() -> None:
    async with World(1, settings=LONG).running() as world:
        fs = world.nodes[1].fs
        link = await fs.symlink(ROOT, b"l", b"target")
        assert link.attributes is not None
        opened = await fs.opendir(ROOT)
        before = await accessed(fs, ROOT), await accessed(fs, link.attributes.inode)
        await fs.readdir(opened.handle, 0, 10)
        await fs.readlink(link.attributes.inode)
        after = await accessed(fs, ROOT), await accessed(fs, link.attributes.inode)
        assert all(later > sooner for sooner, later in zip(before, after, strict=True))
