"""Whatever a kernel caches, a read, stat or lookup sees what completed before it on any node."""

# ruff: noqa: ARG001  a clock that is asked for is the clock of the test

import os
import random
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from clusterfs.fs.coherence import complement
from clusterfs.fs.filesystem import Filesystem
from clusterfs.fs.keys import ROOT
from clusterfs.fs.locks import EX, PR
from clusterfs.fs.results import Changes
from clusterfs.sim.mounts import World
from clusterfs.store.objects import BLOCK_BYTES


@pytest.mark.parametrize(
    ("parked", "expected"),
    [
        ([], [(0, 0)]),
        ([(0, 4096)], [(4096, 0)]),
        ([(8192, 4096), (32768, 100)], [(0, 8192), (12288, 20480), (36864, 0)]),
        ([(4096, 8192), (8192, 8192)], [(0, 4096), (16384, 0)]),
    ],
)
def test_complement(parked: list[tuple[int, int]], expected: list[tuple[int, int]]) -> None:
    assert complement(Counter(parked)) == expected


async def make(fs: Filesystem, name: bytes = b"f", data: bytes = b"") -> tuple[int, int]:
    created = await fs.create(ROOT, name, 0o644, os.O_RDWR)
    if data:
        await fs.write(created.opened.handle, 0, data)
    assert created.entry.attributes is not None
    return created.entry.attributes.inode, created.opened.handle


async def make_public(world: World, data: bytes) -> int:
    """Return a new file's inode, when every node has found its name."""
    inode, _ = await make(world.nodes[1].fs, data=data)
    for node in world.nodes.values():
        await node.fs.lookup(ROOT, b"f")
    return inode


def page_of(value: int) -> bytes:
    return bytes([value]) * BLOCK_BYTES


async def test_cached_pages_go_before_another_node_writes() -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1], world.nodes[2]
        inode, writing = await make(one.fs, data=page_of(1) * 4)
        reading = (await two.fs.open(inode, os.O_RDONLY)).handle
        assert await two.kernel.read_page(inode, reading, 2) == page_of(1)
        assert (inode, 2) in two.kernel.pages
        await one.fs.write(writing, 2 * BLOCK_BYTES, page_of(2))
        assert (inode, 2) not in two.kernel.pages
        assert await two.kernel.read_page(inode, reading, 2) == page_of(2)
        world.validate()


async def test_attributes_and_names_are_believed_only_under_the_lock(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1], world.nodes[2]
        inode, handle = await make(one.fs)
        await trio.sleep(3)  # the root was fought over until now
        assert (await two.kernel.stat(inode)).size == 0
        assert (await two.kernel.stat(inode)).size == 0
        assert (await two.kernel.look(ROOT, b"g")).attributes is None
        assert two.kernel.names[ROOT, b"g"][1] > trio.current_time()
        await one.fs.write(handle, 0, b"12345")
        assert (await two.kernel.stat(inode)).size == 5
        await one.fs.rename(ROOT, b"f", ROOT, b"g")
        assert (await two.kernel.look(ROOT, b"g")).attributes is not None
        assert (await two.kernel.look(ROOT, b"f")).attributes is None


async def test_stores_into_a_mapping_are_seen_by_the_other_node() -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1], world.nodes[2]
        inode, mapped = await make(one.fs, data=page_of(1) * 2)
        reading = (await two.fs.open(inode, os.O_RDONLY)).handle
        for value in range(2, 6):
            await one.kernel.store(inode, mapped, 1, value)
            assert await two.fs.read(reading, BLOCK_BYTES, BLOCK_BYTES) == page_of(value)
            assert (await two.kernel.read_page(inode, reading, 1)) == page_of(value)
        world.validate()


async def test_a_read_that_comes_in_while_pages_are_dropped_does_not_hold_the_lock_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The new READ's page is locked, and the running invalidation waits for it."""
    async with World(2).running() as world:
        one, two = world.nodes[1], world.nodes[2]
        inode, writing = await make(one.fs, data=page_of(1) * 4)
        reading = (await two.fs.open(inode, os.O_RDONLY)).handle
        for index in range(3):
            await two.kernel.read_page(inode, reading, index)
        calls = []

        async def invalidate(number: int, ranges: Sequence[tuple[int, int]]) -> None:
            calls.append(list(ranges))
            if len(calls) == 1:  # the kernel locks page 3 just before the call comes to it
                nursery.start_soon(two.kernel.read_page, inode, reading, 3)
                await trio.sleep(1)
            await type(two.kernel).invalidate_pages(two.kernel, number, ranges)

        two.kernel.invalidate_pages = invalidate  # type: ignore[method-assign, assignment]
        async with trio.open_nursery() as nursery:
            with trio.fail_after(30):
                await one.fs.write(writing, 0, page_of(2))
        assert calls[0] == [(0, 0)]
        assert calls[1] == [(0, 3 * BLOCK_BYTES), (4 * BLOCK_BYTES, 0)]
        assert await two.kernel.read_page(inode, reading, 0) == page_of(2)


