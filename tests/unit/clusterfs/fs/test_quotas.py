"""Directory quotas in a simulated cluster: exact, whoever writes, and whoever goes."""

import os
import random
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from clusterfs.errors import (
    CrossDevice,
    DirectoryNotEmpty,
    EntryExists,
    InvalidArgument,
    NoSuchAttribute,
    NoSuchEntry,
    OperationNotPermitted,
    QuotaExceeded,
)
from clusterfs.fs import keys
from clusterfs.fs.attributes import decode
from clusterfs.fs.filesystem import Filesystem
from clusterfs.fs.keys import ROOT
from clusterfs.fs.results import Caller, Changes
from clusterfs.sim.mounts import World
from clusterfs.store.objects import split_object_id

BYTES, FILES = b"user.clusterfs.quota.bytes", b"user.clusterfs.quota.files"
USED_BYTES, USED_FILES = b"user.clusterfs.quota.used_bytes", b"user.clusterfs.quota.used_files"
pytestmark = pytest.mark.usefixtures("autojump_clock")

EXCHANGE = 2
_COLLISIONS = (EntryExists, NoSuchEntry)


async def directory(fs: Filesystem, name: bytes, parent: int = ROOT) -> int:
    entry = await fs.mkdir(parent, name, 0o755)
    assert entry.attributes is not None
    return entry.attributes.inode


async def limited(fs: Filesystem, nbytes: int = 0, files: int = 0) -> int:
    number = await directory(fs, b"limited")
    if nbytes:
        await fs.setxattr(number, BYTES, b"%d" % nbytes)
    if files:
        await fs.setxattr(number, FILES, b"%d" % files)
    return number


async def written(fs: Filesystem, parent: int, name: bytes, size: int) -> int:
    created = await fs.create(parent, name, 0o640, os.O_RDWR)
    try:
        await write(fs, created.opened.handle, 0, size)
    finally:
        await fs.release(created.opened.handle)
    assert created.entry.attributes is not None
    return created.entry.attributes.inode


async def write(fs: Filesystem, handle: int, offset: int, size: int) -> None:
    await fs.write(handle, offset, bytes(size))


async def used(fs: Filesystem, number: int) -> tuple[int, int]:
    return int(await fs.getxattr(number, USED_BYTES)), int(await fs.getxattr(number, USED_FILES))


def stored(world: World, quota: int) -> tuple[int, int]:
    """Return what the volume has of a quota, read by nothing but this test."""
    nbytes = files = 0
    for object_id, found in world.shelf.objects.items():
        number, part = split_object_id(object_id)
        if not part and number != quota:
            record = decode(found.keys[keys.RECORD])
            if record.quota == quota:
                nbytes += record.size if record.is_regular else 0
                files += 1
    return nbytes, files


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(300):
        while not await check():
            await trio.sleep(0.1)


async def test_what_is_below_a_directory_is_limited_on_every_node() -> None:
    async with World(3).running() as world:
        one, two, three = (world.nodes[n].fs for n in (1, 2, 3))
        top = await limited(one, 1000, 4)
        inner = await directory(two, b"inner", top)
        file = await written(two, inner, b"file", 600)
        with pytest.raises(QuotaExceeded):
            await written(three, top, b"too much", 401)
        assert await used(one, top) == (600, 3)  # the file is there, but empty
        opened = await one.open(file, os.O_RDWR)
        await write(one, opened.handle, 600, 400)
        with pytest.raises(QuotaExceeded):
            await write(one, opened.handle, 1000, 1)
        await write(one, opened.handle, 0, 1000)  # what is there may be written over
        with pytest.raises(QuotaExceeded):
            await one.setattr(file, Changes(size=1001))
        with pytest.raises(QuotaExceeded):
            await one.fallocate(opened.handle, 0, 2000, 0)
        await three.symlink(top, b"link", b"anywhere")
        with pytest.raises(QuotaExceeded):
            await directory(two, b"one more", top)
        assert await used(three, top) == (1000, 4)
        await one.release(opened.handle)
        await written(one, ROOT, b"elsewhere", 5000)


