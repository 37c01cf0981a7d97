"""Memberships of several nodes in one loop, on a clock that jumps."""

import itertools
import random
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from clusterfs.cluster import grace, membership
from clusterfs.cluster.joining import Applicant
from clusterfs.cluster.node import Membership
from clusterfs.cluster.providers import Registration
from clusterfs.cluster.views import State, View
from clusterfs.errors import SetupError, Unavailable
from clusterfs.sim.provider import SharedStore, SimulatedProvider

GROUPS = 4
LEASE_S = 5.0


class World:
    """A store of views and the nodes that use it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.store = SharedStore(LEASE_S)
        self.links: dict[str, SimulatedProvider] = {}
        self.nursery = nursery
        self._stops: dict[str, trio.CancelScope] = {}

    async def start(
        self, name: str, *, store: bool = True, epoch: int = 0, keeps_places: bool = False
    ) -> Membership:
        """Start a node and wait until it is a member."""
        applicant = Applicant(
            name,
            f"store-{name}" if store else "",
            store_epoch=epoch,
            groups=GROUPS,
            keeps_places=keeps_places,
        )
        return await self.nursery.start(self._run, applicant)

    def kill(self, name: str) -> None:
        """Stop a node as kill -9 would."""
        self._stops.pop(name).cancel()

    async def _run(self, applicant: Applicant, task_status: trio.TaskStatus[Membership]) -> None:
        link = SimulatedProvider(self.store, random.Random(1), delay_s=0.01)
        self.links[applicant.name] = link

        async def announce(start: Registration) -> str:
            await trio.lowlevel.checkpoint()
            return f"host:{start.node}"

        with trio.CancelScope() as scope:
            self._stops[applicant.name] = scope
            async with Membership.joined(
                link, applicant, announce, lease_s=LEASE_S, now=trio.current_time
            ) as member:
                task_status.started(member)
                await trio.sleep_forever()


def in_a_world(test: Callable[[World], Awaitable[None]]) -> Callable[[], None]:
    """Run the test in a world of its own whose clock jumps when everybody waits."""

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            await test(World(nursery))
            nursery.cancel_scope.cancel()

    def run_on_a_jumping_clock() -> None:
        trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))

    return run_on_a_jumping_clock


async def until(member: Membership, condition: Callable[[View], bool]) -> View:
    """Wait for a view, for a minute of the world's time."""
    with trio.fail_after(60):
        while not condition(member.view):
            await member.entered(member.view.epoch + 1)
    return member.view


async def three_in_sync(world: World) -> list[Membership]:
    members = [await world.start(name) for name in ("a", "b", "c")]
    for member in members:
        await member.entered(3)
    for member in members[1:]:
        while await member.report_in_sync(range(GROUPS)) != set(range(GROUPS)):
            await member.entered(member.view.epoch)
    for member in members:
        await member.entered(5)
    assert members[0].view.in_sync == (0b1110,) * GROUPS
    return members


@in_a_world
async def test_members_see_each_other_and_renew_for_ever(world: World) -> None:
    members = await three_in_sync(world)
    await trio.sleep(20 * LEASE_S)
    for member in members:
        assert member.view == members[0].view
        assert member.lease_left_s() > LEASE_S / 2
    assert [m.name for m in members[0].view.members] == ["a", "b", "c"]
    assert members[0].statistics()["renewals"] >= 99


@in_a_world
async def test_a_dead_member_is_removed_after_a_lease_and_not_before(world: World) -> None:
    a, _b, c = await three_in_sync(world)
    end = trio.current_time() + c.lease_left_s()
    world.kill("c")
    view = await until(a, lambda view: view.member(3) is None)
    assert trio.current_time() >= end
    assert view.in_sync == (0b0110,) * GROUPS
    assert view.lock_epoch == view.epoch


@in_a_world
async def test_an_accused_member_leaves_at_once_and_goes_down_after_its_lease(
    world: World,
) -> None:
    a, b, c = await three_in_sync(world)
    end = trio.current_time() + c.lease_left_s()
    world.kill("c")
    accused_at = trio.current_time()
    a.accuse(3, c.incarnation)
    view = await until(b, lambda view: view.in_sync[0] == 0b0110)
    assert trio.current_time() - accused_at < LEASE_S / 5
    left = view.member(3)
    assert left is not None
    assert left.state is State.LEAVING
    await until(b, lambda view: view.member(3) is None)
    assert trio.current_time() >= end


async def accuse_for(accuser: Membership, node: int, incarnation: int, seconds: float) -> None:
    """Accuse it once a second, as the mesh does while there is no connection."""
    for _ in range(round(seconds)):
        accuser.accuse(node, incarnation)
        await trio.sleep(1)


