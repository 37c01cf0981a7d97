"""Calls whose rules the comparison with the host's filesystem does not reach."""

import os
import stat
from collections import Counter

import pytest
import trio

from clusterfs.errors import (
    EntryExists,
    FileTooLarge,
    IsADirectory,
    NoSuchAttribute,
    NotSupported,
    OperationNotPermitted,
    OutOfSpace,
    PermissionDenied,
    ResultTooLarge,
    WouldBlock,
)
from clusterfs.fs.filesystem import Filesystem
from clusterfs.fs.keys import ROOT
from clusterfs.fs.results import Caller, Changes
from clusterfs.sim.mounts import World
from clusterfs.store.objects import BLOCK_BYTES, STRIPE_BYTES

USER = Caller(uid=1000, gid=1000)


async def make(fs: Filesystem, name: bytes = b"f", caller: Caller = USER) -> tuple[int, int]:
    created = await fs.create(ROOT, name, 0o4755, os.O_RDWR, caller)
    assert created.entry.attributes is not None
    return created.entry.attributes.inode, created.opened.handle


async def test_extended_attributes() -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        inode, _ = await make(one)
        await one.setxattr(inode, b"user.a", b"1")
        assert await two.getxattr(inode, b"user.a") == b"1"
        with pytest.raises(EntryExists):
            await two.setxattr(inode, b"user.a", b"2", 1)
        with pytest.raises(NoSuchAttribute):
            await two.setxattr(inode, b"user.b", b"2", 2)
        await two.setxattr(inode, b"security.b", b"2")
        assert await one.listxattr(inode) == [b"security.b", b"user.a"]
        await one.removexattr(inode, b"user.a")
        with pytest.raises(NoSuchAttribute):
            await two.getxattr(inode, b"user.a")
        with pytest.raises(NotSupported):
            await one.setxattr(inode, b"system.other", b"")
        with pytest.raises(NotSupported):
            await one.setxattr(inode, b"user.clusterfs.nonsense", b"1")
        with pytest.raises(ResultTooLarge):
            await one.setxattr(inode, b"user.c", bytes((64 << 10) + 1))


async def test_writing_takes_privileged_bits_away() -> None:
    async with World(1).running() as world:
        fs = world.nodes[1].fs
        inode, handle = await make(fs)
        assert (await fs.getattr(inode)).attributes.mode & stat.S_ISUID
        await fs.write(handle, 0, b"x")  # by root
        assert (await fs.getattr(inode)).attributes.mode & stat.S_ISUID
        await fs.write(handle, 0, b"x", who=lambda: Caller(7, 7))
        assert not (await fs.getattr(inode)).attributes.mode & stat.S_ISUID
        await fs.setattr(inode, Changes(mode=0o4711))
        await fs.setattr(inode, Changes(uid=7))
        assert stat.S_IMODE((await fs.getattr(inode)).attributes.mode) == 0o711


async def test_a_full_volume_refuses_before_it_accepts() -> None:
    async with World(1, room_blocks=10).running() as world:
        fs = world.nodes[1].fs
        inode, handle = await make(fs)
        await fs.write(handle, 0, b"a" * 8 * BLOCK_BYTES)
        with pytest.raises(OutOfSpace):
            await fs.write(handle, 8 * BLOCK_BYTES, b"b" * 3 * BLOCK_BYTES)
        await fs.fsync(handle)
        assert (await fs.getattr(inode)).attributes.size == 8 * BLOCK_BYTES
        await fs.write(handle, 8 * BLOCK_BYTES, b"b" * 2 * BLOCK_BYTES)
        await fs.setattr(inode, Changes(size=0))
        await fs.write(handle, 0, b"c" * 10 * BLOCK_BYTES)
        await fs.fsync(handle)
        assert not world.nodes[1].volume.reserved


