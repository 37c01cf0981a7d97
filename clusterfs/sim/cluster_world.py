"""A whole cluster in one thread: real filesystems, locks, volumes and stores, simulated machines.

Disks, links, views and clocks are simulated; everything between them is what the daemon runs. One
seed decides all delays. Power cuts tear what was not synced; a node that is cut off goes on until
its lease ends, is removed, and comes back as a new incarnation. Run it with `run_world`.
"""

import random
from collections.abc import Awaitable, Callable
from itertools import combinations

import msgspec
import trio
import trio.testing

from clusterfs.cluster.report import led_groups
from clusterfs.cluster.views import State, View
from clusterfs.fs.filesystem import Filesystem
from clusterfs.fs.kernel import NoKernel
from clusterfs.fs.value_block import VALUE_BYTES
from clusterfs.lock_channel import LOCKS, LockChannel
from clusterfs.sim.bricks import KEY, SMALL
from clusterfs.sim.disk import SimulatedDisk, seeded
from clusterfs.sim.leases import LEASE_S, LeasedViews
from clusterfs.sim.network import Network, SimMesh
from clusterfs.sim.one_thread import one_thread
from clusterfs.sim.views import Agreement
from clusterfs.store.objects import ObjectId, Version
from clusterfs.store.store import Store
from clusterfs.volume.placement import incarnation_of_inode
from clusterfs.volume.volume import Volume
from dlm.errors import LockLost
from dlm.node import Lock, Lockspace, Name
from dlm.sim.checkers import Violation

GROUPS = 4
_OPTIONS = msgspec.structs.replace(SMALL, cache_bytes=64 << 20)
_LOOK_S = 0.01
_STORY_S = 600  # by the world's clock; whoever waits longer waits for ever


