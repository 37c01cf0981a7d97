"""Who was removed comes back when it reaches everybody who lives."""

# ruff: noqa: ARG001  a clock that is asked for is the clock of the test

import random

import pytest
import trio
import trio.testing

from clusterfs.cluster import membership
from clusterfs.cluster.providers import Registration
from clusterfs.cluster.reach import Comeback, unreached
from clusterfs.cluster.views import Member, State, View
from clusterfs.errors import SetupError
from clusterfs.sim.provider import SharedStore, SimulatedProvider

LEASE_S = 5.0
Clock = trio.testing.MockClock


class World:
    """Two members that beat, as a third one sees them that was removed."""

    def __init__(self) -> None:
        self.store = SharedStore(LEASE_S)
        self.provider = SimulatedProvider(self.store, random.Random(1), delay_s=0.01)
        self.beating: dict[int, Registration] = {}
        self.cut: set[str] = set()
        self.every_s = LEASE_S / 5

    async def join(self, *names: str) -> None:
        view: View = membership.founded("c", 4, 2)
        for name in names:
            start = await self.provider.register(name, "")
            address = f"host:{start.node}"
            newcomer = Member(start.node, start.incarnation, name, address, State.UP, "", 1)
            joined = membership.joined(view, newcomer, set())
            assert await self.provider.propose(joined, {})
            view = joined
            self.beating[start.node] = start

    async def beat(self) -> None:
        while True:
            for start in list(self.beating.values()):
                await self.provider.renew(start.node, start.incarnation)
            await trio.sleep(self.every_s)

    async def reach(self, address: str) -> bool:
        await trio.sleep(2.0 if address in self.cut else 0.01)
        return address not in self.cut


@pytest.fixture
async def world(nursery: trio.Nursery) -> World:
    world = World()
    await world.join("a", "b")
    nursery.start_soon(world.beat)
    return world


async def test_it_waits_until_every_member_that_lives_can_be_reached(
    world: World, autojump_clock: Clock
) -> None:
    world.cut = {"host:1", "host:2"}
    assert await unreached(world.provider, 3, world.reach, LEASE_S) == ["a", "b"]
    del world.beating[1]  # it is dead: nobody has to reach it
    assert await unreached(world.provider, 3, world.reach, LEASE_S) == ["b"]
    comeback = Comeback(world.provider, LEASE_S, world.reach, "here:1")
    with trio.move_on_after(60) as scope:
        await comeback.wait(3, (), serving=True)
    assert scope.cancelled_caught
    world.cut = set()
    with trio.fail_after(5):
        await comeback.wait(3, (), serving=True)


async def test_whose_renewals_are_slow_is_not_taken_for_dead(
    world: World, autojump_clock: Clock
) -> None:
    """It was let in where it could not reach anybody, and was in everybody's way."""
    world.cut = {"host:1", "host:2"}
    world.every_s = 0.8 * LEASE_S  # as on a disk that takes seconds to sync
    await trio.sleep(LEASE_S / 5 + 0.1)
    assert await unreached(world.provider, 3, world.reach, LEASE_S) == ["a", "b"]


async def test_who_starts_and_meets_nobody_gives_up_and_says_what_to_look_at(
    world: World, autojump_clock: Clock
) -> None:
    comeback = Comeback(world.provider, LEASE_S, world.reach, "here:1")
    with pytest.raises(SetupError, match=r"between this node and a, b .* reach here:1"):
        await comeback.wait(3, [1, 2], serving=False)
    del world.beating[1]
    del world.beating[2]  # nobody is there who could have removed it for that
    await comeback.wait(3, [1, 2], serving=False)


async def test_who_serves_and_meets_nobody_comes_back_later_each_time(
    world: World, autojump_clock: Clock
) -> None:
    comeback = Comeback(world.provider, LEASE_S, world.reach, "here:1")
    waits = []
    for strangers in ([1], [1], [1], [], [1]):
        begun_s = trio.current_time()
        await comeback.wait(3, strangers, serving=True)
        waits.append(round(trio.current_time() - begun_s, -1))
    assert waits == [10, 20, 40, 0, 10]