@in_a_world
async def test_who_has_no_data_does_not_have_the_only_one_removed_that_has_it(
    world: World,
) -> None:
    """Two that did not reach each other: the one without data was first, and nobody went on."""
    a, b, c = await three_in_sync(world)
    for node in (1, 2):
        await c.drop_replica(node)
    await a.entered(c.view.epoch)
    assert a.view.in_sync == (0b1000,) * GROUPS
    await accuse_for(a, 3, c.incarnation, LEASE_S)
    assert c.lease_left_s() > 0
    c.accuse(1, a.incarnation)
    await until(b, lambda view: view.member(1) is None)
    assert c.lease_left_s() > 0


@in_a_world
async def test_who_has_all_data_and_accuses_nobody_is_removed_after_all(world: World) -> None:
    a, _b, c = await three_in_sync(world)
    for node in (1, 2):
        await c.drop_replica(node)
    await a.entered(c.view.epoch)
    a.accuse(3, c.incarnation)
    await trio.sleep(3 * LEASE_S)  # that was another time
    await accuse_for(a, 3, c.incarnation, LEASE_S)
    assert c.lease_left_s() > 0
    await accuse_for(a, 3, c.incarnation, 2 * LEASE_S)
    await until(a, lambda view: view.member(3) is None)


@in_a_world
async def test_a_supervisors_word_ends_the_wait(world: World) -> None:
    a, _b, c = await three_in_sync(world)
    world.kill("c")
    world.store.file.caches_dropped(3, c.incarnation)
    start = trio.current_time()
    await until(a, lambda view: view.member(3) is None)
    assert trio.current_time() - start < LEASE_S / 5


@in_a_world
async def test_an_old_accusation_does_not_hit_the_next_incarnation(world: World) -> None:
    a, b, c = await three_in_sync(world)
    former = c.incarnation
    a.accuse(3, former)
    await c.lost.wait()
    await c.rejoin()
    await a.entered(c.view.epoch)
    a.accuse(3, former)
    await trio.sleep(LEASE_S)
    assert a.view.has(3, c.incarnation)
    assert not b.lost.is_set()


@in_a_world
async def test_a_frozen_member_knows_that_it_is_lost_before_it_serves(world: World) -> None:
    a, _b, c = await three_in_sync(world)
    world.links["c"].freeze()
    await until(a, lambda view: view.member(3) is None)
    assert c.lease_left_s() <= 0
    assert c.lost.is_set()
    with pytest.raises(Unavailable):
        await c.propose(lambda view: membership.restarted(view, [0]))
    world.links["c"].thaw()
    former = c.incarnation
    await c.rejoin()
    assert c.incarnation > former
    assert not c.lost.is_set()
    assert c.lease_left_s() > 0
    assert c.view.syncing == (0b1000,) * GROUPS
    await a.entered(c.view.epoch)


@in_a_world
async def test_a_lease_that_ended_is_not_revived_though_nobody_noticed(world: World) -> None:
    a = await world.start("a")
    world.links["a"].freeze()
    await trio.sleep(LEASE_S + 1)
    world.links["a"].thaw()
    assert a.lost.is_set()
    await trio.sleep(LEASE_S)
    assert a.lease_left_s() <= 0
    await a.rejoin()
    assert a.view.stopped == (True,) * GROUPS
    assert await a.restart_groups(range(GROUPS)) == set(range(GROUPS))
    assert not any(a.view.stopped)


@in_a_world
async def test_a_short_cut_of_the_link_costs_nothing(world: World) -> None:
    a, b, c = await three_in_sync(world)
    epoch = a.view.epoch
    world.links["c"].cut = True
    await trio.sleep(LEASE_S / 2)
    world.links["c"].cut = False
    await trio.sleep(2 * LEASE_S)
    assert a.view.epoch == epoch
    assert not any(member.lost.is_set() for member in (a, b, c))
    assert c.statistics()["provider_failures"] > 0


@in_a_world
async def test_a_stop_of_the_store_of_views_evicts_nobody_else(world: World) -> None:
    """All lose their leases; whoever wakes first does not remove the others, they rejoin."""
    members = await three_in_sync(world)
    for link in world.links.values():
        link.freeze()
    for member in members:
        await member.lost.wait()
    for link in world.links.values():
        link.thaw()
    async with trio.open_nursery() as nursery:
        for member in members:
            nursery.start_soon(member.rejoin)
    view = members[0].view
    last = max(member.view.epoch for member in members)
    for member in members:
        await member.entered(last)
    view = members[0].view
    assert len(view.members) == 3
    assert view.in_sync[0], "the last copy is known"