async def test_what_goes_is_free_again_everywhere() -> None:
    async with World(3).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        top = await limited(one, 1000, 2)
        file = await written(one, top, b"a", 1000)
        await two.setattr(file, Changes(size=300))
        await written(one, top, b"b", 700)
        await two.unlink(top, b"a")
        await written(two, top, b"c", 300)  # as soon as `a` is deleted
        await one.rename(top, b"b", top, b"c")
        await written(one, top, b"d", 300)
        assert await used(two, top) == (1000, 2)
        await one.unlink(top, b"c")
        await one.unlink(top, b"d")

        async def free() -> bool:
            return await used(two, top) == (0, 0)

        await eventually(free)
        await two.mkdir(top, b"inner", 0o755)
        await one.rmdir(top, b"inner")
        assert await used(two, top) == (0, 0)


async def test_the_share_of_a_node_costs_others_nothing_they_need() -> None:
    async with World(3).running() as world:
        top = await limited(world.nodes[1].fs, 3000)
        for number in (1, 2, 3):
            await written(world.nodes[number].fs, top, b"file %d" % number, 10)
        await written(world.nodes[1].fs, top, b"all of it", 2970)
        for number in (1, 2, 3):
            with pytest.raises(QuotaExceeded):
                await written(world.nodes[number].fs, top, b"more %d" % number, 1)


async def test_within_its_share_a_node_sends_no_message() -> None:
    async with World(2).running() as world:
        one = world.nodes[1].fs
        top = await limited(one, 1 << 30)
        created = await one.create(top, b"log", 0o644, os.O_RDWR)
        await write(one, created.opened.handle, 0, 1)
        await world.settle()
        grants, before = one.statistics()["lock_grants"], one.statistics()["writes_fast"]
        for offset in range(1, 200):
            assert one.write_nowait(created.opened.handle, offset, b"x") == 1
        assert one.statistics()["lock_grants"] == grants
        assert one.statistics()["writes_fast"] == before + 199


async def test_nothing_crosses_the_border_but_the_directory_itself() -> None:
    async with World(2).running() as world:
        fs = world.nodes[1].fs
        top = await limited(fs, 1000)
        inside = await written(fs, top, b"inside", 10)
        outside = await written(fs, ROOT, b"outside", 10)
        await directory(fs, b"tree")
        for source, target in (
            ((top, b"inside"), (ROOT, b"x")),
            ((ROOT, b"outside"), (top, b"x")),
            ((ROOT, b"tree"), (top, b"tree")),
        ):
            with pytest.raises(CrossDevice):
                await fs.rename(*source, *target)
        with pytest.raises(CrossDevice):
            await fs.rename(top, b"inside", ROOT, b"outside", EXCHANGE)
        with pytest.raises(CrossDevice):
            await fs.link(inside, ROOT, b"x")
        with pytest.raises(CrossDevice):
            await fs.link(outside, top, b"x")
        await fs.rename(ROOT, b"limited", ROOT, b"renamed")
        await fs.link(inside, top, b"second name")
        assert await used(world.nodes[2].fs, top) == (10, 1)
        other = await directory(fs, b"other")
        await fs.setxattr(other, FILES, b"5")
        with pytest.raises(CrossDevice):
            await fs.rename(ROOT, b"other", top, b"other")


