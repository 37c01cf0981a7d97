"""What becomes durable together: each write, a transaction, all between two fsyncs."""

import os
import random
from collections.abc import Sequence

import pytest
import trio
import trio.testing

from clusterfs.errors import FileTooLarge, InvalidArgument, OutOfSpace, StaleHandle
from clusterfs.fs.aging import MAXIMUM_AGE_S
from clusterfs.fs.filesystem import Filesystem, Settings
from clusterfs.fs.keys import ROOT
from clusterfs.fs.results import Caller, Changes
from clusterfs.fs.writeback import ATOMIC_BLOCKS, BATCH_BLOCKS
from clusterfs.sim.mounts import World
from clusterfs.store.objects import (
    BLOCK_BYTES,
    STRIPE_BLOCKS,
    Change,
    Discard,
    Write,
    split_object_id,
)

USER = Caller(uid=1000, gid=1000)
pytestmark = pytest.mark.usefixtures("autojump_clock")
FLAG = b"user.clusterfs.atomic_fsync"


class Stamps:
    """What the replicas have of one file: for each block the write that it is of."""

    def __init__(self, world: World) -> None:
        self.blocks: dict[int, int] = {}
        self.commits = 0
        self._apply = world.shelf.apply
        world.shelf.apply = self.apply  # type: ignore[method-assign]

    def apply(self, changes: Sequence[Change], payload: bytes) -> None:
        self._apply(changes, payload)
        self.commits += 1
        position = 0
        for change in changes:
            _, part = split_object_id(change.object_id)
            for operation in change.operations:
                if isinstance(operation, Write):
                    for n in range(operation.count):
                        block = payload[position : position + BLOCK_BYTES]
                        index = (part - 1) * STRIPE_BLOCKS + operation.first + n
                        self.blocks[index] = int.from_bytes(block[:4], "big")
                        position += BLOCK_BYTES
                else:
                    assert not isinstance(operation, Discard)

    def torn(self, writes: dict[int, range]) -> list[int]:
        """Return the writes of which some blocks are stored and others are older."""
        return [
            stamp
            for stamp, blocks in writes.items()
            if any(self.blocks.get(b) == stamp for b in blocks)
            and any(self.blocks.get(b, 0) < stamp for b in blocks)
        ]


async def make(fs: Filesystem, name: bytes = b"f") -> tuple[int, int]:
    created = await fs.create(ROOT, name, 0o644, os.O_RDWR, USER)
    assert created.entry.attributes is not None
    return created.entry.attributes.inode, created.opened.handle


def content(stamp: int, blocks: int) -> bytes:
    return (stamp.to_bytes(4, "big") + bytes(BLOCK_BYTES - 4)) * blocks


