import random

import trio
import trio.testing

from clusterfs.cluster import membership
from clusterfs.cluster.incarnation import Incarnation
from clusterfs.cluster.views import Member, State
from clusterfs.sim.provider import SharedStore, SimulatedProvider


def a_member(store: SharedStore, link: SimulatedProvider) -> Incarnation:
    start = store.file.register("n1")
    member = Member(start.node, start.incarnation, "n1", "h:1", State.UP, "s1")
    assert store.propose(membership.joined(membership.founded("c", 2, 3), member), {})
    return Incarnation(start, 5.0, trio.current_time(), link, trio.current_time)


async def test_it_renews_until_it_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    store = SharedStore(5.0)
    me = a_member(store, SimulatedProvider(store, random.Random(1)))
    news: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(me.keep, lambda: news.append(me.known_epoch))
        await trio.sleep(50)
        assert me.left_s() > 3.5
        assert news == [1]
        view = store.file.read().view
        assert view is not None
        gone = membership.leaving(view, {me.number})
        assert gone is not None
        store.propose(gone, {})
        await me.lost.wait()
    assert me.left_s() <= 0
    assert not await me.renew()
    assert autojump_clock.current_time() < 60 + me.renewals


async def test_a_hanging_provider_does_not_hide_the_end_of_the_lease(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = SharedStore(5.0)
    link = SimulatedProvider(store, random.Random(1))
    me = a_member(store, link)
    start = autojump_clock.current_time()
    link.freeze()
    await me.keep(lambda: None)
    assert me.lost.is_set()
    assert 4.9 < autojump_clock.current_time() - start < 5.0


async def test_retiring_is_no_loss(autojump_clock: trio.testing.MockClock) -> None:
    store = SharedStore(5.0)
    me = a_member(store, SimulatedProvider(store, random.Random(1)))
    me.retire()
    await me.keep(lambda: None)
    assert not me.lost.is_set()
    assert me.left_s() <= 0
    assert not me.serving
    assert autojump_clock.current_time() >= 0