async def test_limits_are_set_by_root_on_empty_directories() -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        top = await directory(one, b"top")
        with pytest.raises(NoSuchAttribute):
            await one.getxattr(top, USED_BYTES)
        with pytest.raises(OperationNotPermitted):
            await one.setxattr(top, BYTES, b"100", caller=Caller(uid=5))
        for nonsense in (b"", b"-1", b"1k", b"9" * 30):
            with pytest.raises(InvalidArgument):
                await one.setxattr(top, BYTES, nonsense)
        inner = await directory(one, b"inner", top)
        with pytest.raises(DirectoryNotEmpty):
            await one.setxattr(top, BYTES, b"100")
        await one.rmdir(top, b"inner")
        await one.setxattr(top, BYTES, b"100")
        assert await two.getxattr(top, BYTES) == b"100"
        assert await two.listxattr(top) == []
        inner = await directory(two, b"inner", top)
        with pytest.raises(InvalidArgument):
            await two.setxattr(inner, BYTES, b"50")
        await written(one, inner, b"file", 100)
        await two.setxattr(top, BYTES, b"50")  # below what is used: nothing more, that is all
        with pytest.raises(QuotaExceeded):
            await written(one, inner, b"file 2", 1)
        await two.setxattr(top, BYTES, b"200")
        await written(one, inner, b"file 3", 100)
        await one.removexattr(top, BYTES)
        with pytest.raises(NoSuchAttribute):
            await two.getxattr(top, BYTES)
        await written(two, inner, b"file 4", 1000)
        await one.setxattr(top, BYTES, b"100")
        assert await used(two, top) == (1200, 5)


async def test_quotas_are_listed_until_their_directory_is_gone() -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        parent = await directory(one, b"a")
        top = await directory(one, b"b", parent)
        await one.setxattr(top, FILES, b"7")
        await written(two, top, b"file", 10)
        (shown,) = await two.list_quotas()
        assert (shown.inode, shown.path) == (top, "/a/b")
        assert (shown.limit_bytes, shown.limit_files) == (0, 7)
        assert (shown.used_bytes, shown.used_files) == (10, 1)
        await one.unlink(top, b"file")
        await one.rmdir(parent, b"b")
        assert await two.list_quotas() == []
        assert await one.list_quotas() == []


async def test_clones_count_and_are_refused_as_a_whole() -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        top = await limited(one, 30_000, 10)
        source = await directory(one, b"source", top)
        await written(two, source, b"a", 9000)
        await written(two, source, b"b", 77)
        first = await directory(two, b"first", top)
        await two.trees.clone(source, first)
        assert await used(one, top) == (2 * 9077, 6)
        second = await directory(one, b"second", top)
        await one.trees.clone(source, second)
        assert await used(two, top) == (3 * 9077, 9)
        third = await directory(one, b"third", top)
        with pytest.raises(QuotaExceeded):
            await one.trees.clone(source, third)
        assert await used(two, top) == (3 * 9077, 10)
        handles = [
            (await one.open(await number_in(one, source, b"a"), os.O_RDWR)).handle,
            (await one.open(await number_in(one, second, b"b"), os.O_RDWR)).handle,
        ]
        with pytest.raises(QuotaExceeded):
            await one.copy_range(handles[0], 0, handles[1], 0, 9000)
        await one.copy_range(handles[0], 0, handles[1], 0, 77 + 2000)
        assert await used(two, top) == (3 * 9077 + 2000, 10)


async def number_in(fs: Filesystem, parent: int, name: bytes) -> int:
    entry = await fs.lookup(parent, name)
    assert entry.attributes is not None
    return entry.attributes.inode


async def test_files_without_a_name_count_until_they_are_closed() -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        top = await limited(one, 1000)
        created = await one.tmpfile(top, 0o600, os.O_RDWR)
        await write(one, created.opened.handle, 0, 900)
        with pytest.raises(QuotaExceeded):
            await written(two, top, b"file", 101)
        assert await used(two, top) == (900, 2)
        await one.release(created.opened.handle)
        await written(two, top, b"file 2", 1000)


async def test_a_node_that_is_gone_leaves_a_share_that_is_counted() -> None:
    async with World(3).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        top = await limited(one, 10_000)
        await written(one, top, b"a", 1000)
        file = await written(two, top, b"b", 500)
        opened = await two.open(file, os.O_RDWR)
        await two.fsync(opened.handle)
        await write(two, opened.handle, 500, 4000)  # not written back
        world.crash(2)
        await written(one, top, b"c", 8500)
        with pytest.raises(QuotaExceeded):
            await written(one, top, b"d", 1)
        assert await used(world.nodes[3].fs, top) == (10_000, 4)
        assert stored(world, top)[1] == 4


