"""Cached locks, each node with its own, over real lockspaces."""

import random

import pytest
import trio
import trio.testing

from clusterfs.fs.lock_cache import LockCache
from clusterfs.fs.locks import EX, NL, PR, CachedLock
from clusterfs.fs.ports import Name
from clusterfs.sim.mounts import World
from dlm.errors import LockLost
from dlm.modes import Mode

NAME = Name(b"12345678", b"x")


class Log:
    """What a lock was told to give up."""

    def __init__(self) -> None:
        self.targets: list[Mode] = []
        self.wait: trio.Event | None = None

    async def give_up(self, target: Mode) -> None:
        self.targets.append(target)
        if self.wait is not None:
            await self.wait.wait()


def lock_of(world: World, number: int, nursery: trio.Nursery, log: Log) -> CachedLock:
    cache = LockCache(world.nodes[number].lockspace)
    cache.use(nursery)
    return cache.lock(NAME, log.give_up)


async def test_a_held_lock_needs_no_await_and_serves_all_that_its_level_allows() -> None:
    async with World(1).running() as world, trio.open_nursery() as nursery:
        lock = lock_of(world, 1, nursery, Log())
        assert not lock.shared_nowait()
        await lock.wait_shared()
        assert Mode(lock.level) == PR
        assert lock.shared_nowait()
        assert not lock.exclusive_nowait()
        lock.release()
        lock.release()
        await lock.wait_exclusive()
        assert Mode(lock.level) == EX
        assert not lock.shared_nowait()
        lock.release()
        assert lock.shared_nowait()
        lock.release()
        lock.validate()


async def test_readers_share_between_nodes_and_a_writer_takes_it_all() -> None:
    async with World(2).running() as world, trio.open_nursery() as nursery:
        logs = Log(), Log()
        one, two = (lock_of(world, n, nursery, logs[n - 1]) for n in (1, 2))
        for lock in (one, two):
            await lock.wait_shared()
            lock.release()
        assert (one.level, two.level) == (PR, PR)
        await two.wait_exclusive()
        two.release()
        assert (one.level, two.level) == (NL, EX)
        await one.wait_shared()
        one.release()
        assert (one.level, two.level) == (PR, PR)
        assert logs[0].targets == [NL]
        assert logs[1].targets == [PR]


async def test_both_convert_from_shared_to_exclusive() -> None:
    async with World(2).running() as world, trio.open_nursery() as nursery:
        locks = [lock_of(world, n, nursery, Log()) for n in (1, 2)]
        served = []

        async def upgrade(lock: CachedLock) -> None:
            await lock.wait_exclusive()
            served.append(lock)
            lock.release()

        for lock in locks:
            await lock.wait_shared()
            lock.release()
        async with trio.open_nursery() as upgrading:
            for lock in locks:
                upgrading.start_soon(upgrade, lock)
        assert len(served) == 2


async def test_new_users_wait_while_it_is_given_up_but_page_writeback_does_not() -> None:
    async with World(2).running() as world, trio.open_nursery() as nursery:
        log = Log()
        one, two = lock_of(world, 1, nursery, log), lock_of(world, 2, nursery, Log())
        await one.wait_exclusive()
        log.wait = trio.Event()
        nursery.start_soon(two.wait_exclusive)
        await world.settle()
        assert not log.targets, "given up under a user"
        one.release()
        await world.settle()
        assert log.targets == [NL]
        assert one.revoking
        assert not one.exclusive_nowait()
        assert not one.pin_nowait()
        await one.wait_writeback()
        log.wait.set()
        await world.settle()
        assert two.level == NL, "it went while page writeback used it"
        one.release()
        await world.settle()
        assert (one.level, two.level) == (NL, EX)
        two.release()


async def test_page_writeback_that_needs_more_than_is_held_does_not_keep_the_lock_here() -> None:
    async with World(2).running() as world, trio.open_nursery() as nursery:
        log = Log()
        one, two = lock_of(world, 1, nursery, log), lock_of(world, 2, nursery, Log())
        await one.wait_shared()
        log.wait = trio.Event()
        nursery.start_soon(two.wait_exclusive)
        one.release()
        await world.settle()
        assert log.targets == [NL]
        nursery.start_soon(one.wait_writeback)  # a page became dirty although only PR is held
        await world.settle()
        log.wait.set()
        await world.settle()
        assert Mode(two.level) == EX, "the reader's lock went although its writeback waits"
        two.release()
        await world.settle()
        assert Mode(one.level) == EX
        assert one.users == -1
        one.release()


