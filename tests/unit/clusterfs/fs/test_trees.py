"""Trees cloned at one moment, in a simulated cluster."""

import os

import pytest
import trio

from clusterfs.errors import InvalidArgument, NoSuchEntry, NotADirectory
from clusterfs.fs import cloning
from clusterfs.fs.filesystem import Filesystem
from clusterfs.fs.keys import ROOT
from clusterfs.fs.results import Changes
from clusterfs.sim.mounts import World
from clusterfs.store.objects import STRIPE_BYTES

BLOCK = 4096


async def number(fs: Filesystem, *names: bytes) -> int:
    inode = ROOT
    for name in names:
        entry = await fs.lookup(inode, name)
        assert entry.attributes is not None, names
        inode = entry.attributes.inode
    return inode


async def content(fs: Filesystem, *names: bytes) -> bytes:
    opened = await fs.open(await number(fs, *names), os.O_RDONLY)
    data = await fs.read(opened.handle, 0, 1 << 20)
    await fs.release(opened.handle)
    return data


async def written(fs: Filesystem, parent: int, name: bytes, data: bytes) -> int:
    created = await fs.create(parent, name, 0o640, os.O_RDWR)
    await fs.write(created.opened.handle, 0, data)
    await fs.release(created.opened.handle)
    assert created.entry.attributes is not None
    return created.entry.attributes.inode


async def test_a_tree_is_not_cloned_into_itself_and_nobody_waits_for_it() -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        top = await number_of_new(one, b"top")
        inside = await number_of_new(one, b"inside", await number_of_new(one, b"inner", top))
        with trio.fail_after(1e6):  # of simulated time
            for target in (top, inside):
                with pytest.raises(InvalidArgument, match="into itself"):
                    await one.trees.clone(top, target)
            await written(two, inside, b"later", b"x")
            assert await content(one, b"top", b"inner", b"inside", b"later") == b"x"
        kept = await number_of_new(one, b".snapshots", top)
        await two.trees.clone(top, await number_of_new(two, b"monday", kept))
        assert await content(one, b"top", b".snapshots", b"monday", b"inner", b"inside", b"later")


async def test_a_clone_has_everything_and_goes_its_own_way() -> None:
    async with World(3).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        top = await number_of_new(one, b"top")
        inner = await number_of_new(one, b"inner", top)
        file = await written(one, inner, b"file", b"x" * 5 * BLOCK + b"end")
        await one.link(file, top, b"other name")
        await one.symlink(top, b"link", b"inner/file")
        await one.mknod(top, b"fifo", 0o010600, 0)
        await one.setxattr(file, b"user.a", b"1")
        await one.setattr(inner, Changes(mode=0o1751, mtime_ns=5, atime_ns=6))
        await number_of_new(one, b".snapshots", top)
        copy = await number_of_new(two, b"copy")
        done = await two.trees.clone(top, copy)
        assert (done.files, done.directories, done.others) == (1, 1, 2)
        assert done.nbytes == 5 * BLOCK + 3
        await two.write((await two.open(file, os.O_RDWR)).handle, 0, b"new")
        three = world.nodes[3].fs
        assert await content(three, b"copy", b"inner", b"file") == b"x" * 5 * BLOCK + b"end"
        assert (await content(three, b"top", b"inner", b"file")).startswith(b"newxx")
        cloned = await number(three, b"copy", b"inner", b"file")
        assert cloned == await number(three, b"copy", b"other name")
        assert (await three.getattr(cloned)).attributes.nlink == 2
        assert await three.getxattr(cloned, b"user.a") == b"1"
        made = (await three.getattr(await number(three, b"copy", b"inner"))).attributes
        assert (made.mode & 0o7777, made.mtime_ns, made.atime_ns) == (0o1751, 5, 6)
        assert await three.readlink(await number(three, b"copy", b"link")) == b"inner/file"
        assert (await three.lookup(copy, b".snapshots")).attributes is None
        world.validate()


async def number_of_new(fs: Filesystem, name: bytes, parent: int = ROOT) -> int:
    entry = await fs.mkdir(parent, name, 0o755)
    assert entry.attributes is not None
    return entry.attributes.inode


