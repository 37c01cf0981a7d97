"""A cluster of volumes in one process: model stores, simulated links, agreed views.

Nodes start, crash (losing what was not synced), restart, pause, and lose their replica; the seed
decides all delays. Run it under trio's MockClock: simulated time costs nothing.
"""

import random

import trio

from clusterfs.cluster.membership import surplus
from clusterfs.cluster.views import View
from clusterfs.sim.model_store import ModelStore
from clusterfs.sim.network import Network, SimMesh
from clusterfs.sim.views import Agreement, SimViews
from clusterfs.volume.volume import Volume


class Node:
    """One start of one node."""

    def __init__(self, world: "World", number: int, store: ModelStore, incarnation: int) -> None:
        self.number = number
        self.store = store
        self.incarnation = incarnation
        self.scope = trio.CancelScope()
        self.views = SimViews(world.agreement, number, incarnation)
        self.mesh: SimMesh
        self.volume: Volume
        self._world = world

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Be up until crashed."""
        with self.scope:
            async with trio.open_nursery() as nursery:
                self.mesh = SimMesh(self._world.network, self.number, self.incarnation, nursery)
                self.views.before = self._list_peers
                self._list_peers(self.views.view)
                self.volume = Volume(
                    self.store,
                    self.mesh,
                    self.views,
                    answer_timeout_s=self._world.answer_timeout_s,
                    trim_after_s=0.2,
                )
                self.mesh.epoch = lambda: self.volume.heard_epoch
                nursery.start_soon(self.views.run)
                nursery.start_soon(self._watch_lost)
                await nursery.start(self.volume.run)
                task_status.started()

    async def _watch_lost(self) -> None:
        await self.views.lost.wait()
        self.volume.lose()

    def rejoin(self, incarnation: int) -> None:
        """Go on as another incarnation of the same process, as a node does that was removed."""
        self.volume.lose()
        self.incarnation = incarnation
        self.mesh.become(incarnation)
        self.views.rejoin(incarnation)
        self._list_peers(self.views.view)
        self.volume.session(incarnation)

    def _list_peers(self, view: View) -> None:
        self.mesh.set_peers([(m.node, m.incarnation) for m in view.members])


class World:
    """The cluster."""

    answer_timeout_s = 5.0

    def __init__(
        self,
        seed: int,
        nursery: trio.Nursery,
        *,
        groups: int = 4,
        replicas: int = 3,
        total_bytes: int = 1 << 40,
    ) -> None:
        self.rng = random.Random(seed)
        self.nursery = nursery
        self.agreement = Agreement(self.rng, groups, replicas, 0.01)
        self.network = Network(self.rng, nursery)
        self.stores: dict[int, ModelStore] = {}
        self.nodes: dict[int, Node] = {}
        self._total_bytes = total_bytes

    async def start(self, number: int) -> Node:
        """Start a node, again or for the first time."""
        assert number not in self.nodes
        store = self.stores.get(number)
        if store is None:
            store = self.stores[number] = ModelStore(self.rng, total=self._total_bytes)
        node = Node(self, number, store, self.agreement.join(number, weight=1 + number % 2))
        self.nodes[number] = node
        await self.nursery.start(node.run)
        return node

    def crash(self, *numbers: int) -> list[int]:
        """Crash nodes at once; returns their incarnations, which the others must still notice."""
        gone = []
        for number in numbers:
            node = self.nodes.pop(number)
            node.mesh.stop()
            node.scope.cancel()
            node.volume.lose()
            self.stores[number].crash()
            gone.append(node.incarnation)
        return gone

    async def settled(self, timeout_s: float = 60.0) -> None:
        """Wait until every node is in the newest view and nothing syncs or is stopped."""
        with trio.fail_after(timeout_s):
            while not self.quiet():
                await trio.sleep(0.02)

    async def settled_without(self, *numbers: int) -> None:
        """Wait until all nodes but these are in the newest view with their gates open."""
        epoch = self.agreement.view.epoch
        with trio.fail_after(60.0):
            while not all(
                node.volume.epoch >= epoch and node.volume.statistics()["gate"]["open"]
                for node in self.nodes.values()
                if node.number not in numbers
            ):
                await trio.sleep(0.02)

    def quiet(self) -> bool:
        """Tell whether nothing is going on."""
        view = self.agreement.view
        if any(view.syncing) or any(view.stopped):
            return False
        return all(
            node.volume.epoch == view.epoch
            and node.volume.statistics()["gate"]["open"]
            and not node.volume.statistics()["outstanding"]
            for node in self.nodes.values()
        )

    def assert_trimmed(self) -> None:
        """Nobody keeps a copy that is of no use."""
        for number in self.nodes:
            useless = surplus(self.agreement.view, number)
            kept = {o for o, x in self.stores[number].contents().items() if x[0] in useless}
            assert not kept, f"node {number} keeps {len(kept)} objects that are of no use"

    def assert_replicas_equal(self) -> None:
        """At quiescence all in-sync copies of a group are the same."""
        view = self.agreement.view
        for group, mask in enumerate(view.in_sync):
            copies = [
                {o: x for o, x in self.stores[n].contents().items() if x[0] == group}
                for n in sorted(self.nodes)
                if mask >> n & 1
            ]
            for copy in copies[1:]:
                assert copy == copies[0], f"group {group} differs"
