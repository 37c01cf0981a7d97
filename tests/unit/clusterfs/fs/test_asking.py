"""A request ends early only if its program is told to end, and only where that is true to tell."""

import pytest
import trio
import trio.testing

from clusterfs.errors import Interrupted
from clusterfs.fs import asking
from clusterfs.fs.lock_cache import LockCache
from clusterfs.fs.locks import EX, PR
from clusterfs.fs.ports import Name
from clusterfs.sim.mounts import World
from dlm.modes import Mode


async def wait(event: trio.Event) -> None:
    with asking.interruptibly():
        await event.wait()


@pytest.mark.parametrize(
    ("changing", "dying", "ends"),
    [(False, False, True), (False, True, True), (True, False, False), (True, True, True)],
)
async def test_what_changes_something_ends_early_only_if_its_program_dies(
    *, changing: bool, dying: bool, ends: bool
) -> None:
    event, ended = trio.Event(), []
    askers = []

    async def request() -> None:
        askers.append(asking.begin("open", 17))
        if changing:
            asking.changing()
        try:
            await wait(event)
        except Interrupted as interrupted:
            ended.append(interrupted)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request)
        await trio.testing.wait_all_tasks_blocked()
        askers[0].interrupt(dying=dying)
        await trio.testing.wait_all_tasks_blocked()
        assert bool(ended) is ends
        event.set()


async def test_an_interrupt_before_the_wait_counts_and_one_after_it_does_not() -> None:
    asker = asking.begin("read", 17)
    event = trio.Event()
    event.set()
    await wait(event)
    asker.interrupt(dying=False)
    await trio.lowlevel.checkpoint()
    with pytest.raises(Interrupted, match="17 read"):
        await wait(trio.Event())


async def test_what_a_request_started_is_not_interrupted_with_it() -> None:
    asker = asking.begin("unlink", 17)
    event = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, event)
        await trio.testing.wait_all_tasks_blocked()
        asker.interrupt(dying=True)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        event.set()


async def test_an_interrupted_waiter_leaves_the_queue_of_its_lock() -> None:
    async with World(1).running() as world, trio.open_nursery() as nursery:
        cache = LockCache(world.nodes[1].lockspace)
        cache.use(nursery)
        lock = cache.lock(Name(b"12345678", b"x"))
        await lock.wait_exclusive()
        askers = []

        async def request() -> None:
            askers.append(asking.begin("getattr", 17))
            with pytest.raises(Interrupted):
                await lock.wait_shared()

        async with trio.open_nursery() as requests:
            requests.start_soon(request)
            await trio.testing.wait_all_tasks_blocked()
            askers[0].interrupt(dying=False)
        lock.release()
        assert lock.idle
        assert lock.exclusive_nowait()
        assert Mode(lock.level) == EX > PR
        lock.release()
        lock.validate()
        nursery.cancel_scope.cancel()
