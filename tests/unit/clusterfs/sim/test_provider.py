import random

import pytest
import trio
import trio.testing

from clusterfs.cluster import membership
from clusterfs.cluster.views import Member, State, View
from clusterfs.errors import ProviderAway
from clusterfs.sim.provider import SharedStore, SimulatedProvider


async def test_links_share_one_store_and_its_watchers_see_each_view(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = SharedStore(5.0)
    seen: list[View] = []
    store.watchers.append(lambda _former, view: seen.append(view))
    one, two = (SimulatedProvider(store, random.Random(n), delay_s=1.0) for n in (1, 2))
    assert await one.identity(5.0) == await two.identity(9.0)
    start = await one.register("n1")
    member = Member(start.node, start.incarnation, "n1", "h:1", State.UP, "")
    view = membership.joined(membership.founded("c", 2, 3), member)
    assert await two.changed()
    assert await one.propose(view, {})
    assert not await one.propose(view, {})
    assert seen == [view]
    assert await two.changed()
    assert not await two.changed()
    assert (await two.read()).view == view
    assert autojump_clock.current_time() > 1


async def test_a_cut_link_answers_nothing_and_a_frozen_one_hangs(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = SharedStore(5.0)
    link = SimulatedProvider(store, random.Random(1))
    link.cut = True
    with pytest.raises(ProviderAway):
        await link.read()
    link.cut = False
    link.freeze()
    with trio.move_on_after(100) as scope:
        await link.read()
    assert scope.cancelled_caught
    link.thaw()
    await link.read()
    assert autojump_clock.current_time() >= 100