@pytest.mark.parametrize("seed", range(6))
async def test_a_clone_is_of_one_moment(seed: int, autojump_clock: object) -> None:
    del autojump_clock
    async with World(3, seed=seed).running() as world:
        fs = world.nodes[1].fs
        top = await number_of_new(fs, b"top")
        files = [await written(fs, top, b"%d" % n, bytes([0])) for n in range(4)]
        stop = False

        async def count_up() -> None:
            """Write 1 to each file in turn, then 2 to each, ...; from another node."""
            writer = world.nodes[2].fs
            handles = [(await writer.open(file, os.O_RDWR)).handle for file in files]
            for value in range(1, 250):
                for handle in handles:
                    if stop:
                        return
                    await writer.write(handle, 0, bytes([value]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_up)
            for turn in range(4):
                await trio.sleep(0.01)
                node = world.nodes[1 + turn % 3].fs
                copy = await number_of_new(node, b"copy %d" % turn)
                await node.trees.clone(top, copy)
                values = [(await content(node, b"copy %d" % turn, b"%d" % n))[0] for n in range(4)]
                assert values == sorted(values, reverse=True)
                assert values[0] - values[-1] <= 1
            stop = True
        world.validate()


async def sparse(fs: Filesystem, name: bytes, stripes: list[int], size: int) -> int:
    """Make a file with a block at the beginning of these stripes."""
    created = await fs.create(ROOT, name, 0o640, os.O_RDWR)
    for stripe in stripes:
        await fs.write(created.opened.handle, stripe * STRIPE_BYTES, b"%06d" % stripe)
    await fs.release(created.opened.handle)
    assert created.entry.attributes is not None
    number = created.entry.attributes.inode
    await fs.setattr(number, Changes(size=size))
    return number


async def empty_file(fs: Filesystem, name: bytes) -> int:
    return await written(fs, ROOT, name, b"")


@pytest.mark.parametrize("seed", range(3))
async def test_a_clone_of_one_file_is_of_one_moment(
    seed: int, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes several transactions: whoever writes meanwhile waits for all of them."""
    del autojump_clock
    monkeypatch.setattr(cloning, "SHARED_STRIPES", 8)
    last = 2 * cloning.SHARED_STRIPES + 1
    async with World(3, seed=seed).running() as world:
        fs = world.nodes[1].fs
        file = await sparse(fs, b"file", list(range(last + 1)), (last + 1) * STRIPE_BYTES)
        stop = False

        async def count_up() -> None:
            """Write 1 to both ends, where there is 0, then 2, ...; from another node."""
            writer = world.nodes[2].fs
            handle = (await writer.open(file, os.O_RDWR)).handle
            for value in range(ord("0") + 1, 250):
                for stripe in (0, last):
                    if stop:
                        return
                    await writer.write(handle, stripe * STRIPE_BYTES, bytes([value]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_up)
            for turn in range(4):
                await trio.sleep(0.01)
                node = world.nodes[1 + 2 * (turn % 2)].fs
                copy = await empty_file(node, b"copy %d" % turn)
                before = node._transactions.commits
                done = await node.trees.clone(file, copy)
                assert done.nbytes == (last + 1) * STRIPE_BYTES
                assert node._transactions.commits - before >= 3
                opened = await node.open(copy, os.O_RDONLY)
                ends = [
                    (await node.read(opened.handle, stripe * STRIPE_BYTES, 4))[0]
                    for stripe in (0, last)
                ]
                assert 0 <= ends[0] - ends[1] <= 1, ends
            stop = True
        world.validate()


async def test_a_clone_of_a_sparse_file_costs_what_is_in_it_not_what_it_spans() -> None:
    stripes, size = [0, 1, 9_000, 160_000, 262_143], 16 << 40
    async with World(2).running() as world:
        fs = world.nodes[1].fs
        file = await sparse(fs, b"file", stripes, size)
        copy = await empty_file(fs, b"copy")
        other = await empty_file(fs, b"other")
        before = fs._transactions.commits
        assert (await fs.trees.clone(file, copy)).nbytes == size
        assert fs._transactions.commits - before <= 2
        source = (await fs.open(file, os.O_RDONLY)).handle
        target = (await fs.open(other, os.O_RDWR)).handle
        before = fs._transactions.commits
        done = 0
        while count := await fs.copy_range(source, done, target, done, size):
            done += count
        assert done == size
        assert fs._transactions.commits - before <= 4
        reader = world.nodes[2].fs
        for number in (copy, other):
            assert (await reader.getattr(number)).attributes.size == size
            handle = (await reader.open(number, os.O_RDONLY)).handle
            for stripe in stripes:
                assert await reader.read(handle, stripe * STRIPE_BYTES, 6) == b"%06d" % stripe
            assert await reader.read(handle, 5 * STRIPE_BYTES, 4) == bytes(4)
        world.validate()


async def test_a_clone_replaces_what_its_target_had_before() -> None:
    """By copy_file_range: holes of the source, too, whole stripes of them."""
    async with World(1).running() as world:
        fs = world.nodes[1].fs
        file = await sparse(fs, b"file", [0, 6], 7 * STRIPE_BYTES)
        other = await sparse(fs, b"other", [1, 3, 6], 7 * STRIPE_BYTES)
        source = (await fs.open(file, os.O_RDONLY)).handle
        target = (await fs.open(other, os.O_RDWR)).handle
        done = 0
        while count := await fs.copy_range(source, done, target, done, 7 * STRIPE_BYTES):
            done += count
        found = [(await fs.read(target, stripe * STRIPE_BYTES, 6)) for stripe in range(7)]
        assert found == [b"000000", *[bytes(6)] * 5, b"000006"]
        world.validate()


async def test_only_an_empty_file_takes_the_clone_of_a_file() -> None:
    async with World(1).running() as world:
        fs = world.nodes[1].fs
        file = await written(fs, ROOT, b"file", b"x")
        fifo = await fs.mknod(ROOT, b"fifo", 0o010600, 0)
        assert fifo.attributes is not None
        for target in (file, await written(fs, ROOT, b"full", b"y"), fifo.attributes.inode):
            with pytest.raises(InvalidArgument):
                await fs.trees.clone(file, target)


async def test_what_cannot_be_cloned_is_refused() -> None:
    async with World(1).running() as world:
        fs = world.nodes[1].fs
        file = await written(fs, ROOT, b"file", b"x")
        copy = await number_of_new(fs, b"copy")
        with pytest.raises(NotADirectory):
            await fs.trees.clone(file, copy)
        with pytest.raises(NoSuchEntry):
            await fs.trees.clone(12345 << 29 | 7, copy)