@pytest.mark.parametrize("seed", range(8))
async def test_no_write_is_ever_stored_in_part(seed: int) -> None:
    chance = random.Random(seed)
    span = chance.choice([64, 600, 3000])
    base = chance.choice([0, STRIPE_BLOCKS - span // 2])  # around the border of two stripes
    async with World(1, seed=seed, settings=Settings(dirty_bytes=8 << 20)).running() as world:
        fs = world.nodes[1].fs
        stamps = Stamps(world)
        _, handle = await make(fs)
        writes: dict[int, range] = {}
        torn: list[int] = []

        async def write() -> None:
            for stamp in range(1, 60):
                first = base + chance.randrange(span)
                count = chance.choice([1, 2, 7, 100, 256])
                writes[stamp] = range(first, first + count)
                await fs.write(handle, first * BLOCK_BYTES, content(stamp, count))
                if chance.random() < 0.1:
                    await trio.sleep(chance.random() * 2 * MAXIMUM_AGE_S)

        async def sync() -> None:
            while True:
                await trio.sleep(chance.random() * MAXIMUM_AGE_S)
                await fs.fsync(handle)

        stored = stamps.apply

        def checked(changes: Sequence[Change], payload: bytes) -> None:
            stored(changes, payload)
            torn.extend(stamps.torn(writes))

        world.shelf.apply = checked  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sync)
            await write()
            nursery.cancel_scope.cancel()
        await fs.fsync(handle)
        assert not torn
        expected: dict[int, int] = {}
        for stamp, blocks in writes.items():
            expected.update(dict.fromkeys(blocks, stamp))
        assert stamps.blocks == expected


async def test_a_write_across_a_batch_is_one_commit() -> None:
    async with World(1).running() as world:
        fs = world.nodes[1].fs
        _, handle = await make(fs)
        stamps = Stamps(world)
        writes = {1: range(BATCH_BLOCKS - 10), 2: range(BATCH_BLOCKS - 10, BATCH_BLOCKS + 200)}
        for stamp, blocks in writes.items():
            offset = blocks.start * BLOCK_BYTES
            await fs.write(handle, offset, content(stamp, len(blocks)))
        await fs.fsync(handle)
        assert stamps.commits == 1


async def test_what_is_between_two_fsyncs_of_an_atomic_file_is_one_commit() -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        inode, handle = await make(one)
        await one.setxattr(inode, FLAG, b"1")
        stamps = Stamps(world)
        for n in range(50):
            await one.write(handle, n * 100 * BLOCK_BYTES, content(n + 1, 20))
        await one.write(handle, (STRIPE_BLOCKS + 5) * BLOCK_BYTES, content(99, 1))
        await trio.sleep(10 * MAXIMUM_AGE_S)
        assert stamps.commits == 0, "it does not trickle out"
        await one.fsync(handle)
        assert stamps.commits == 1
        assert len(stamps.blocks) == 50 * 20 + 1
        await one.write(handle, 0, content(7, 1))
        await one.write(handle, BLOCK_BYTES, content(8, 1))
        opened = await two.open(inode, os.O_RDONLY)
        assert await two.read(opened.handle, 0, 2 * BLOCK_BYTES) == content(7, 1) + content(8, 1)
        assert stamps.commits == 2, "another node reads: all at once"


async def test_the_last_close_of_an_atomic_file_stores_it() -> None:
    async with World(1).running() as world:
        fs = world.nodes[1].fs
        inode, handle = await make(fs)
        await fs.setxattr(inode, FLAG, b"1")
        other = (await fs.open(inode, os.O_WRONLY)).handle
        stamps = Stamps(world)
        await fs.write(handle, 0, content(1, 3))
        await fs.release(handle)
        assert stamps.commits == 0
        await fs.release(other)
        assert stamps.blocks == {0: 1, 1: 1, 2: 1}


async def test_an_atomic_file_takes_32_mib_and_no_more() -> None:
    async with World(1).running() as world:
        fs = world.nodes[1].fs
        inode, handle = await make(fs)
        await fs.setxattr(inode, FLAG, b"1")
        stamps = Stamps(world)
        for n in range(0, ATOMIC_BLOCKS, 256):
            await fs.write(handle, n * BLOCK_BYTES, content(1, 256))
        with pytest.raises(FileTooLarge, match="fsync"):
            await fs.write(handle, ATOMIC_BLOCKS * BLOCK_BYTES, b"x")
        await fs.write(handle, 0, content(2, 256))
        assert stamps.commits == 0
        await fs.fsync(handle)
        assert stamps.commits == 1
        await fs.write(handle, ATOMIC_BLOCKS * BLOCK_BYTES, b"x")


async def test_atomic_fsync_is_inherited_and_taken_away() -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        folder = await one.mkdir(ROOT, b"d", 0o755)
        assert folder.attributes is not None
        await one.setxattr(folder.attributes.inode, FLAG, b"1")
        below = await two.mkdir(folder.attributes.inode, b"e", 0o755)
        assert below.attributes is not None
        created = await two.create(below.attributes.inode, b"f", 0o644, os.O_RDWR, USER)
        assert created.entry.attributes is not None
        inode = created.entry.attributes.inode
        assert await one.getxattr(inode, FLAG) == b"1"
        assert await one.listxattr(inode) == [FLAG]
        stamps = Stamps(world)
        await two.write(created.opened.handle, 0, b"x")
        assert stamps.commits == 0
        await two.removexattr(inode, FLAG)
        await two.release(created.opened.handle)
        with pytest.raises(InvalidArgument):
            await one.setxattr(inode, FLAG, b"yes")
        plain = await two.create(ROOT, b"plain", 0o644, os.O_RDWR, USER)
        assert plain.entry.attributes is not None
        assert await one.listxattr(plain.entry.attributes.inode) == []


async def test_a_transaction_of_a_node_that_was_out_and_whose_file_changed_fails_whole() -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        inodes, handles = zip(*[await make(one, name) for name in (b"a", b"b")], strict=True)
        number = one.atomic.begin(handles[0])
        one.atomic.join(handles[1], number)
        for handle in handles:
            await one.write(handle, 0, b"mine")
        await trio.lowlevel.checkpoint()
        world.remove(1)
        other = (await two.open(inodes[1], os.O_RDWR)).handle
        await two.write(other, 0, b"theirs")
        await world.readmit(1)
        with pytest.raises(StaleHandle):
            await one.atomic.commit(handles[0])
        opened = (await two.open(inodes[0], os.O_RDONLY)).handle
        assert await two.read(opened, 0, 10) == b""
        assert await two.read(other, 0, 10) == b"theirs"


async def test_a_full_volume_refuses_a_transaction_whole() -> None:
    async with World(1, room_blocks=20).running() as world:
        fs = world.nodes[1].fs
        inode, handle = await make(fs)
        await fs.write(handle, 0, b"old")
        fs.atomic.begin(handle)
        await fs.write(handle, 0, bytes(30 * BLOCK_BYTES))
        with pytest.raises(OutOfSpace):
            await fs.atomic.commit(handle)
        assert await fs.read(handle, 0, 10) == b"old"
        await fs.setattr(inode, Changes(size=0))
        await fs.write(handle, 0, b"new")
        await fs.fsync(handle)