@in_a_world
async def test_after_a_full_stop_the_groups_wait_for_all_of_the_last_set(world: World) -> None:
    await three_in_sync(world)
    for name in ("a", "b", "c"):
        world.kill(name)
    await trio.sleep(100)
    async with trio.open_nursery() as nursery:
        for name in ("b", "a"):
            nursery.start_soon(world.start, name)
    b = await world.start("b2", store=False)
    view = b.view
    assert view.in_sync == (0b1110,) * GROUPS
    assert view.stopped == (True,) * GROUPS
    assert not view.present(0)
    c = await world.start("c")
    assert c.view.present(0)
    assert await c.restart_groups([0, 2]) == {0, 2}
    assert c.view.stopped == (False, True, False, True)
    assert c.view.syncing == (0,) * GROUPS


@in_a_world
async def test_a_clean_leave_needs_no_lease(world: World) -> None:
    a, b, c = await three_in_sync(world)
    start = trio.current_time()
    await c.leave()
    assert c.lease_left_s() <= 0
    assert not c.lost.is_set()
    await until(a, lambda view: view.member(3) is None)
    await b.leave()
    await until(a, lambda view: len(view.members) == 1)
    assert trio.current_time() - start < LEASE_S / 2
    await a.leave()
    again = await world.start("b")
    assert again.view.stopped == (True,) * GROUPS, "a left last and has the truth"
    assert again.view.in_sync == (0b10,) * GROUPS


@in_a_world
async def test_who_is_away_for_longer_than_the_grace_is_missed(world: World) -> None:
    members = [await world.start(f"n{n}", keeps_places=True) for n in range(1, 5)]
    for member in members:
        await member.entered(members[-1].view.epoch)
        await member.report_in_sync(range(GROUPS))
    first, lost = members[0], members[3]
    for member in members[:3]:
        world.nursery.start_soon(grace.keep, member, 100.0)
    for number in (1, 2):
        view = await until(first, lambda view: not view.away)
        held = sum(bits >> lost.node & 1 for bits in view.in_sync)
        world.kill("n4")
        view = await until(first, lambda view: bool(view.away))
        assert dict(view.away).keys() == {lost.node}
        assert not any(view.syncing)
        await trio.sleep(90)
        assert first.view.away, "still in the grace"
        if number == 1:
            lost = await world.start("n4", keeps_places=True)
            await lost.report_in_sync(range(GROUPS))
            assert lost.view.away == (), "it came back"
            await trio.sleep(20)
    await trio.sleep(20)
    assert first.view.away == ()
    assert sum(bits.bit_count() for bits in first.view.syncing) == held > 0


@in_a_world
async def test_subscribers_see_views_in_order_and_before_waiters(world: World) -> None:
    a = await world.start("a")
    seen: list[tuple[int, int]] = []
    a.subscribe(lambda old, new: seen.append((old.epoch, new.epoch)))
    for name in ("b", "c"):
        await world.start(name)
    await a.entered(3)
    assert seen[0][0] == 1
    assert seen[-1][1] == 3
    assert all(later[0] == earlier[1] for earlier, later in itertools.pairwise(seen))


@in_a_world
async def test_a_report_from_an_outdated_view_does_not_count(world: World) -> None:
    a = await world.start("a")
    b = await world.start("b")
    await a.entered(2)
    known = b.view
    world.links["b"].freeze()
    async with trio.open_nursery() as nursery:
        counted: list[set[int]] = []

        async def report() -> None:
            counted.append(await b.report_in_sync(range(GROUPS)))

        nursery.start_soon(report)
        await a.drop_replica(2, [1], "it missed a transaction")
        assert a.view.generation[1] > known.generation[1]
        world.links["b"].thaw()
    assert counted == [{0, 2, 3}]
    assert b.view.syncing[1] == 0b100


@in_a_world
async def test_proposals_of_all_at_once_are_all_agreed(world: World) -> None:
    members = await three_in_sync(world)
    async with trio.open_nursery() as nursery:
        for member, group in zip(members, range(3), strict=True):
            nursery.start_soon(member.drop_replica, member.node, [group], "test")
    await members[0].entered(8)
    view = members[0].view
    assert view.epoch == 8
    assert view.syncing == (0b0010, 0b0100, 0b1000, 0)


@in_a_world
async def test_an_old_copy_of_the_store_and_a_running_double_are_refused(world: World) -> None:
    a = await world.start("a")
    with pytest.raises(SetupError, match="old copy"):
        await world.start("b", epoch=9)
    with pytest.raises(SetupError, match="running daemon"):
        await world.start("a", store=False)
    assert not a.lost.is_set()
    assert a.view.has(1, a.incarnation)


@in_a_world
async def test_a_lost_node_whose_provider_is_away_waits_for_it(world: World) -> None:
    a = await world.start("a")
    world.links["a"].cut = True
    await a.lost.wait()
    await a.caches_dropped()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.rejoin)
        await trio.sleep(100)
        assert a.lost.is_set()
        world.links["a"].cut = False
    assert not a.lost.is_set()
    assert a.view.has(1, a.incarnation)
