"""Which system calls use and await locks, as tools see it."""

from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from clusterfs.fs import asking, lock_uses
from clusterfs.fs.keys import ROOT
from clusterfs.fs.lock_cache import LockCache
from clusterfs.fs.locks import CachedLock
from clusterfs.fs.ports import Name
from clusterfs.sim.mounts import World

NAME = Name(b"\0" * 7 + b"\x2a", b"")


def described(lock: CachedLock, *, only_busy: bool = False) -> list[Any]:
    now_s = trio.current_time()
    [page] = lock_uses.describe([lock], [], now_s, only_busy=only_busy)
    return page


async def test_users_and_waiters_are_named_until_they_are_done() -> None:
    async with World(1).running() as world, trio.open_nursery() as nursery:
        cache = LockCache(world.nodes[1].lockspace)
        cache.use(nursery)
        lock = cache.lock(NAME)
        done = trio.Event()
        assert described(lock) == []

        async def write() -> None:
            asking.begin("write", 41)
            async with lock.excluding():
                await done.wait()

        async def read() -> None:
            asking.begin("read", 42)
            async with lock.sharing():
                pass

        for call in (write, read):
            nursery.start_soon(call)
            await wait_all_tasks_blocked()
        [use] = described(lock)
        assert [(who["pid"], who["operation"]) for who in use["using"]] == [(41, "write")]
        [waiter] = use["waiting"]
        assert (waiter["pid"], waiter["operation"], waiter["mode"]) == (42, "read", "PR")
        assert waiter["wait_s"] >= 0
        assert (use["users"], use["mode"]) == (-1, "EX")
        [own] = [
            own for own in world.nodes[1].lockspace.dump()["locks"] if own["root"] == NAME.root
        ]
        assert own["owner"] == "41 write"

        done.set()
        await wait_all_tasks_blocked()
        [use] = described(lock)
        assert (use["using"], use["waiting"], use["users"]) == ([], [], 0)
        assert described(lock, only_busy=True) == []


async def test_a_call_that_uses_a_lock_twice_is_named_until_its_last_use_ends() -> None:
    async with World(1).running() as world, trio.open_nursery() as nursery:
        cache = LockCache(world.nodes[1].lockspace)
        cache.use(nursery)
        lock = cache.lock(NAME)
        asking.begin("getattr", 7)
        async with lock.sharing():
            async with lock.sharing():
                assert len(lock.using) == 1
            assert len(lock.using) == 1
        assert not lock.using


async def test_without_anybody_who_said_so_there_is_no_name() -> None:
    async with World(1).running() as world, trio.open_nursery() as nursery:
        cache = LockCache(world.nodes[1].lockspace)
        cache.use(nursery)
        lock = cache.lock(NAME)
        async with lock.excluding():
            [use] = described(lock)
            assert use["using"] == []


@pytest.mark.parametrize(
    ("names", "path"),
    [
        ({5: (4, b"file"), 4: (ROOT, b"d")}, "/d/file"),
        ({5: (ROOT, b"\xff")}, "/\\xff"),
        ({5: (4, b"file")}, ""),
        ({5: (4, b"x"), 4: (5, b"y")}, ""),
    ],
)
def test_a_path_is_made_of_cached_names_or_not_known(names: lock_uses.Names, path: str) -> None:
    assert lock_uses.path_of(5, names) == path


def test_the_root_is_a_path_of_its_own() -> None:
    assert lock_uses.path_of(ROOT, {}) == "/"
