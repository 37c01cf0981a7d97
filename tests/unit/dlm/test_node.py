import gc
import weakref
from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import count

import msgpack
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from dlm.errors import DeadlockVictim, LockBusy, LockCancelled, LockLost, WouldBlock
from dlm.node import Flags, Lock, Lockspace, Mode, Name, Owner

A = Name(b"a", b"x")
NL, CR, CW, PR, PW, EX = Mode


class Cluster:
    """Lockspaces joined by links that a task keeps empty."""

    def __init__(self, nodes: int) -> None:
        self.links: dict[tuple[int, int], deque[bytes]] = {}
        self.spaces: dict[int, Lockspace] = {}
        self.members: dict[int, int] = {}
        self.epoch = 0
        self.said = trio.Event()
        for node in range(1, nodes + 1):
            self.start(node)
        self.change_view()
        self.settle()

    def start(self, node: int) -> None:
        def send(target: int, message: bytes) -> None:
            self.links.setdefault((node, target), deque()).append(message)
            self.said.set()

        self.members[node] = 100 * (self.epoch + 1) + node
        self.spaces[node] = Lockspace(
            node, self.members[node], send, trio.current_time, lvb_bytes=8
        )

    def stop(self, node: int) -> None:
        self.spaces.pop(node).lose()
        del self.members[node]
        for link in [link for link in self.links if node in link]:
            del self.links[link]

    def change_view(self) -> None:
        self.epoch += 1
        for space in self.spaces.values():
            space.enter(self.epoch, self.members)

    def settle(self) -> None:
        while any(self.links.values()):
            for (source, target), link in tuple(self.links.items()):
                if link:
                    self.spaces[target].deliver(source, link.popleft())
        for space in self.spaces.values():
            space.validate()

    def roots_of(self, node: int, directory: int) -> Iterator[bytes]:
        """Yield names whose directory node is the given one, as `node` sees it."""
        here = self.spaces[node]._core.here
        return (
            root for root in map(b"%d".__mod__, count()) if here.directory_of(root) == directory
        )

    async def carry(self) -> None:
        while True:
            await self.said.wait()
            self.said = trio.Event()
            self.settle()


@pytest.fixture
async def cluster(nursery: trio.Nursery) -> Cluster:
    cluster = Cluster(3)
    nursery.start_soon(cluster.carry)
    return cluster


class Polite:
    """Makes way, down to what the other one can live with."""

    def __init__(self, space: Lockspace) -> None:
        self.space = space
        self.told: list[Mode] = []

    def __call__(self, lock: Lock, wanted: Mode) -> None:
        self.told.append(wanted)
        self.space.convert_down_nowait(lock, NL, b"from %d  " % 1)


async def test_a_holder_makes_way_and_leaves_a_value(cluster: Cluster) -> None:
    one, two = cluster.spaces[1], cluster.spaces[2]
    polite = Polite(one)
    held = await one.lock(A, EX, flags=Flags.VALBLK, blocking=polite)
    other = await two.lock(A, PR, flags=Flags.VALBLK)
    assert (polite.told, held.mode, other.mode) == ([PR], NL, PR)
    assert (other.lvb, other.lvb_valid) == (b"from 1  ", True)


async def test_failures_are_raised_by_name(cluster: Cluster) -> None:
    one, two = cluster.spaces[1], cluster.spaces[2]
    a = await one.lock(A, PR)
    b = await two.lock(A, PR)
    with pytest.raises(WouldBlock):
        await two.lock(A, EX, flags=Flags.NOQUEUE)
    with pytest.raises(WouldBlock):
        await two.convert(b, EX, flags=Flags.NOQUEUE)
    assert b.mode is PR
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.convert, a, EX)
        await wait_all_tasks_blocked()
        with pytest.raises(LockBusy):
            one.unlock_nowait(a)
        with pytest.raises(DeadlockVictim):
            await two.convert(b, EX)
        two.unlock_nowait(b)
    assert a.mode is EX


async def test_a_cancelled_wait_leaves_nothing_behind(cluster: Cluster) -> None:
    one, two = cluster.spaces[1], cluster.spaces[2]
    held = await one.lock(A, EX)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(two.lock, A, EX)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    one.unlock_nowait(held)
    await wait_all_tasks_blocked()
    assert two.dump()["locks"] == []
    assert (await cluster.spaces[3].lock(A, EX)).mode is EX


