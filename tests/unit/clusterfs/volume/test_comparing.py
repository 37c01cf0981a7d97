# ruff: noqa: ARG001 - pytest-trio takes its clock from the test's own arguments
"""Replicas that differ although no checksum is wrong are found, and made equal."""

import pytest
import trio
import trio.testing

from clusterfs.sim.volume_world import World
from clusterfs.store.objects import (
    ABSENT,
    BLOCK_BYTES,
    Change,
    Put,
    Version,
    Write,
    inode_object,
    stripe_object,
)
from clusterfs.volume.comparing import odd

Clock = trio.testing.MockClock
V1, V2 = Version(1, 1), Version(1, 2)


def test_most_are_right_and_the_first_in_a_draw() -> None:
    assert odd({1: (V1, b"a"), 2: (V1, b"b"), 3: (V1, b"b")}) == [1]
    assert odd({1: (V1, b"a"), 2: (V1, b"b")}) == [2]
    assert odd({1: (V1, b"a"), 2: (V1, b"b"), 3: (V1, b"c")}) == [2, 3]
    assert odd({1: (V2, b"a"), 2: (V1, b"a"), 3: (V2, b"a")}) == [2]


async def filled(nursery: trio.Nursery) -> World:
    """Three replicas of eight inodes and eight stripes."""
    world = World(1, nursery)
    for number in (1, 2, 3):
        await world.start(number)
    await world.settled()
    volume = world.nodes[1].volume
    for n in range(8):
        at = ABSENT.after(volume.epoch)
        inode = Change(inode_object(10 + n), n % 4, ABSENT, at, (Put(b"k", b"%d" % n),))
        stripe = Change(stripe_object(10 + n, 0), n % 4, ABSENT, at, (Write(0, 2),))
        await volume.commit([inode, stripe], bytes([n]) * 2 * BLOCK_BYTES)
    return world


async def compared(world: World) -> tuple[int, int]:
    """Let every node make a pass and heal; return how many copies were compared, and diverged."""
    found = await passed(world)
    await world.settled()
    return found


async def passed(world: World) -> tuple[int, int]:
    """Let every node make a pass."""
    comparers = [c for n in world.nodes.values() if (c := n.volume.comparer) is not None]
    for comparer in comparers:
        comparer.start()
    with trio.fail_after(60):
        while any(comparer.running for comparer in comparers):
            await trio.sleep(0.1)
    return sum(c.compared for c in comparers), sum(c.diverged for c in comparers)


@pytest.mark.parametrize("victim", [1, 2, 3])
async def test_a_copy_that_differs_is_made_equal(victim: int, autojump_clock: Clock) -> None:
    async with trio.open_nursery() as nursery:
        world = await filled(nursery)
        assert await compared(world) == (48, 0)
        objects = world.stores[victim]._objects
        objects[inode_object(12)].keys[b"k"] = b"something else"
        objects[stripe_object(13, 0)].blocks[1] = b"x" * BLOCK_BYTES
        del objects[inode_object(17)]
        with pytest.raises(AssertionError):
            world.assert_replicas_equal()
        assert (await compared(world))[1] >= 1
        await compared(world)
        world.assert_replicas_equal()
        values = await world.nodes[victim].volume.fetch(inode_object(12), 2, [b"k"])
        assert values[1] == [b"2"]
        pulled = sum(n.volume.statistics()["resync"]["pulled"] for n in world.nodes.values())
        assert pulled >= 3
        assert (await compared(world))[1] == 0
        nursery.cancel_scope.cancel()


async def test_what_is_written_all_the_time_is_no_divergence(autojump_clock: Clock) -> None:
    async with trio.open_nursery() as nursery:
        world = await filled(nursery)
        volume, written = world.nodes[2].volume, 0

        async def write() -> None:
            nonlocal written
            while True:
                version, _ = await volume.fetch(inode_object(10), 0, [])
                after = version.after(volume.epoch)
                change = Change(inode_object(10), 0, version, after, (Put(b"k", b"%d" % written),))
                await volume.commit([change])
                written += 1

        async with trio.open_nursery() as writers:
            writers.start_soon(write)
            assert (await passed(world))[1] == 0
            writers.cancel_scope.cancel()
        assert written
        assert not world.nodes[1].views.dropped
        nursery.cancel_scope.cancel()
