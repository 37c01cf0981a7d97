"""Lanes keep each sender's order; tombstones survive a crash, whole transactions at a time."""

import random
from collections.abc import Awaitable, Callable

import trio
import trio.testing

from clusterfs.sim.model_store import ModelStore
from clusterfs.store.objects import Version, inode_object
from clusterfs.volume.lanes import Lane
from clusterfs.volume.tombstones import Tombstones


async def test_what_waits_holds_back_what_follows(nursery: trio.Nursery) -> None:
    gate = trio.Event()
    served: list[int] = []

    def attempt(item: int) -> Callable[[], Awaitable[None]] | None:
        if item == 2 and not gate.is_set():
            return gate.wait
        served.append(item)
        return None

    lane: Lane[int] = Lane(nursery.start_soon, attempt)
    for item in (1, 2, 3):
        lane.put(item)
    await trio.testing.wait_all_tasks_blocked()
    assert served == [1]
    assert len(lane) == 2
    gate.set()
    await trio.testing.wait_all_tasks_blocked()
    lane.put(4)
    assert served == [1, 2, 3, 4]


async def test_a_closed_lane_serves_nothing_more(nursery: trio.Nursery) -> None:
    gate = trio.Event()
    lane: Lane[int] = Lane(nursery.start_soon, lambda _item: gate.wait)
    lane.put(1)
    await trio.testing.wait_all_tasks_blocked()
    lane.close()
    gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert len(lane) == 0


async def test_tombstones_are_found_after_a_crash(autojump_clock: trio.testing.MockClock) -> None:
    assert autojump_clock is not None
    store = ModelStore(random.Random(1))
    ids = [inode_object(n) for n in range(4)]
    tombstones = Tombstones(store)
    tombstones.add({ids[0]: Version(1, 1), ids[1]: Version(1, 2)})
    tombstones.add({ids[2]: Version(1, 3)})
    tombstones.remove([ids[0], ids[2]])
    await store.sync()
    tombstones.add({ids[3]: Version(1, 4)})
    del store._journal[store._durable :]
    store.crash()
    again = Tombstones(store)
    assert again.loaded == {ids[0]: Version(1, 1), ids[1]: Version(1, 2)}
    again.remove(again.loaded)
    assert not Tombstones(store).loaded


async def test_of_an_object_that_was_deleted_twice_the_last_tombstone_counts() -> None:
    store = ModelStore(random.Random(1))
    once, twice = inode_object(1), inode_object(2)
    tombstones = Tombstones(store)
    tombstones.add({once: Version(1, 1), twice: Version(1, 5)})
    tombstones.add({twice: Version(1, 9)})  # it had been made anew
    assert Tombstones(store).loaded == {once: Version(1, 1), twice: Version(1, 9)}
    tombstones.remove([once])
    assert Tombstones(store).loaded == {twice: Version(1, 9)}
    tombstones.remove([twice])
    assert not Tombstones(store).loaded