async def test_fsync_of_dirty_data_is_one_durable_transaction_and_else_a_sync() -> None:
    async with World(1).running() as world:
        fs, volume = world.nodes[1].fs, world.nodes[1].volume
        _, handle = await make(fs)
        await fs.write(handle, 0, b"a" * BLOCK_BYTES)
        syncs = volume.syncs
        await fs.fsync(handle)
        assert (volume.durable_commits, volume.syncs) == (1, syncs)
        await fs.fsync(handle)
        assert (volume.durable_commits, volume.syncs) == (1, syncs + 1)
        far = 3 * (64 << 20)  # in stripes of other groups, whose data the record follows
        await fs.write(handle, 0, b"b" * BLOCK_BYTES)
        await fs.write(handle, far, b"b" * BLOCK_BYTES)
        await fs.fsync(handle)
        assert (volume.durable_commits, volume.syncs) == (2, syncs + 1)


async def test_a_sparse_file_of_the_largest_size() -> None:
    async with World(1).running() as world:
        fs = world.nodes[1].fs
        inode, handle = await make(fs)
        await fs.setattr(inode, Changes(size=16 << 40))
        await fs.write(handle, (16 << 40) - 3, b"end")
        await fs.fsync(handle)
        with pytest.raises(FileTooLarge):
            await fs.write(handle, 16 << 40, b"x")
        with pytest.raises(FileTooLarge):
            await fs.setattr(inode, Changes(size=(16 << 40) + 1))
        assert await fs.read(handle, (16 << 40) - 4, 9) == b"\0end"
        await fs.setattr(inode, Changes(size=5))
        await fs.setattr(inode, Changes(size=16 << 40))
        assert await fs.read(handle, (16 << 40) - 4, 9) == bytes(4)


async def test_a_big_directory_is_listed_completely_while_it_changes() -> None:
    async with World(1).running() as world:
        fs = world.nodes[1].fs
        expected = {b"%04d" % number for number in range(1500)}
        for name in sorted(expected):
            await fs.mknod(ROOT, name, 0o644, 0)
        opened = await fs.opendir(ROOT)
        names, cookie = [], 0
        while page := await fs.readdir(opened.handle, cookie, 100):
            names += [listed.name for listed in page]
            cookie = page[-1].cookie
            await fs.unlink(ROOT, page[-1].name) if cookie > 2 else None
            await fs.mknod(ROOT, b"new%d" % cookie, 0o644, 0)
            again = await fs.readdir(opened.handle, page[0].cookie, 3)
            assert [listed.name for listed in again] == [listed.name for listed in page[1:4]]
        assert len(names) == len(set(names))
        assert expected <= set(names)


async def test_directories_are_not_opened_as_files_nor_linked() -> None:
    async with World(1).running() as world:
        fs = world.nodes[1].fs
        entry = await fs.mkdir(ROOT, b"d", 0o755)
        assert entry.attributes is not None
        with pytest.raises(IsADirectory):
            await fs.open(entry.attributes.inode, os.O_RDONLY)
        with pytest.raises(OperationNotPermitted):
            await fs.link(entry.attributes.inode, ROOT, b"e")
        with pytest.raises(IsADirectory):
            await fs.setattr(entry.attributes.inode, Changes(size=0))


async def test_create_without_exclusion_opens_what_is_there() -> None:
    async with World(2).running() as world:
        inode, handle = await make(world.nodes[1].fs)
        await world.nodes[1].fs.write(handle, 0, b"here")
        created = await world.nodes[2].fs.create(ROOT, b"f", 0o644, os.O_RDWR)
        assert created.entry.attributes is not None
        assert created.entry.attributes.inode == inode
        assert await world.nodes[2].fs.read(created.opened.handle, 0, 9) == b"here"
        with pytest.raises(EntryExists):
            await world.nodes[2].fs.create(ROOT, b"f", 0o644, os.O_RDWR | os.O_EXCL)


async def test_with_the_lock_held_reads_and_writes_do_not_wait() -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        inode, handle = await make(one)
        assert one.write_nowait(handle, 0, b"x") == 1  # who makes a file has its lock
        assert one.write_nowait(handle, 1, b"yz") == 2
        assert one.read_nowait(handle, 0, 9) == b"xyz"
        await two.lookup(ROOT, b"f")
        reading = (await two.open(inode, os.O_RDONLY)).handle
        assert two.read_nowait(reading, 0, 9) == b"xyz"
        with pytest.raises(WouldBlock):
            one.write_nowait(handle, 0, b"x")


