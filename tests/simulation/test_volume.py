"""Seeded clusters of volumes: crashes, pauses, cut links and restarts while clients write.

Each client owns some objects, as locks would give it; every object holds a counter. Checked:
  * what was acknowledged survives while one in-sync replica lives without a break;
  * what was synced survives everything;
  * transactions over several objects are never seen by half;
  * replicas are equal at quiescence.
"""

import os
import random

import pytest
import trio
import trio.testing

from clusterfs.cluster import membership
from clusterfs.errors import FilesystemError
from clusterfs.sim.volume_world import Node, World
from clusterfs.store.objects import ABSENT, BLOCK_BYTES, Change, Delete, Put, Write, inode_object
from dlm.errors import LockError

GROUPS = 4
REGRESSIONS = (20, 23, 32, 33, 102, 129)  # each once showed half a transaction, or a stall
FIRST_SEED = int(os.environ.get("CLUSTERFS_SEED", "0"))
SEEDS = (*range(FIRST_SEED, FIRST_SEED + 12), *REGRESSIONS)


class Client:
    """Writes pairs of objects of its own: both always hold the same counter."""

    def __init__(self, world: World, node: Node, rng: random.Random) -> None:
        self.world, self.node, self.rng = world, node, rng
        self.base = node.incarnation * 1000
        self.acknowledged: dict[int, int] = {}  # pair -> counter, negative: of its deletion
        self.synced: dict[int, int] = {}
        self.attempted: dict[int, int] = {}
        self.deletions: dict[int, set[int]] = {}  # pair -> their counters

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                for pair in range(3):
                    nursery.start_soon(self._write, pair)
                nursery.start_soon(self._sync)
        except* LockError:
            pass

    def ids(self, pair: int) -> tuple[tuple[bytes, int], tuple[bytes, int]]:
        number = self.base + pair
        one, other = inode_object(number), inode_object(number + 500)
        return (one, number % GROUPS), (other, (number + pair) % GROUPS)

    async def _write(self, pair: int) -> None:
        volume = self.node.volume
        before = last = [ABSENT, ABSENT]  # what is there, and the versions so far
        for counter in range(1, 1000):
            await trio.sleep(self.rng.random() * 0.1)
            data = counter.to_bytes(2, "big") * (BLOCK_BYTES // 2)
            delete = before[0] != ABSENT and self.rng.random() < 0.1
            changes, payload = [], b""
            for i, (object_id, group) in enumerate(self.ids(pair)):
                operations = (
                    (Delete(),) if delete else (Put(b"n", b"%d" % counter), Write(counter % 8, 1))
                )
                payload += b"" if delete else data
                after = last[i].after(volume.epoch)  # also of what is made anew
                changes.append(Change(object_id, group, before[i], after, operations))
            self.attempted[pair] = -counter if delete else counter
            if delete:
                self.deletions.setdefault(pair, set()).add(counter)
            durable = self.rng.random() < 0.2
            await volume.commit(changes, payload, durable=durable)
            last = [change.version for change in changes]
            before = [ABSENT, ABSENT] if delete else last
            self.acknowledged[pair] = -counter if delete else counter
            if durable:
                self.synced[pair] = self.acknowledged[pair]

    async def _sync(self) -> None:
        while True:
            await trio.sleep(self.rng.random())
            known = dict(self.acknowledged)
            await self.node.volume.sync()
            self.synced.update(known)


class Story:
    """One seed's run."""

    def __init__(self, seed: int, world: World, nursery: trio.Nursery) -> None:
        self.world, self.nursery = world, nursery
        self.rng = random.Random(seed + 1000)
        self.clients: list[Client] = []
        self.down: set[int] = set()

    async def start(self, number: int) -> None:
        node = await self.world.start(number)
        self.down.discard(number)
        client = Client(self.world, node, random.Random(self.rng.random()))
        self.clients.append(client)
        self.nursery.start_soon(client.run)

    async def crash(self, *numbers: int) -> None:
        gone = self.world.crash(*numbers)
        self.down.update(numbers)
        await trio.sleep(self.rng.random() * 0.5)
        if self.rng.random() < 0.5:
            self.world.agreement.expel(gone)
            await trio.sleep(self.rng.random() * 0.3)
        self.world.agreement.remove(gone)

    async def step(self) -> None:
        world, rng = self.world, self.rng
        await trio.sleep(rng.random() * 1.5)
        up = sorted(world.nodes)
        roll = rng.random()
        if self.down and roll < 0.5:
            await self.start(min(self.down))
        elif roll < 0.75 and up:
            await self.crash(rng.choice(up))
        elif roll < 0.85:
            one, other = rng.sample(range(1, 5), 2)
            world.network.cut(one, other)
            await trio.sleep(rng.random())
            world.network.heal(one, other)
        elif roll < 0.9:
            await self.crash(*up)
        else:
            views = world.nodes[rng.choice(up)].views if up else None
            if views is not None:
                await views.drop_replica(rng.choice(up), range(GROUPS), "the story says so")

    async def finish(self) -> None:
        for number in sorted(self.down):
            await self.start(number)
        await trio.sleep(1)
        self.nursery.cancel_scope.cancel()

    def check(self) -> None:
        for client in self.clients:
            for pair in client.attempted:
                self.check_pair(client, pair)
        self.world.assert_replicas_equal()

    def check_pair(self, client: Client, pair: int) -> None:
        found = [self.counter(object_id, group) for object_id, group in client.ids(pair)]
        assert found[0] == found[1], f"half a transaction of {client.base + pair}: {found}"
        attempted = client.attempted[pair]
        lost_all = self.world.agreement.stopped_ever
        known = (client.synced if lost_all else client.acknowledged).get(pair, 0)
        deleted = client.deletions.get(pair, set())
        if found[0] is None:
            gone = known == 0 or any(counter >= abs(known) for counter in deleted)
            assert gone, (client.base + pair, known, attempted)
        else:
            assert found[0] not in deleted, (client.base + pair, known, found)
            assert abs(known) <= found[0] <= abs(attempted), (client.base + pair, known, found)

    def counter(self, object_id: bytes, group: int) -> int | None:
        mask = self.world.agreement.view.in_sync[group]
        for number, store in self.world.stores.items():
            if mask >> number & 1:
                contents = store.contents().get(object_id)
                if contents is None:
                    return None
                counter = int(contents[2][b"n"])
                data = contents[3][counter % 8]
                assert data == counter.to_bytes(2, "big") * (BLOCK_BYTES // 2), "keys and data"
                return counter
        raise AssertionError(f"group {group} has no copy")


class Resizing(Story):
    """Nodes join and are emptied, now and then one dies in the middle, while clients write."""

    async def step(self) -> None:
        world, rng = self.world, self.rng
        await trio.sleep(rng.random() * 2)
        up = sorted(world.nodes)
        roll = rng.random()
        unseen = [n for n in range(1, 6) if n not in world.nodes]
        if unseen and roll < 0.4:
            await self.start(rng.choice(unseen))
        elif roll < 0.7:
            node = rng.choice(up)
            if len(membership.candidates(world.agreement.view)) > 2:
                world.agreement.propose(lambda view: membership.retired(view, node))
        elif roll < 0.85:
            node = rng.randrange(1, 6)
            world.agreement.propose(lambda view: membership.reinstated(view, node))
        else:
            node = rng.choice(up)
            if all(mask & ~(1 << node) for mask in world.agreement.view.in_sync):
                await self.crash(node)

    async def finish(self) -> None:
        await super().finish()
        for node in range(1, 6):
            self.world.agreement.propose(lambda view, node=node: membership.reinstated(view, node))


async def resize(seed: int) -> None:
    deterministic(seed)
    async with trio.open_nursery() as nursery:
        world = World(seed, nursery, groups=GROUPS, replicas=2)
        async with trio.open_nursery() as clients:
            story = Resizing(seed, world, clients)
            await story.start(1)
            await story.start(2)
            for _ in range(10):
                await story.step()
            await story.finish()
        await world.settled(30)
        story.check()
        await trio.sleep(5)
        world.assert_trimmed()
        nursery.cancel_scope.cancel()


def deterministic(seed: int) -> None:
    """Let trio's scheduler, which shuffles what runs next, do it by the seed."""
    trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING = True
    trio._core._run._r.seed(seed)


async def play(seed: int, replicas: int) -> None:
    deterministic(seed)
    async with trio.open_nursery() as nursery:
        world = World(seed, nursery, groups=GROUPS, replicas=replicas)
        async with trio.open_nursery() as clients:
            story = Story(seed, world, clients)
            for number in range(1, 5 if replicas == 2 else 4):
                await story.start(number)
            for _ in range(8):
                await story.step()
            await story.finish()
        await world.settled(20)
        story.check()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("replicas", [3, 2])
@pytest.mark.parametrize("seed", SEEDS)
async def test_acknowledged_survives(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001
    seed: int,
    replicas: int,
) -> None:
    try:
        await play(seed, replicas)
    except* FilesystemError as errors:
        raise AssertionError(f"seed {seed}") from errors


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + 12))
async def test_growing_and_shrinking_loses_nothing(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001
    seed: int,
) -> None:
    try:
        await resize(seed)
    except* FilesystemError as errors:
        raise AssertionError(f"seed {seed}") from errors