async def test_a_node_that_comes_back_with_dirty_data_is_counted_right() -> None:
    async with World(3).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        top = await limited(one, 10_000)
        file = await written(two, top, b"b", 500)
        opened = await two.open(file, os.O_RDWR)
        await two.fsync(opened.handle)
        await write(two, opened.handle, 500, 4000)
        world.remove(2)
        assert await used(one, top) == (500, 1)
        await world.readmit(2)
        await two.fsync(opened.handle)

        async def counted() -> bool:
            return await used(one, top) == (4500, 1)

        await eventually(counted)
        assert stored(world, top) == (4500, 1)
        await written(one, top, b"c", 5500)
        with pytest.raises(QuotaExceeded):
            await write(two, opened.handle, 4500, 1)


@pytest.mark.parametrize("seed", range(60))
def test_random_programs_on_three_nodes_never_exceed_it(seed: int) -> None:
    """And what is used is what is stored, once nobody has a share; and nobody waits for ever."""
    chance = random.Random(seed)
    limit_bytes, limit_files = 20_000, 12

    async def program(fs: Filesystem, top: int, chance: random.Random) -> None:
        for _ in range(15):
            name = b"%d" % chance.randrange(8)
            await step(fs, top, name, chance)

    async def main() -> None:
        with trio.fail_after(1000):
            async with World(3, seed=seed).running() as world:
                top = await limited(world.nodes[1].fs, limit_bytes, limit_files)
                async with trio.open_nursery() as nursery:
                    for node in world.nodes.values():
                        for _ in range(2):
                            nursery.start_soon(
                                program, node.fs, top, random.Random(chance.random())
                            )
                nbytes, files = stored(world, top)
                assert nbytes <= limit_bytes
                assert files <= limit_files

                async def at_rest() -> bool:
                    for node in world.nodes.values():
                        await node.fs.close()
                    return await used(world.nodes[2].fs, top) == stored(world, top)

                await eventually(at_rest)
                world.validate()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def step(fs: Filesystem, top: int, name: bytes, chance: random.Random) -> None:
    try:
        match chance.randrange(7):
            case 0 | 1 | 2:
                created = await fs.create(top, name, 0o644, os.O_RDWR)
                try:
                    await write(fs, created.opened.handle, chance.randrange(4000), 3000)
                finally:
                    await fs.release(created.opened.handle)
            case 3:
                await fs.unlink(top, name)
            case 4:
                await fs.rename(top, name, top, b"%d" % chance.randrange(8))
            case 5:
                entry = await fs.lookup(top, name)
                if entry.attributes is not None:
                    size = chance.randrange(9000)
                    await fs.setattr(entry.attributes.inode, Changes(size=size))
            case 6:
                entry = await fs.lookup(top, name)
                if entry.attributes is not None:
                    await fs.link(entry.attributes.inode, top, b"%d" % chance.randrange(8, 10))
    except (QuotaExceeded, *_COLLISIONS):
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("synced", [False, True])
async def test_a_file_that_goes_at_once_with_its_name_is_free_again(*, synced: bool) -> None:
    async with World(2).running() as world:
        fs = world.nodes[1].fs
        top = await limited(fs, 1000, 2)
        created = await fs.create(top, b"a", 0o640, os.O_RDWR)
        await write(fs, created.opened.handle, 0, 600)
        if synced:
            await fs.fsync(created.opened.handle)
            await write(fs, created.opened.handle, 600, 300)
        await fs.release(created.opened.handle)
        before = fs.statistics()["transactions"]
        await fs.unlink(top, b"a")
        assert fs.statistics()["transactions"] == before + 1
        assert fs.statistics()["orphans"] == 0
        assert await used(world.nodes[2].fs, top) == (0, 0)
        await written(fs, top, b"b", 1000)
        with pytest.raises(QuotaExceeded):
            await written(fs, top, b"c", 1)