async def test_dirty_data_is_written_back_by_itself(autojump_clock: trio.abc.Clock) -> None:
    assert autojump_clock is not None
    async with World(1).running() as world:
        fs = world.nodes[1].fs
        _, handle = await make(fs)
        await fs.write(handle, STRIPE_BYTES - 4, b"12345678")
        await trio.sleep(3)
        assert fs.statistics()["dirty_bytes"] == 0
        assert len(world.shelf.objects) == 4
        assert world.nodes[1].volume.syncs == 0
        await fs.fsync(handle)
        assert world.nodes[1].volume.syncs == 1


async def test_statfs() -> None:
    async with World(1, room_blocks=100).running() as world:
        found = await world.nodes[1].fs.statfs()
        assert (found.blocks, found.free, found.block_bytes) == (100, 100, BLOCK_BYTES)


@pytest.mark.parametrize(
    ("caller", "mode", "flags", "allowed"),
    [
        (USER, 0o600, os.O_RDWR, False),
        (USER, 0o604, os.O_RDONLY, True),
        (USER, 0o604, os.O_RDONLY | os.O_TRUNC, False),
        (USER, 0o620, os.O_WRONLY, False),
        (Caller(uid=1000, gid=1000, groups=(0,)), 0o620, os.O_WRONLY, True),
        (Caller(), 0o000, os.O_RDWR, True),
    ],
)
async def test_a_file_made_elsewhere_just_before_is_opened_only_by_who_may(
    caller: Caller, mode: int, flags: int, *, allowed: bool
) -> None:
    """The kernel knew of no such file, so it has checked nothing but the directory."""
    async with World(1).running() as world:
        fs = world.nodes[1].fs
        created = await fs.create(ROOT, b"f", mode, os.O_RDWR)
        await fs.release(created.opened.handle)
        if allowed:
            again = await fs.create(ROOT, b"f", 0o666, flags, caller)
            await fs.release(again.opened.handle)
        else:
            with pytest.raises(PermissionDenied):
                await fs.create(ROOT, b"f", 0o666, flags, caller)


async def test_making_things_needs_no_lock_message() -> None:
    async with World(3).running() as world:
        one = world.nodes[1]
        await make(one.fs, b"first")
        before = Counter(one.lockspace.dump()["sent"])  # type: ignore[arg-type]
        for number in range(20):
            inode, handle = await make(one.fs, b"file%d" % number)
            await one.fs.write(handle, 0, b"data")
            assert (await one.fs.getattr(inode)).attributes.size == 4
            await one.fs.mkdir(ROOT, b"directory%d" % number, 0o755)
            await one.fs.symlink(ROOT, b"symlink%d" % number, b"target")
        assert set(Counter(one.lockspace.dump()["sent"]) - before) <= {"Claim"}  # type: ignore[arg-type]
        for node in world.nodes.values():
            entry = await node.fs.lookup(ROOT, b"file7")
            assert entry.attributes is not None
            assert entry.attributes.size == 4
        world.validate()


async def test_who_makes_something_lets_the_kernel_believe_its_attributes() -> None:
    async with World(1).running() as world:
        entry = await world.nodes[1].fs.mkdir(ROOT, b"d", 0o755)
        assert entry.attribute_timeout_s == 1.0


async def test_holes_that_are_punched_do_not_count_as_blocks() -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        created = await one.create(ROOT, b"image", 0o600, os.O_RDWR)
        assert created.entry.attributes is not None
        number, handle = created.entry.attributes.inode, created.opened.handle
        await one.write(handle, 0, b"x" * 10 * 4096)
        await one.fallocate(handle, 20 * 4096, 4096, 0)
        for _ in range(2):  # the second time there is nothing left to free
            await one.fallocate(handle, 2 * 4096, 6 * 4096, 3)
            assert (await two.getattr(number)).attributes.blocks == 4 * 8
        await one.fallocate(handle, 0, 21 * 4096, 3)
        assert (await two.getattr(number)).attributes.blocks == 0