async def test_a_pin_keeps_it_beside_users() -> None:
    async with World(2).running() as world, trio.open_nursery() as nursery:
        one, two = (lock_of(world, n, nursery, Log()) for n in (1, 2))
        await one.wait_exclusive()
        assert one.pin_nowait()
        one.release()
        nursery.start_soon(two.wait_shared)
        await world.settle()
        assert one.level == EX
        one.unpin()
        await world.settle()
        assert (one.level, two.level) == (PR, PR)
        assert not one.pin_nowait()
        two.release()


async def test_losing_the_node_fails_waiters_and_the_next_lockspace_starts_from_nothing() -> None:
    async with World(2).running() as world, trio.open_nursery() as nursery:
        one, two = (lock_of(world, n, nursery, Log()) for n in (1, 2))
        await two.wait_exclusive()
        async with trio.open_nursery() as waiting:

            async def wait() -> None:
                with pytest.raises(LockLost):
                    await one.wait_shared()

            waiting.start_soon(wait)
            await world.settle()
            world.nodes[1].lockspace.lose()
        assert one.level == NL
        assert one.idle
        two.release()


async def test_a_cancelled_waiter_leaves_no_trace() -> None:
    async with World(2).running() as world, trio.open_nursery() as nursery:
        one, two = (lock_of(world, n, nursery, Log()) for n in (1, 2))
        await two.wait_exclusive()
        with trio.move_on_after(0.01) as scope:
            await one.wait_exclusive()
        assert scope.cancelled_caught
        two.release()
        await world.settle()
        assert one.idle
        with trio.fail_after(300):
            await two.wait_exclusive()
        two.release()


async def test_once_the_filesystem_has_ended_a_lock_that_is_changing_is_left_alone() -> None:
    async with World(2).running() as world, trio.open_nursery() as ended:
        async with trio.open_nursery() as nursery:
            one, two = lock_of(world, 1, nursery, Log()), lock_of(world, 2, ended, Log())
            for lock in (one, two):
                await lock.wait_shared()  # and node 2 keeps it
            one.release()
            nursery.start_soon(one.wait_exclusive)
            await world.settle()
            nursery.cancel_scope.cancel()
        assert not one.users
        held = one._lock
        assert held is not None
        one.blocked(held, EX)  # and somebody else wants it now
        await world.settle()
        two.release()
        ended.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(10))
async def test_exclusion_and_progress_under_contention(seed: int) -> None:
    chance = random.Random(seed)
    async with World(3).running() as world, trio.open_nursery() as nursery:
        locks = {n: lock_of(world, n, nursery, Log()) for n in world.nodes}
        shared: set[int] = set()
        exclusive: set[int] = set()

        async def use(number: int, task: int) -> None:
            lock = locks[number]
            for _ in range(15):
                writes = chance.random() < 0.4
                await (lock.wait_exclusive() if writes else lock.wait_shared())
                (exclusive if writes else shared).add(task)
                assert len(exclusive) + bool(shared) <= 1
                for _ in range(chance.randrange(4)):
                    await trio.lowlevel.checkpoint()
                (exclusive if writes else shared).discard(task)
                lock.release()
                lock.validate()
                for _ in range(chance.randrange(6)):
                    await trio.lowlevel.checkpoint()

        with trio.fail_after(60):
            async with trio.open_nursery() as using:
                for task in range(9):
                    using.start_soon(use, 1 + task % 3, task)
        await world.settle()
        assert all(lock.idle for lock in locks.values())


async def test_excluding_what_is_free_asks_nobody_to_give_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    del autojump_clock
    async with World(2).running() as world, trio.open_nursery() as nursery:
        logs = Log(), Log()
        one, two = (lock_of(world, n, nursery, logs[n - 1]) for n in (1, 2))
        assert not await one._cache.exclude_free(one), "it is not even held"
        for lock in (one, two):
            await lock.wait_shared()
        assert not await one._cache.exclude_free(one), "we share it ourselves"
        one.release()
        assert not await one._cache.exclude_free(one)
        assert (one.level, one.users, one.idle) == (PR, 0, True)
        two.release()
        await world.settle()
        assert logs[1].targets == []
        two.drop_idle()
        await world.settle()
        assert await one._cache.exclude_free(one)
        assert (one.level, one.users) == (EX, -1)
        with trio.move_on_after(5) as waited:
            await one.wait_shared()
        assert waited.cancelled_caught
        one.release(weaken=True)
        await one.wait_shared()
        with trio.fail_after(60):
            await two.wait_shared()  # for it was weakened
        for lock in (one, two):
            lock.release()
            lock.validate()
        nursery.cancel_scope.cancel()
