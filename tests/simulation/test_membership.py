"""Several nodes on slow, cut and frozen links and on clocks that disagree; the seed is the report.

Checked at the instant of each agreed view: whoever it removes has no lease left on its own clock,
unless it has retired by itself; epochs grow by one; the view is sound. At the end: when all links
are good again, every node that goes on is a member.
"""

import os
import random

import pytest
import trio
import trio.testing

from clusterfs.cluster.joining import Applicant
from clusterfs.cluster.node import Membership
from clusterfs.cluster.providers import Registration
from clusterfs.cluster.views import View
from clusterfs.errors import Unavailable
from clusterfs.sim.provider import SharedStore, SimulatedProvider

FIRST_SEED = int(os.environ.get("CLUSTERFS_SEED", "0"))
GROUPS = 3
LEASE_S = 5.0
NAMES = ("a", "b", "c", "d")


class World:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.store = SharedStore(LEASE_S)
        self.store.watchers.append(self.check)
        self.members: dict[str, Membership] = {}
        self.links: dict[str, SimulatedProvider] = {}
        self.rates = {name: self.rng.uniform(0.9951, 1.0049) for name in NAMES}
        self.removals = self.losses = 0

    def check(self, former: View | None, view: View) -> None:
        view.validate()
        if former is None:
            return
        assert view.epoch == former.epoch + 1
        kept = {m.incarnation for m in view.members}
        gone = {m.incarnation for m in former.members} - kept
        for member in self.members.values():
            if member.incarnation in gone:
                self.removals += 1
                assert member.lease_left_s() <= 0, f"{member.incarnation} serves, but was removed"

    async def live(self, name: str) -> None:
        link = SimulatedProvider(self.store, self.rng, delay_s=self.rng.choice([0.01, 0.3, 1.0]))
        self.links[name] = link
        rate = self.rates[name]
        applicant = Applicant(name, "" if name == "d" else f"store-{name}", groups=GROUPS)

        async def announce(start: Registration) -> str:
            await trio.sleep(self.rng.random())
            return f"host:{start.node}"

        await trio.sleep(self.rng.random() * 5)
        async with Membership.joined(
            link, applicant, announce, lease_s=LEASE_S, now=lambda: trio.current_time() * rate
        ) as member:
            self.members[name] = member
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.work, member)
                while True:
                    await member.lost.wait()
                    self.losses += 1
                    await member.rejoin()

    async def work(self, member: Membership) -> None:
        """Resync and restart what can be, now and then."""
        while True:
            await trio.sleep(self.rng.random() * 3)
            try:
                await member.report_in_sync(range(GROUPS))
                view = member.view
                ready = [g for g in range(GROUPS) if view.stopped[g] and view.present(g)]
                await member.restart_groups(ready)
            except Unavailable:
                continue

    async def trouble(self) -> None:
        for _ in range(12):
            await trio.sleep(self.rng.random() * 2 * LEASE_S)
            link = self.links[self.rng.choice(NAMES)]
            members = list(self.members.values())
            match self.rng.randrange(3):
                case 0:
                    link.freeze()
                    await trio.sleep(self.rng.random() * 3 * LEASE_S)
                    link.thaw()
                case 1:
                    link.cut = True
                    await trio.sleep(self.rng.random() * 3 * LEASE_S)
                    link.cut = False
                case 2:
                    accuser, accused = self.rng.sample(members, 2)
                    accuser.accuse(accused.node, accused.incarnation)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for name in NAMES:
                nursery.start_soon(self.live, name)
            while len(self.members) < len(NAMES):
                await trio.sleep(0.1)
            await self.trouble()
            with trio.fail_after(60 * LEASE_S):
                while not self.settled():
                    await trio.sleep(0.5)
            nursery.cancel_scope.cancel()

    def settled(self) -> bool:
        view = self.store.file.read().view
        assert view is not None
        return (
            all(view.has(m.node, m.incarnation) for m in self.members.values())
            and all(bits == 0b1110 for bits in self.in_sync_by_name(view))
            and not any(view.stopped)
        )

    def in_sync_by_name(self, view: View) -> list[int]:
        place = {m.node: 1 + NAMES.index(m.name) for m in view.members}
        return [
            sum(1 << place[node] for node in place if bits & 1 << node) for bits in view.in_sync
        ]


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + 24))
def test_nobody_serves_after_it_was_removed_and_all_come_back(seed: int) -> None:
    world = World(seed)
    trio.run(world.run, clock=trio.testing.MockClock(autojump_threshold=0))


def test_the_seeds_reach_removals_and_losses() -> None:
    removals = losses = 0
    for seed in range(10):
        world = World(seed)
        trio.run(world.run, clock=trio.testing.MockClock(autojump_threshold=0))
        removals += world.removals
        losses += world.losses
    assert removals > 10
    assert losses > 10