async def test_a_grant_that_was_faster_than_the_cancellation_is_given_back(
    cluster: Cluster, nursery: trio.Nursery
) -> None:
    one, two = cluster.spaces[1], cluster.spaces[2]
    held = await one.lock(A, EX)
    with trio.CancelScope() as scope:

        async def cancel_when_waiting() -> None:
            await wait_all_tasks_blocked()
            one.unlock_nowait(held)  # the grant is under way now
            scope.cancel()

        nursery.start_soon(cancel_when_waiting)
        await two.lock(A, EX)
    assert (await cluster.spaces[3].lock(A, EX)).mode is EX


async def test_cancel_ends_a_waiting_conversion(cluster: Cluster, nursery: trio.Nursery) -> None:
    one, two = cluster.spaces[1], cluster.spaces[2]
    await one.lock(A, PR)
    lock = await two.lock(A, PR)

    async def cancel() -> None:
        await wait_all_tasks_blocked()
        two.cancel(lock)

    nursery.start_soon(cancel)
    with pytest.raises(LockCancelled):
        await two.convert(lock, EX)
    assert lock.mode is PR


async def test_a_shielded_conversion_ends_in_spite_of_a_cancellation(
    cluster: Cluster, nursery: trio.Nursery
) -> None:
    one, two = cluster.spaces[1], cluster.spaces[2]
    held = await one.lock(A, PR)
    lock = await two.lock(A, PR)
    with trio.CancelScope() as scope:

        async def cancel_when_waiting() -> None:
            await wait_all_tasks_blocked()
            scope.cancel()
            await wait_all_tasks_blocked()
            one.unlock_nowait(held)

        nursery.start_soon(cancel_when_waiting)
        await two.convert(lock, EX, shield=True)
        assert (lock.mode, scope.cancel_called) == (EX, True)


async def test_waits_go_on_through_a_view_change(cluster: Cluster) -> None:
    one, two, three = (cluster.spaces[node] for node in (1, 2, 3))
    await one.lock(A, EX)
    held: list[Lock] = []

    async def wait(space: Lockspace) -> None:
        lock = await space.lock(A, EX)
        held.append(lock)
        assert [other for other in held if other.mode is EX] == [lock]
        space.unlock_nowait(lock)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, two)
        nursery.start_soon(wait, three)
        await wait_all_tasks_blocked()
        cluster.stop(1)
        cluster.change_view()
        cluster.start(1)
        cluster.change_view()
    assert len(held) == 2


async def test_a_removed_node_loses_everything(cluster: Cluster) -> None:
    one = cluster.spaces[1]
    lock = await one.lock(A, PR)
    cluster.stop(1)
    assert lock.mode is None
    with pytest.raises(LockLost):
        one.convert_down_nowait(lock, NL)
    with pytest.raises(LockLost):
        one.unlock_nowait(lock)
    with pytest.raises(LockLost):
        await one.lock(A, PR)


async def test_a_wait_ends_when_the_node_is_removed(
    cluster: Cluster, nursery: trio.Nursery
) -> None:
    one, two = cluster.spaces[1], cluster.spaces[2]
    await one.lock(A, EX)

    async def remove_when_waiting() -> None:
        await wait_all_tasks_blocked()
        cluster.stop(2)

    nursery.start_soon(remove_when_waiting)
    with pytest.raises(LockLost):
        await two.lock(A, EX)


