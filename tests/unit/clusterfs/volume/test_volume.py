# ruff: noqa: ARG001 - pytest-trio takes its clock from the test's own arguments
"""Volumes on model stores over a simulated network: commits, reads, syncs, views that change."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from clusterfs.cluster import membership
from clusterfs.errors import ChunkCorrupted, OutOfSpace, VersionMismatch, WouldBlock
from clusterfs.sim.model_store import ModelStore
from clusterfs.sim.volume_world import Node, World
from clusterfs.store.objects import (
    ABSENT,
    BLOCK_BYTES,
    MARK,
    Change,
    Delete,
    ObjectId,
    Put,
    Version,
    Write,
    inode_object,
    stripe_object,
)
from clusterfs.volume.copies import BLOCKS_PER_CALL, STEP_KEYS
from clusterfs.volume.volume import Volume
from dlm.errors import LockLost

Clock = trio.testing.MockClock  # `autojump_clock`: simulated time costs nothing


@asynccontextmanager
async def cluster(nodes: int = 3, **options: int) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        world = World(1, nursery, **options)
        for number in range(1, nodes + 1):
            await world.start(number)
        await world.settled()
        yield world
        nursery.cancel_scope.cancel()


def put(volume: Volume, object_id: ObjectId, group: int, value: bytes, at: Version) -> Change:
    return Change(object_id, group, at, at.after(volume.epoch), (Put(b"k", value),))


async def write(volume: Volume, object_id: ObjectId, group: int, value: bytes) -> None:
    version, _ = await volume.fetch(object_id, group, [])
    await volume.commit([put(volume, object_id, group, value, version)])


async def value(volume: Volume, object_id: ObjectId, group: int) -> bytes | None:
    return (await volume.fetch(object_id, group, [b"k"]))[1][0]


async def test_a_commit_is_in_every_replica_when_it_returns(autojump_clock: Clock) -> None:
    async with cluster() as world:
        volume = world.nodes[1].volume
        await volume.commit([put(volume, inode_object(7), 0, b"v", ABSENT)])
        assert [s.get(inode_object(7), b"k") for s in world.stores.values()] == [b"v"] * 3
        assert world.nodes[2].volume.fetch_nowait(inode_object(7), 0, [b"k"])[1] == [b"v"]


async def test_blocks_and_holes_read_back_everywhere(autojump_clock: Clock) -> None:
    async with cluster() as world:
        volume = world.nodes[1].volume
        stripe, data = stripe_object(7, 0), bytes([5]) * BLOCK_BYTES
        change = Change(stripe, 1, ABSENT, ABSENT.after(volume.epoch), (Write(2, 1),))
        await volume.commit([change], data)
        for node in world.nodes.values():
            assert await node.volume.read(stripe, 1, 1, 3) == bytes(4096) + data + bytes(4096)
            assert [found[:2] for found in await node.volume.stripes(7)] == [(0, 1)]


async def test_pipelined_commits_of_one_object_keep_their_order(autojump_clock: Clock) -> None:
    async with cluster() as world:
        volume = world.nodes[2].volume
        async with trio.open_nursery() as nursery:
            version = ABSENT
            for i in range(50):
                change = put(volume, inode_object(9), 3, b"%d" % i, version)
                nursery.start_soon(volume.commit, [change])
                version = change.version
                await trio.lowlevel.checkpoint()
        assert await value(world.nodes[3].volume, inode_object(9), 3) == b"49"


async def test_a_wrong_expectation_fails_everywhere_and_changes_nothing(
    autojump_clock: Clock,
) -> None:
    async with cluster() as world:
        volume = world.nodes[1].volume
        await write(volume, inode_object(7), 0, b"v")
        with pytest.raises(VersionMismatch):
            await volume.commit([put(volume, inode_object(7), 0, b"w", ABSENT)])
        world.assert_replicas_equal()
        assert await value(volume, inode_object(7), 0) == b"v"


async def test_sync_makes_it_survive_a_crash_of_all(autojump_clock: Clock) -> None:
    async with cluster() as world:
        volume = world.nodes[1].volume
        await write(volume, inode_object(7), 2, b"v")
        await volume.sync()
        gone = world.crash(1, 2, 3)
        world.agreement.remove(gone)
        for number in (1, 2, 3):
            await world.start(number)
        await world.settled()
        assert await value(world.nodes[3].volume, inode_object(7), 2) == b"v"
        world.assert_replicas_equal()


async def test_a_durable_commit_survives_a_crash_of_all_and_took_no_sync(
    autojump_clock: Clock,
) -> None:
    async with cluster() as world:
        volume = world.nodes[1].volume
        await write(volume, inode_object(8), 3, b"before")
        rounds = volume._syncer.rounds
        change = put(volume, inode_object(7), 2, b"v", ABSENT)
        await volume.commit([change], durable=True)
        assert volume._syncer.rounds == rounds
        gone = world.crash(1, 2, 3)
        world.agreement.remove(gone)
        for number in (1, 2, 3):
            await world.start(number)
        await world.settled()
        assert await value(world.nodes[3].volume, inode_object(7), 2) == b"v"
        assert await value(world.nodes[3].volume, inode_object(8), 3) == b"before"
        world.assert_replicas_equal()


async def test_a_durable_commit_syncs_the_replicas_that_it_did_not_go_to(
    autojump_clock: Clock,
) -> None:
    async with cluster(4, replicas=3) as world:
        volume = world.nodes[1].volume
        await write(volume, inode_object(8), 3, b"before")
        rounds = volume._syncer.rounds
        await volume.commit([put(volume, inode_object(7), 2, b"v", ABSENT)], durable=True)
        assert volume._syncer.rounds > rounds
        assert all(store._durable == len(store._journal) for store in world.stores.values())


async def test_a_durable_commit_is_not_acknowledged_by_a_replica_that_cannot_sync(
    autojump_clock: Clock,
) -> None:
    async with cluster() as world:
        volume = world.nodes[1].volume
        world.stores[3].broken = True
        change = put(volume, inode_object(7), 2, b"v", ABSENT)
        await volume.commit([change], durable=True)
        assert not world.agreement.view.in_sync[2] >> 3 & 1, "it was dropped first"


async def test_the_loss_of_a_replica_stalls_a_commit_only_until_the_view_changes(
    autojump_clock: Clock,
) -> None:
    async with cluster() as world:
        volume = world.nodes[1].volume
        gone = world.crash(3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, volume, inode_object(7), 0, b"v")
            await trio.sleep(0.5)
            assert volume.statistics()["outstanding"] == 1
            world.agreement.expel(gone)
        world.agreement.remove(gone)
        await world.settled()
        assert await value(world.nodes[2].volume, inode_object(7), 0) == b"v"


async def test_a_returning_replica_becomes_equal_while_writes_go_on(autojump_clock: Clock) -> None:
    async with cluster() as world:
        volume = world.nodes[1].volume
        for i in range(20):
            await write(volume, inode_object(i), i % 4, b"old")
        gone = world.crash(3)
        world.agreement.remove(gone)
        for i in range(10):
            await write(volume, inode_object(i), i % 4, b"new")
        version, _ = await volume.fetch(inode_object(11), 3, [])
        await volume.commit(
            [Change(inode_object(11), 3, version, version.after(volume.epoch), (Delete(),))]
        )
        stop = trio.Event()

        async def keep_writing() -> None:
            i = 0
            while not stop.is_set():
                i += 1
                await write(volume, inode_object(i % 20 + 100), 1, b"%d" % i)
                await write(volume, inode_object(5), 1, b"%d" % i)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_writing)
            await world.start(3)
            with trio.fail_after(60):
                while any(world.agreement.view.syncing):
                    await trio.sleep(0.01)
            stop.set()
        await world.settled()
        world.assert_replicas_equal()
        assert world.agreement.view.in_sync == (0b1110,) * 4


async def test_a_dead_clients_last_transaction_reaches_all_or_none(autojump_clock: Clock) -> None:
    for cut in ([(1, 2)], [(1, 3)], [(1, 2), (1, 3)]):
        async with cluster() as world:
            volume = world.nodes[1].volume
            await write(volume, inode_object(7), 0, b"old")
            for pair in cut:
                world.network.cut(*pair)
            with trio.move_on_after(0.5):
                await write(volume, inode_object(7), 0, b"new")
            gone = world.crash(1)
            world.agreement.expel(gone)
            world.agreement.remove(gone)
            await world.settled()
            world.assert_replicas_equal()
            found = await value(world.nodes[2].volume, inode_object(7), 0)
            assert found == (b"old" if len(cut) == 2 else b"new")


async def test_reads_wait_for_the_gate(autojump_clock: Clock) -> None:
    async with cluster() as world:
        await write(world.nodes[1].volume, inode_object(7), 0, b"v")
        world.network.cut(2, 3)
        world.agreement.remove(world.crash(1))
        await trio.sleep(0.2)
        with pytest.raises(WouldBlock):
            world.nodes[2].volume.fetch_nowait(inode_object(7), 0, [b"k"])
        with trio.move_on_after(1.0) as waited:
            await world.nodes[2].volume.fetch(inode_object(7), 0, [b"k"])
        assert waited.cancelled_caught
        world.network.heal(2, 3)
        assert await value(world.nodes[2].volume, inode_object(7), 0) == b"v"


async def test_a_replica_that_fails_alone_leaves_the_set(autojump_clock: Clock) -> None:
    async with cluster() as world:
        world.stores[3].broken = True
        await write(world.nodes[1].volume, inode_object(7), 0, b"v")
        assert world.agreement.view.in_sync[0] == 0b0110
        while world.nodes[3].volume.epoch < world.agreement.view.epoch:  # nobody told it yet
            await trio.sleep(0.01)
        assert await value(world.nodes[3].volume, inode_object(7), 0) == b"v"


async def test_a_replica_that_never_answers_is_dropped(autojump_clock: Clock) -> None:
    async with cluster() as world:
        world.nodes[3].mesh.paused = trio.Event()
        await write(world.nodes[1].volume, inode_object(7), 0, b"v")
        assert not world.agreement.view.in_sync[0] >> 3 & 1


async def test_a_replica_that_was_too_slow_returns_and_a_broken_one_does_not(
    autojump_clock: Clock,
) -> None:
    async with cluster() as world:
        world.stores[2].broken = True
        paused = world.nodes[3].mesh.paused = trio.Event()
        await write(world.nodes[1].volume, inode_object(7), 0, b"v")
        assert world.agreement.view.in_sync == (0b10,) * 4
        paused.set()
        world.nodes[3].mesh.paused = None
        with trio.fail_after(600):
            while world.agreement.view.in_sync != (0b1010,) * 4:
                await trio.sleep(0.1)
        await trio.sleep(2000)
        assert world.agreement.view.in_sync == (0b1010,) * 4
        assert world.agreement.view.dropped == 0b100
        assert await value(world.nodes[3].volume, inode_object(7), 0) == b"v"


async def test_a_damaged_block_is_read_from_another_and_repaired(autojump_clock: Clock) -> None:
    async with cluster() as world:
        volume = world.nodes[1].volume
        stripe, data = stripe_object(7, 0), bytes([9]) * BLOCK_BYTES
        change = Change(stripe, 1, ABSENT, ABSENT.after(volume.epoch), (Write(0, 1),))
        await volume.commit([change], data)
        world.stores[1].rotten.add((stripe, 0))
        with pytest.raises(WouldBlock):
            volume.read_nowait(stripe, 1, 0, 1)
        assert await volume.read(stripe, 1, 0, 1) == data
        while world.stores[1].rotten:
            await trio.sleep(0.01)
        assert volume.read_nowait(stripe, 1, 0, 1) == data
        assert volume.statistics()["repaired"] == 1


async def test_copies_damaged_in_different_places_are_good_together(
    autojump_clock: Clock,
) -> None:
    async with cluster() as world:
        volume = world.nodes[1].volume
        stripe = stripe_object(7, 0)
        data = b"".join(bytes([n]) * BLOCK_BYTES for n in range(1, 12))
        change = Change(stripe, 1, ABSENT, ABSENT.after(volume.epoch), (Write(0, 11),))
        await volume.commit([change], data)
        for number, store in world.stores.items():
            store.rotten |= {(stripe, number), (stripe, 3 + number)}
        assert await volume.read(stripe, 1, 0, 11) == data


async def test_a_block_that_no_replica_can_read_is_an_error_at_once(autojump_clock: Clock) -> None:
    """It was a wait without end where this node alone had the object."""
    async with cluster() as world:
        volume = world.nodes[1].volume
        stripe, data = stripe_object(7, 0), bytes([9]) * BLOCK_BYTES
        change = Change(stripe, 1, ABSENT, ABSENT.after(volume.epoch), (Write(0, 1),))
        await volume.commit([change], data)
        for rotten in ((1, 2, 3), (1,)):
            for store in world.stores.values():
                store.rotten.clear()
            for number in rotten:
                world.stores[number].rotten.add((stripe, 0))
            if rotten == (1,):
                for number in (2, 3):
                    world.agreement.remove([world.nodes[number].incarnation])
                while world.nodes[1].volume.epoch < world.agreement.view.epoch:
                    await trio.sleep(0.01)
            with trio.fail_after(60), pytest.raises(ChunkCorrupted, match=r"no replica in sync"):
                await volume.read(stripe, 1, 0, 1)


async def test_losing_the_membership_fails_waits_and_a_session_starts_anew(
    autojump_clock: Clock,
) -> None:
    async with cluster() as world:
        node = world.nodes[1]
        world.network.cut(1, 2)
        failed = trio.Event()

        async def doomed() -> None:
            with pytest.raises(LockLost):
                await write(node.volume, inode_object(7), 0, b"v")
            failed.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(doomed)
            await trio.sleep(0.1)
            world.agreement.remove([node.incarnation])
            await failed.wait()
        with pytest.raises(LockLost):
            await node.volume.sync()
        world.network.heal(1, 2)
        await world.settled_without(1)
        await rejoin(world, node)
        await world.settled()
        await write(node.volume, inode_object(8), 0, b"v")
        world.assert_replicas_equal()


@pytest.mark.parametrize("moment", range(12))
async def test_a_node_that_is_removed_while_it_catches_up_or_restarts_comes_back_again(
    autojump_clock: Clock, moment: int
) -> None:
    async with cluster() as world:
        node = world.nodes[1]
        for number in range(20):
            await write(node.volume, inode_object(number), 0, b"v")
        for numbers in ((1,), (1, 2, 3)):  # it syncs with the others; all groups were stopped
            for attempt in range(3):
                nodes = [world.nodes[number] for number in numbers]
                world.agreement.remove([one.incarnation for one in nodes])
                for one in nodes:
                    with trio.fail_after(60):
                        await one.views.lost.wait()
                for one in nodes:
                    await rejoin(world, one)
                if attempt < 2:
                    await trio.sleep(0.01 + 0.007 * moment)
            await world.settled()
        world.assert_replicas_equal()


async def rejoin(world: World, node: Node) -> None:
    """What the daemon does with the real membership."""
    node.rejoin(world.agreement.join(node.number))
    world.nursery.start_soon(node.views.run)


async def test_credits_run_out_before_the_space_does(autojump_clock: Clock) -> None:
    async with cluster(total_bytes=100 << 20) as world:
        volume = world.nodes[1].volume
        taken = 0
        with pytest.raises(OutOfSpace):  # noqa: PT012
            while True:
                await volume.reserve(1 << 20)
                taken += 1 << 20
        assert 10 << 20 <= taken <= 95 << 20
        other = 0
        with pytest.raises(OutOfSpace):  # noqa: PT012
            while True:
                await world.nodes[2].volume.reserve(1 << 20)
                other += 1 << 20
        assert taken + other <= 95 << 20
        volume.unreserve(taken)
        await volume.reserve(1 << 20)
        assert (await volume.statfs()).total == 100 << 20


async def test_a_newcomer_waits_for_its_share_of_what_others_hold(autojump_clock: Clock) -> None:
    async with cluster(total_bytes=100 << 20) as world:
        for number in (1, 2, 3):
            await world.nodes[number].volume.reserve(1 << 20)
        newcomer = await world.start(4)
        await newcomer.volume.reserve(1 << 20)


async def test_a_silent_replica_is_no_full_disk(autojump_clock: Clock) -> None:
    async with cluster(total_bytes=100 << 20) as world, trio.open_nursery() as nursery:
        volume = world.nodes[1].volume
        while volume.reserve_nowait(1 << 20):
            pass
        world.network.cut(1, 2)
        refusals = []

        async def want() -> None:
            with pytest.raises(OutOfSpace) as refusal:
                await volume.reserve(1 << 30)
            refusals.append(refusal)

        nursery.start_soon(want)
        await trio.sleep(20)
        assert not refusals, "the replica said nothing yet"
        world.network.heal(1, 2)
        await trio.sleep(20)
        assert refusals


async def test_who_is_removed_waits_no_longer_for_credits(autojump_clock: Clock) -> None:
    async with cluster(total_bytes=100 << 20) as world, trio.open_nursery() as nursery:
        volume = world.nodes[1].volume
        world.network.cut(1, 2)
        ended = trio.Event()

        async def want() -> None:
            with pytest.raises(LockLost):
                await volume.reserve(1 << 30)
            ended.set()

        nursery.start_soon(want)
        await trio.sleep(2)
        volume.lose()
        with trio.fail_after(1):
            await ended.wait()


async def test_groups_with_different_replicas_commit_together(autojump_clock: Clock) -> None:
    async with cluster(4, groups=8, replicas=2) as world:
        view = world.agreement.view
        one, other = differing_groups(view.in_sync)
        volume = world.nodes[1].volume
        ids = inode_object(7), inode_object(8)
        async with trio.open_nursery() as nursery:
            versions = [ABSENT, ABSENT]
            for i in range(10):  # chained: each waits for the decision before it
                changes = [
                    put(volume, ids[0], one, b"%d" % i, versions[0]),
                    put(volume, ids[1], other, b"%d" % i, versions[1]),
                ]
                versions = [change.version for change in changes]
                nursery.start_soon(volume.commit, changes)
                await trio.testing.wait_all_tasks_blocked()
        assert volume.statistics()["prepares"] == 10
        for node in world.nodes.values():
            assert await value(node.volume, ids[0], one) == b"9"
            assert await value(node.volume, ids[1], other) == b"9"
        world.assert_replicas_equal()


async def test_marked_objects_are_found_over_all_replicas(autojump_clock: Clock) -> None:
    async with cluster(4, groups=8, replicas=2) as world:
        volume = world.nodes[1].volume
        for group in range(8):
            change = Change(
                inode_object(group + 50),
                group,
                ABSENT,
                ABSENT.after(volume.epoch),
                (Put(MARK, b"m"),),
            )
            await volume.commit([change])
        assert await volume.marked(range(8)) == [inode_object(g + 50) for g in range(8)]
        assert await volume.marked([3]) == [inode_object(53)]


def differing_groups(masks: tuple[int, ...]) -> tuple[int, int]:
    for group, mask in enumerate(masks):
        if mask != masks[0]:
            return 0, group
    raise AssertionError("all groups have the same replicas")


async def test_a_huge_directory_is_described_and_copied_in_steps(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster() as world:
        limits: set[int] = set()
        scan = ModelStore.scan

        def noted(self: ModelStore, o: ObjectId, prefix: bytes, after: bytes, limit: int) -> Any:
            limits.add(limit)
            return scan(self, o, prefix, after, limit)

        volume, name = world.nodes[1].volume, inode_object(7)
        monkeypatch.setattr(ModelStore, "scan", noted)
        world.network.cut(1, 3)
        world.network.cut(2, 3)
        version = ABSENT
        for first in range(0, 10_000, 2500):
            puts = tuple(Put(b"e%05d" % n, b"v") for n in range(first, first + 2500))
            following = version.after(volume.epoch)
            await volume.commit([Change(name, 0, version, following, puts)])
            version = following
        world.network.heal(1, 3)
        world.network.heal(2, 3)
        await world.settled()
        assert world.stores[3].version(name) == ABSENT, "it left the set"
        assert world.nodes[3].volume._resync is not None
        await world.nodes[3].volume._resync.pull(1, name)
        assert world.stores[3].contents() == world.stores[1].contents()
        assert limits
        assert max(limits) <= STEP_KEYS


async def test_a_sync_waits_for_a_silent_replica_only_if_it_needs_it(
    autojump_clock: Clock,
) -> None:
    async with cluster(5, groups=8) as world:
        volume, view = world.nodes[1].volume, world.agreement.view
        silent = next(n for n in (2, 3, 4, 5) if any(not m >> n & 1 for m in view.in_sync))
        hers = next(g for g, mask in enumerate(view.in_sync) if mask >> silent & 1)
        others = next(g for g, mask in enumerate(view.in_sync) if not mask >> silent & 1)
        await write(volume, inode_object(6), hers, b"hers")
        for node in world.nodes:
            world.network.cut(node, silent)
        await write(volume, inode_object(7), others, b"others")
        with trio.fail_after(1):
            await volume.sync((7,))
            change = put(volume, inode_object(8), others, b"durable", ABSENT)
            await volume.commit([change], durable=True)
        for wanted in ((6,), (6, 7), None):
            with trio.move_on_after(3) as scope:
                await volume.sync(wanted)
            assert scope.cancelled_caught, "what she has in memory only is not on all disks"
        assert volume._syncer.rounds < 200, "whoever waits for her asks all others without a pause"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.sync, (6,))
            await trio.testing.wait_all_tasks_blocked()
            world.agreement.remove(world.crash(silent))
        await world.settled()
        world.agreement.remove(world.crash(*world.nodes))
        for number in (1, 2, 3, 4, 5):
            if number != silent:
                await world.start(number)
        await world.settled()
        survivor = next(iter(world.nodes.values())).volume
        assert await value(survivor, inode_object(6), hers) == b"hers"
        assert await value(survivor, inode_object(7), others) == b"others"
        assert await value(survivor, inode_object(8), others) == b"durable"


async def test_a_sync_does_not_wait_for_a_replica_that_started_anew(autojump_clock: Clock) -> None:
    async with cluster() as world:
        world.network.cut(1, 2)
        synced = trio.Event()

        async def sync() -> None:
            await world.nodes[1].volume.sync()
            synced.set()

        world.nursery.start_soon(sync)
        await trio.sleep(0.1)
        world.crash(2)
        await world.start(2)  # one view takes the old start out and lets the new one in
        world.network.heal(1, 2)
        with trio.fail_after(60):
            await synced.wait()


async def test_a_copy_that_is_of_no_use_is_deleted_when_all_know(autojump_clock: Clock) -> None:
    async with cluster(2, replicas=2, groups=8) as world:
        volume = world.nodes[1].volume
        for group in range(8):
            await volume.commit([put(volume, inode_object(10 + group), group, b"v", ABSENT)])
        world.network.cut(1, 3)  # node 1 is not told of what comes
        await world.start(3)
        await trio.sleep(5)
        assert all(len(world.stores[n].contents()) == 8 for n in (1, 2))
        world.network.heal(1, 3)
        await world.settled()
        await trio.sleep(5)
        world.assert_trimmed()
        world.assert_replicas_equal()
        assert sum(len(store.contents()) for store in world.stores.values()) == 16
        for node in world.nodes.values():
            for group in range(8):
                assert await value(node.volume, inode_object(10 + group), group) == b"v"


async def test_a_retiring_node_is_emptied_while_writes_go_on(autojump_clock: Clock) -> None:
    async with cluster(3, replicas=2, groups=8) as world:
        volume = world.nodes[1].volume
        for group in range(8):
            await write(volume, inode_object(10 + group), group, b"v")
        world.agreement.propose(lambda view: membership.retired(view, 1))
        count = 0
        while membership.held(world.agreement.view, 1):
            count += 1
            for group in range(8):
                await write(volume, inode_object(10 + group), group, b"%d" % count)
                copies = world.agreement.view.in_sync[group].bit_count()
                assert copies >= 2
        await world.settled()
        world.assert_replicas_equal()
        for group in range(8):
            assert await value(volume, inode_object(10 + group), group) == b"%d" % count
        assert world.stores[1].contents(), "it keeps what it has until its brick is taken away"


async def test_a_resync_tells_how_far_it_is_and_keeps_to_its_rate(autojump_clock: Clock) -> None:
    async with cluster(1) as world:
        volume = world.nodes[1].volume
        blocks = 64
        for n in range(4):
            data = b"".join(bytes([1 + n, i]) * (BLOCK_BYTES // 2) for i in range(blocks))
            object_id = stripe_object(7, n)
            change = Change(object_id, 0, ABSENT, ABSENT.after(volume.epoch), (Write(0, blocks),))
            await volume.commit([change], data)
        begun_s = trio.current_time()
        node = await world.start(2)
        node.volume.set_resync_rate(64 * BLOCK_BYTES)
        parts, known = [], []
        while any(world.agreement.view.syncing):
            report = (await volume.resync_reports()).get(2)
            if report is not None:
                parts.append(report.part)
                known.append(report.eta_s)
            await trio.sleep(0.1)
        assert trio.current_time() - begun_s >= 3, "four seconds' worth at that rate"
        assert parts == sorted(parts)
        assert any(0 < part < 1 for part in parts)
        assert any(known)
        report = node.volume.statistics()["resync"]
        assert report["pulled_bytes"] == 4 * blocks * BLOCK_BYTES
        assert (report["part"], report["eta_s"]) == (1.0, 0.0)


async def test_a_resync_that_a_view_interrupts_goes_on_and_counts_all_that_it_copied(
    autojump_clock: Clock,
) -> None:
    async with cluster(1) as world:
        volume, blocks = world.nodes[1].volume, 4 * BLOCKS_PER_CALL
        data = b"".join(n.to_bytes(8) * (BLOCK_BYTES // 8) for n in range(1, blocks + 1))
        object_id = stripe_object(7, 0)
        change = Change(object_id, 0, ABSENT, ABSENT.after(volume.epoch), (Write(0, blocks),))
        await volume.commit([change], data)
        node = await world.start(2)
        node.volume.set_resync_rate(BLOCKS_PER_CALL * BLOCK_BYTES)

        def copied() -> int:
            return int(node.volume.statistics()["resync"]["pulled_bytes"])

        store = world.stores[2]
        while store.version(object_id) == ABSENT or not store.blocks(object_id):
            await trio.sleep(0.1)
        await world.start(3)
        await world.settled()
        piece = BLOCKS_PER_CALL * BLOCK_BYTES
        assert len(data) <= copied() <= len(data) + piece
        assert world.stores[2].contents() == world.stores[1].contents()


async def test_a_view_in_the_middle_of_a_comparison_begins_it_anew(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(2, replicas=2) as world:
        resync = world.nodes[2].volume._resync
        assert resync is not None
        site, view = resync._site, world.agreement.view
        syncing = msgspec.structs.replace(view, in_sync=(0b010,) * 4, syncing=(0b100,) * 4)
        ask = site.call

        async def call(node: int, body: bytes) -> tuple[bytes, bytes]:
            answer = await ask(node, body)
            resync.entered(view, syncing)  # node 2 is new to the groups once more
            return answer

        resync.entered(view, syncing)
        monkeypatch.setattr(site, "call", call)
        with pytest.raises(WouldBlock):
            await resync._merge(1, resync.groups)
        assert not resync._cursors, "a comparison goes on in the middle"


@pytest.mark.parametrize("shield", [True, False])
async def test_only_a_shielded_commit_is_waited_for_by_who_is_cancelled(
    autojump_clock: Clock, *, shield: bool
) -> None:
    async with cluster() as world:
        volume = world.nodes[1].volume
        world.nodes[3].mesh.paused = trio.Event()
        change = put(volume, inode_object(7), 0, b"v", ABSENT)
        with trio.CancelScope() as scope:
            scope.cancel()
            await volume.commit([change], shield=shield)
        answered = not world.agreement.view.in_sync[0] >> 3 & 1  # or rather given up
        assert answered == shield
        assert scope.cancelled_caught == (not shield)