class Node:
    """One start of one node: what the daemon is, without mount and processes."""

    def __init__(self, world: "World", number: int, disk: SimulatedDisk) -> None:
        self.world = world
        self.number = number
        self.disk = disk
        self.alive = True
        self.scope = trio.CancelScope()
        self.store: Store
        self.mesh: SimMesh
        self.views: LeasedViews
        self.volume: Volume
        self.locks: Lockspace
        self.filesystem: Filesystem
        self.tasks: trio.Nursery
        self.programs: trio.Nursery  # whoever uses the filesystem here
        self._channel = LockChannel(self)
        self._reclaim = trio.Event()

    def held(self) -> list[Lock]:
        """Return the locks that users of this node rely on now."""
        owned = self.locks._core.ownership.locks  # noqa: SLF001  as only a simulator may
        return [lock for lock in owned.values() if lock.mode is not None]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be up until the power goes."""
        try:
            with self.scope:
                await self._run(task_status)
        except* RuntimeError:  # what was still begun when everything had ended
            if self.alive:
                raise

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        self.store = await Store.open(self.disk, KEY, options=_OPTIONS)
        incarnation = self.world.agreement.join(self.number)
        self.views = LeasedViews(self.world.agreement, self.number, incarnation)
        async with trio.open_nursery() as nursery:
            self.tasks = nursery
            await self._begin(incarnation)
            await nursery.start(self._run_programs)
            task_status.started()

    async def _run_programs(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as self.programs:
            task_status.started()
            await trio.sleep_forever()

    async def _begin(self, incarnation: int) -> None:
        world, nursery = self.world, self.tasks
        self.mesh = SimMesh(world.network, self.number, incarnation, nursery)
        self.mesh.epoch = lambda: self.volume.heard_epoch
        self.mesh.register(LOCKS, self._channel)
        self.volume = Volume(self.store, self.mesh, self.views)
        self.locks = self._new_locks()
        self.filesystem = Filesystem(
            self.volume,
            self.locks,
            NoKernel(),
            lease_left_s=self.views.lease_left_s,
            now_ns=world.now_ns,
        )
        self.views.subscribe(self._entered)
        self._connect(self.views.view)
        self._enter_locks(self.views.view)
        nursery.start_soon(self.views.run)
        await nursery.start(self.volume.run)
        nursery.start_soon(self._readmit_when_lost)
        nursery.start_soon(self._reclaim_when_told)
        await nursery.start(self.filesystem.run)

    def _new_locks(self) -> Lockspace:
        locks = Lockspace(
            self.number,
            self.views.incarnation,
            lambda node, message: self.mesh.send(node, LOCKS, message),
            trio.current_time,
            lvb_bytes=VALUE_BYTES,
        )
        self.volume.when_rolled_forward(locks.gate_opened)
        locks.set_gate(lambda _root, lock_epoch: self.volume.rolled_forward(lock_epoch))
        locks.set_maker_of(lambda root: incarnation_of_inode(int.from_bytes(root)))
        self.tasks.start_soon(locks.run)
        return locks

    # -- views

    def _entered(self, old: View, new: View) -> None:
        if self.views.incarnation != self.mesh.incarnation:
            return  # `_readmit_when_lost` goes on from there
        self._connect(new)
        if new.lock_epoch != old.lock_epoch:
            self._enter_locks(new)
            self._reclaim.set()
        self._channel.drain(new)

    def _connect(self, view: View) -> None:
        self.mesh.set_peers((m.node, m.incarnation) for m in view.members if m.state is State.UP)

    def _enter_locks(self, view: View) -> None:
        up = {m.node: m.incarnation for m in view.members if m.state is State.UP}
        leaving = {m.node: m.incarnation for m in view.members if m.state is State.LEAVING}
        self.locks.enter(view.lock_epoch, up, leaving, view.lock_epoch_before)

    @property
    def view_epoch(self) -> int:
        """The epoch of the view in force here."""
        return self.views.view.epoch

    def heard(self, epoch: int) -> None:
        """Note the highest epoch that anybody knows."""
        self.volume.heard(epoch)

    def poke(self, epoch: int) -> None:
        """Fetch that view soon: `LeasedViews.run` does."""

    # -- out and in again

    async def _readmit_when_lost(self) -> None:
        while True:
            await self.views.lost.wait()
            self.world.note_loss(self.number)
            self._give_up()
            await self.filesystem.wait_dropped()
            self._channel.clear()
            await self.world.may_return(self)
            incarnation = self.world.agreement.join(self.number)
            self.mesh.become(incarnation)
            self._channel.clear()
            self.views.rejoin(incarnation)
            self._connect(self.views.view)
            self.tasks.start_soon(self.views.run)
            self.volume.session(incarnation)
            self.locks = self._new_locks()
            self._enter_locks(self.views.view)
            self._channel.drain(self.views.view)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._give_up_when_lost)
                try:
                    await self.filesystem.readmitted(self.locks)
                except LockLost:
                    continue  # lost once more
                finally:
                    nursery.cancel_scope.cancel()

    async def _give_up_when_lost(self) -> None:
        await self.views.lost.wait()
        self._give_up()

    def _give_up(self) -> None:
        self.filesystem.lost()
        self.locks.lose()
        self.volume.lose()

    async def _reclaim_when_told(self) -> None:
        self._reclaim.set()
        while True:
            await self._reclaim.wait()
            self._reclaim = trio.Event()
            await self.filesystem.reclaim_marked(led_groups(self.views.view, self.number))

    # -- the end

    async def cut_power(self) -> SimulatedDisk:
        """End at once; return the disk as it is found later.

        Nothing gets out any more; then everything here is ended, from the top.
        """
        self.alive = False
        left = self.disk.crash(len(self.disk.journal), seeded(self.world.rng.getrandbits(32)))
        self.mesh.stop()
        self.programs.cancel_scope.cancel()
        await trio.sleep(_LOOK_S)
        self.scope.cancel()
        self.locks.lose()
        self.volume.lose()
        await self.store.close()
        return left


class World:
    """The cluster."""

    def __init__(self, seed: int, nursery: trio.Nursery, rng: random.Random) -> None:
        self.seed = seed
        self.rng = rng
        self.nursery = nursery
        self.agreement = Agreement(rng, GROUPS, 3, 0.01)
        self.network = Network(rng, nursery)
        self.nodes: dict[int, Node] = {}  # those with power
        self.disks: dict[int, SimulatedDisk] = {}
        self.losses: dict[int, list[int]] = {}  # when a node was lost, for the histories
        self._time_ns = 10**18

    # -- made for nodes

    def now_ns(self) -> int:
        """Return the time: it goes on at each look."""
        self._time_ns += 1000
        return self._time_ns

    def note_loss(self, number: int) -> None:
        """What a node has not made durable may be gone from now on."""
        self.losses.setdefault(number, []).append(self.instant())

    def instant(self) -> int:
        """Return virtual nanoseconds."""
        return round(trio.current_time() * 1e9)

    async def may_return(self, node: Node) -> None:
        """Wait until the start that was removed is down for all, and the node can be reached."""
        while (
            not node.alive  # it is about to be ended
            or not node.views.reachable
            or self.agreement.view.member(node.number) is not None
        ):
            await trio.sleep(_LOOK_S)

    # -- what a test does

    async def start(self, number: int) -> Node:
        """Start a node, again or for the first time."""
        node = Node(self, number, self.disks.pop(number, SimulatedDisk()))
        self.nodes[number] = node
        await self.nursery.start(node.run)
        return node

    async def crash(self, number: int) -> None:
        """Cut a node's power; return when the others have buried it."""
        await self.bury(await self._cut_power(number))

    async def blackout(self, number: int) -> None:
        """Cut a node's power and everybody's way to the views; return when all are removed."""
        others = [node for node in self.nodes.values() if node.number != number]
        for node in others:
            node.views.reachable = False
        incarnations = [node.views.incarnation for node in others]
        await self.bury(await self._cut_power(number), *incarnations)
        for node in others:
            node.views.reachable = True

    async def _cut_power(self, number: int) -> int:
        node = self.nodes.pop(number)
        self.note_loss(number)
        self.disks[number] = await node.cut_power()
        return node.views.incarnation

    async def cut_off(self, number: int, *, one_way: bool) -> None:
        """Cut a node off from the others and from the views, until it is removed; then heal."""
        node = self.nodes[number]
        incarnation = node.views.incarnation
        for other in self.nodes:
            if other != number:
                self.network.cut_one_way(number, other)
                if not one_way:
                    self.network.cut_one_way(other, number)
        node.views.reachable = False
        await self.bury(incarnation)
        for other in range(1, 10):
            self.network.heal(number, other)
        node.views.reachable = True

    async def bury(self, *incarnations: int) -> None:
        """Let the others notice that starts of nodes are gone."""
        await trio.sleep(self.rng.random() * 0.2)
        self.agreement.expel(incarnations)
        await trio.sleep(LEASE_S * 1.1)
        self.agreement.remove(incarnations)

    def may_lose(self, number: int) -> bool:
        """Tell whether every group has another live, complete and reachable copy."""
        others = 0
        for other, node in self.nodes.items():
            if other != number and node.views.reachable and not node.views.lost.is_set():
                others |= 1 << other
        view = self.agreement.view
        return not any(view.stopped) and all(mask & others for mask in view.in_sync)

    def quiet(self) -> bool:
        """Tell whether nothing of any change is still going on."""
        view = self.agreement.view
        if any(view.syncing) or any(view.stopped):
            return False
        return all(
            node.volume.epoch == view.epoch
            and node.locks.settled
            and node.volume.statistics()["gate"]["open"]
            and not node.volume.statistics()["outstanding"]
            for node in self.nodes.values()
        )

    async def settle(self) -> None:
        """Wait until every node has everything."""
        with trio.fail_after(120):
            while not self.quiet():
                await trio.sleep(_LOOK_S)

    async def watch(self) -> None:
        """Check, again and again, what holds at any moment."""
        while True:
            self.validate()
            await trio.sleep(_LOOK_S)

    def validate(self) -> None:
        """Check the invariants of each node, and that no two locks exclude each other."""
        held: dict[Name, list[Lock]] = {}
        for node in self.nodes.values():
            if not hasattr(node, "filesystem") or node.views.lease_left_s() <= 0:
                continue  # it uses nothing
            node.locks.validate()
            node.filesystem.validate()
            for lock in node.held():
                held.setdefault(lock.name, []).append(lock)
        for holders in held.values():
            for one, other in combinations(holders, 2):
                assert one.mode is not None
                assert other.mode is not None
                if not one.mode.compatible(other.mode):
                    raise Violation(("exclusion", one, other))

    async def replicas(self) -> dict[int, dict[int, dict[ObjectId, tuple[Version, bytes]]]]:
        """Return what each store has: by node, by group, the objects' versions and digests."""
        return {
            number: {
                group: {
                    object_id: (version, await node.store.digest(object_id))
                    for object_id, version in node.store.objects(group, b"", 1 << 20)
                }
                for group in range(GROUPS)
            }
            for number, node in self.nodes.items()
        }


def run_world(seed: int, story: Callable[[World], Awaitable[None]]) -> None:
    """Run a story in a world of its own; everything in it depends on the seed alone.

    Raises TooSlowError if it does not end.
    """
    rng = random.Random(seed)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            world = World(seed, nursery, rng)
            nursery.start_soon(world.watch)
            with trio.fail_after(_STORY_S):
                await story(world)
            nursery.cancel_scope.cancel()

    with one_thread(rng):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