async def test_before_the_first_view_everything_waits() -> None:
    sent: list[bytes] = []
    space = Lockspace(1, 5, lambda _node, message: sent.append(message), lambda: 0.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(space.lock, A, EX)
        await wait_all_tasks_blocked()
        assert not space.settled
        space.enter(1, {1: 5})
    assert not sent


async def test_the_dump_tells_who_holds_and_who_waits(
    cluster: Cluster, nursery: trio.Nursery
) -> None:
    one, two = cluster.spaces[1], cluster.spaces[2]
    await one.lock(Name(b"c"), EX, owner="holder")
    nursery.start_soon(partial(two.lock, Name(b"c"), PR, owner="waiter"))
    await wait_all_tasks_blocked()
    dump = msgpack.unpackb(msgpack.packb(one.dump()))
    (resource,) = dump["resources"]
    assert [copy["owner"] for copy in resource["granted"]] == ["holder"]
    assert [(c["node"], c["requested"]) for c in resource["waiting"]] == [(2, "PR")]
    assert dump["misdirected"] == 0
    (own,) = msgpack.unpackb(msgpack.packb(two.dump()))["locks"]
    assert (own["master"], own["mode"], own["requested"]) == (1, None, "PR")


async def test_one_of_two_transactions_that_wait_for_each_other_is_told_the_whole_story(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    began_s = autojump_clock.current_time()
    told: list[str] = []
    victims: list[str] = []
    for space in cluster.spaces.values():
        space._now, space.on_deadlock = trio.current_time, told.append

    async def transact(space: Lockspace, label: str, first: bytes, second: bytes) -> None:
        owner = Owner(label)
        one = await space.lock(Name(first), EX, owner=owner)
        await trio.sleep(0.01)
        try:
            two = await space.lock(Name(second), EX, owner=owner)
        except DeadlockVictim as error:
            victims.append(str(error))
        else:
            space.unlock_nowait(two)
        space.unlock_nowait(one)

    async with trio.open_nursery() as nursery:
        for space in cluster.spaces.values():
            nursery.start_soon(space.run)
        async with trio.open_nursery() as both:
            both.start_soon(transact, cluster.spaces[1], "mv", b"a", b"b")
            both.start_soon(transact, cluster.spaces[2], "cp", b"b", b"a")
        nursery.cancel_scope.cancel()
    assert autojump_clock.current_time() < began_s + 1
    assert victims == told
    [story] = victims
    assert "mv on node 1 holds EX on a and waits for EX on b" in story


async def test_a_kept_lock_is_used_and_then_not(cluster: Cluster) -> None:
    one, owner = cluster.spaces[1], Owner("user")
    kept = await one.lock(A, PR)
    one.use(kept, owner)
    assert set(kept.users or ()) == {owner}
    one.end_use(kept, owner)
    assert not kept.users


@pytest.mark.usefixtures("autojump_clock")
async def test_a_new_name_is_held_at_once_and_told_later(nursery: trio.Nursery) -> None:
    cluster = Cluster(3)
    space = cluster.spaces[1]
    nursery.start_soon(space.run)
    names = [Name(b"new%d" % n) for n in range(20)]
    for name in names:
        await space.lock_new(name, EX)
    assert not any(cluster.links.values())
    await trio.sleep(1)
    cluster.settle()
    sent = space.dump()["sent"]
    assert isinstance(sent, dict)
    assert sent["Claim"] == 2  # one to each other directory node
    assert set(sent) == {"Claim", "Seats", "RangeTell"}


@pytest.mark.usefixtures("autojump_clock")
async def test_an_idle_lockspace_sleeps_until_it_is_told_to_wake_up(
    nursery: trio.Nursery,
) -> None:
    """`run` looks at the core's deadline anew whenever that comes nearer."""
    cluster = Cluster(2)
    nursery.start_soon(cluster.spaces[1].run)
    await trio.sleep(1)
    for n in range(8):
        await cluster.spaces[1].lock_new(Name(b"new%d" % n), EX)
    await trio.sleep(1)
    assert cluster.links[1, 2]


async def test_run_ends_when_the_node_is_removed() -> None:
    space = Cluster(1).spaces[1]
    with trio.fail_after(300):
        async with trio.open_nursery() as inner:
            inner.start_soon(space.run)
            await wait_all_tasks_blocked()
            space.lose()


async def test_a_conversion_waits_until_the_weakening_before_it_is_told(cluster: Cluster) -> None:
    space = cluster.spaces[1]
    lock = await space.lock(A, EX)
    await space.lock_new(Name(next(cluster.roots_of(1, 2))), EX)
    space.convert_down_nowait(lock, PR)
    assert lock.mode is PR
    with trio.fail_after(300):
        await space.convert(lock, EX)
    assert lock.mode is EX


async def test_many_locks_are_one_message_for_each_master(cluster: Cluster) -> None:
    names = [Name(root) for root, _ in zip(cluster.roots_of(1, 2), range(10), strict=False)]
    for name in names:
        await cluster.spaces[2].lock(name, PR)
    before = cluster.spaces[1].outbox.batches
    with trio.fail_after(300):
        locks = await cluster.spaces[1].lock_many(names, PR)
    assert [lock.name for lock in locks if lock is not None and lock.mode is PR] == names
    assert cluster.spaces[1].outbox.batches == before + 1


async def test_of_many_locks_those_that_are_not_free_are_left_out(cluster: Cluster) -> None:
    names = [Name(b"many%d" % n) for n in range(6)]
    for name in names[::2]:
        await cluster.spaces[2].lock(name, EX)
    with trio.fail_after(300):
        locks = await cluster.spaces[1].lock_many(names, PR, flags=Flags.NOQUEUE)
    assert [lock is not None for lock in locks] == [False, True] * 3


async def test_nobody_keeps_locks_that_were_asked_for_together_in_vain(cluster: Cluster) -> None:
    names = [Name(b"many%d" % n) for n in range(6)]
    holder = await cluster.spaces[2].lock(names[3], EX)
    with trio.move_on_after(0.05):
        await cluster.spaces[1].lock_many(names, PR)
    cluster.spaces[2].unlock_nowait(holder)
    await wait_all_tasks_blocked()
    assert cluster.spaces[1].dump()["locks"] == []


async def test_a_name_made_here_is_known_to_the_directory_once_that_was_waited_for(
    cluster: Cluster,
) -> None:
    one = cluster.spaces[1]
    for number in range(20):
        root = b"new %d" % number
        lock = await one.lock_new(Name(root), EX)
        await one.known(root)
        with pytest.raises(WouldBlock):
            await cluster.spaces[2].lock(Name(root), PR, flags=Flags.NOQUEUE)
        one.unlock_nowait(lock)
    with trio.testing.assert_no_checkpoints():
        await one.known(b"new 1")
        await one.known(b"never heard of")


async def test_who_waits_for_a_name_to_be_known_does_not_wait_for_ever(cluster: Cluster) -> None:
    one = cluster.spaces[1]
    roots = [b"%d" % number for number in range(20)]
    for root in roots:
        await one.lock_new(Name(root), EX)
    one.lose()
    for root in roots:
        await one.known(root)


@pytest.mark.parametrize("master", [1, 3])
async def test_what_the_dead_held_waits_for_its_gate(nursery: trio.Nursery, master: int) -> None:
    cluster = Cluster(3)
    opened: list[int] = []
    for space in cluster.spaces.values():
        space.set_gate(lambda root, epoch: root != b"a" or epoch in opened)
    opened.append(1)
    got: list[str] = []

    async def want(label: str, name: Name) -> None:
        await cluster.spaces[2].lock(name, EX)
        got.append(label)

    async def hold(node: int, name: Name, mode: Mode) -> None:
        await cluster.spaces[node].lock(name, mode)

    async def until(done: int) -> None:
        with trio.fail_after(60):
            while len(got) < done:
                cluster.settle()
                await trio.lowlevel.checkpoint()

    for node, mode in ((master, NL), (3, EX)):
        nursery.start_soon(hold, node, A, mode)
        await wait_all_tasks_blocked()
        cluster.settle()
        await wait_all_tasks_blocked()
    cluster.stop(3)
    cluster.change_view()
    nursery.start_soon(want, "what the dead held", A)
    nursery.start_soon(want, "something else", Name(b"b"))
    await until(1)
    await wait_all_tasks_blocked()
    cluster.settle()
    assert got == ["something else"]
    opened.append(cluster.epoch)
    for space in cluster.spaces.values():
        space.gate_opened()
    await until(2)
    nursery.cancel_scope.cancel()


class User:
    """Somebody who knows the lockspace that it is called by."""

    def __init__(self, space: Lockspace) -> None:
        self.space = space

    def blocked(self, lock: Lock, mode: Mode) -> None:
        pass


async def test_a_lockspace_that_is_over_is_garbage() -> None:
    space = Lockspace(1, 1, lambda *_: None, trio.current_time)
    space.enter(1, {1: 1})
    await space.lock(Name(b"r"), Mode.EX, blocking=User(space).blocked)
    gone = weakref.ref(space._core)
    del space
    gc.collect()
    assert gone() is None