async def test_no_entry_timeouts_where_dentries_cannot_be_dropped_or_are_fought_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1], world.nodes[2]
        await make(one.fs)
        await trio.sleep(3)
        assert (await two.fs.lookup(ROOT, b"f")).entry_timeout_s > 0
        await make(one.fs, b"g")
        assert (await two.fs.lookup(ROOT, b"g")).entry_timeout_s == 0
        await trio.sleep(3)
        one.kernel.dentries_can_be_dropped = False
        assert (await one.fs.lookup(ROOT, b"g")).entry_timeout_s == 0


async def test_the_lease_bounds_what_the_kernel_may_believe() -> None:
    async with World(1).running() as world:
        node = world.nodes[1]
        inode, _ = await make(node.fs)
        assert (await node.fs.getattr(inode)).attribute_timeout_s == 1.0
        node.lease_left_s = 0.25
        assert (await node.fs.getattr(inode)).attribute_timeout_s == 0.25
        assert (await node.fs.lookup(ROOT, b"f")).entry_timeout_s <= 0.25


async def test_sizes_cross_nodes_by_truncate_and_append() -> None:
    async with World(3).running() as world:
        inode, handle = await make(world.nodes[1].fs, data=b"x" * 5000)
        await world.nodes[2].fs.lookup(ROOT, b"f")
        two = (await world.nodes[2].fs.open(inode, os.O_WRONLY | os.O_APPEND)).handle
        await world.nodes[2].fs.write(two, 0, b"end")
        await world.nodes[1].fs.write(handle, 5003, b"!")
        await world.nodes[3].fs.setattr(inode, Changes(size=5002))
        await world.nodes[3].fs.setattr(inode, Changes(size=5010))
        data = await world.nodes[1].fs.read(handle, 4999, 100)
        assert data == b"xen" + bytes(8)


class Register:
    """A page as a register: what a reader may see, given what was written when."""

    def __init__(self) -> None:
        self.next = 1
        self.completed = 0  # the newest write known to be complete

    def begin(self) -> int:
        self.next += 1
        return self.next - 1


@pytest.mark.parametrize("seed", range(24))
def test_registers_never_go_back(seed: int) -> None:  # noqa: C901
    """Writers through write() and mappings, readers through caches and not, on three nodes."""

    async def main() -> None:  # noqa: C901
        chance = random.Random(seed)
        pages = [Register() for _ in range(3)]
        async with World(3, seed=seed).running() as world:
            inode = await make_public(world, bytes(len(pages) * BLOCK_BYTES))
            writing = trio.Lock()  # one write at a time: so "newest" has a meaning

            async def write(number: int, *, mapped: bool) -> None:
                node = world.nodes[number]
                opened = await node.fs.open(inode, os.O_RDWR)
                for _ in range(6):
                    index = chance.randrange(len(pages))
                    async with writing:
                        value = pages[index].begin()
                        if mapped:
                            await node.kernel.store(inode, opened.handle, index, value)
                        else:
                            place = opened.handle, index * BLOCK_BYTES
                            await node.fs.write(*place, page_of(value))
                            node.kernel.pages.pop((inode, index), None)
                        pages[index].completed = value
                    for _ in range(chance.randrange(20)):
                        await trio.lowlevel.checkpoint()
                if mapped:
                    await node.kernel.invalidate_pages(inode, [(0, 0)])
                await node.fs.release(opened.handle)

            async def read(number: int, *, cached: bool) -> None:
                node = world.nodes[number]
                opened = await node.fs.open(inode, os.O_RDONLY)
                for _ in range(12):
                    index = chance.randrange(len(pages))
                    oldest = pages[index].completed
                    if cached:
                        data = await node.kernel.read_page(inode, opened.handle, index)
                    else:
                        place = opened.handle, index * BLOCK_BYTES, BLOCK_BYTES
                        data = await node.fs.read(*place)
                    assert len(set(data)) == 1, "torn"
                    assert oldest <= data[0] < pages[index].next, (number, index, cached)
                    for _ in range(chance.randrange(10)):
                        await trio.lowlevel.checkpoint()

            with trio.fail_after(100):
                async with trio.open_nursery() as nursery:
                    for number in world.nodes:
                        mapped = number == 1 + seed % 3
                        nursery.start_soon(partial(write, number, mapped=mapped))
                        nursery.start_soon(partial(read, number, cached=True))
                        # a direct read beside a mapping would have the kernel write it back first
                        nursery.start_soon(partial(read, number, cached=mapped))
            world.validate()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


async def test_a_page_that_comes_in_while_the_file_is_opened_to_write_is_not_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with World(2).running() as world:
        inode = await make_public(world, bytes(BLOCK_BYTES))
        node = world.nodes[1]
        for left in list(node.fs._inodes.get(inode).opened):
            await node.fs.release(left.handle)
        opened = await node.fs.open(inode, os.O_RDONLY)
        known, files = node.fs._inodes.get(inode), node.fs._files
        await world.nodes[2].fs.getattr(inode)
        await node.fs.getattr(inode)
        assert known.lock.level == PR
        read = files._read_waiting

        async def read_and_open(*arguments: Any) -> bytes:
            data = await read(*arguments)
            if not known.writers:
                await node.fs.open(inode, os.O_RDWR)
            return data

        monkeypatch.setattr(files, "_read_waiting", read_and_open)
        await node.kernel.read_page(inode, opened.handle, 0)
        assert known.lock.level == EX, "a mapping may store into the page without a word"
        world.validate()
