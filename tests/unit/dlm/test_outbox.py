"""What goes when, and with what: the fewest batches that keep nobody waiting."""

import itertools

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from dlm.messages import Message, Request, Route, Unlock, decode_all, encode_all
from dlm.node import Lock, Lockspace, Mode, Name
from dlm.outbox import Outbox
from tests.unit.dlm.test_node import Cluster

EX, PR = Mode.EX, Mode.PR
TERM = 1 << 36


class Wire:
    """A cluster of two of which we see what node 2 says to node 1, the master."""

    def __init__(self) -> None:
        self.cluster = Cluster(2)
        self.root = next(self.cluster.roots_of(1, 1))
        self.batches: list[list[str]] = []
        space = self.space
        send = space.outbox._send

        def seen(node: int, body: bytes) -> None:
            self.batches.append([type(message).__name__ for message in decode_all(body)])
            send(node, body)

        space.outbox._send = seen

    @property
    def space(self) -> Lockspace:
        return self.cluster.spaces[2]

    async def lock(self, leaf: bytes = b"x") -> Lock:
        return await self.space.lock(Name(self.root, leaf), EX)


async def wire(nursery: trio.Nursery) -> Wire:
    wire = Wire()
    nursery.start_soon(wire.cluster.carry)
    await wire.cluster.spaces[1].lock(Name(wire.root, b"keep"), Mode.NL)
    return wire


async def test_an_unlock_goes_with_the_next_request(nursery: trio.Nursery) -> None:
    wired = await wire(nursery)
    nursery.start_soon(wired.space.run)
    await wait_all_tasks_blocked()
    wired.space.unlock_nowait(await wired.lock())
    await trio.lowlevel.checkpoint()
    wired.space.unlock_nowait(await wired.lock())
    await wait_all_tasks_blocked()
    assert wired.batches == [["Request"], ["Unlock", "Request"], ["Unlock"]]


async def test_an_unlock_that_somebody_waits_for_goes_at_once(nursery: trio.Nursery) -> None:
    wired = await wire(nursery)
    nursery.start_soon(wired.space.run)
    lock = await wired.lock()
    async with trio.open_nursery() as waiting:
        waiting.start_soon(wired.cluster.spaces[1].lock, Name(wired.root, b"x"), PR)
        await wait_all_tasks_blocked()
        assert lock.blocked_for is PR
        wired.batches.clear()
        wired.space.unlock_nowait(lock)
        assert wired.batches == [["Unlock"]]


@pytest.mark.parametrize(
    ("apart_s", "batches"),
    [(0.0, [["Request"], ["Request"] * 9]), (1.0, [["Request"]] * 10)],
)
async def test_what_many_want_in_one_pass_goes_together(
    nursery: trio.Nursery, apart_s: float, batches: list[list[str]]
) -> None:
    wired = await wire(nursery)
    nursery.start_soon(wired.space.run)
    await wait_all_tasks_blocked()
    clock = itertools.count(1000.0, apart_s)
    wired.space.outbox._now = lambda: next(clock)
    async with trio.open_nursery() as asking:
        for number in range(10):
            asking.start_soon(wired.lock, b"%d" % number)
    assert wired.batches == batches


async def test_what_follows_something_heard_goes_at_once(nursery: trio.Nursery) -> None:
    """However soon that is after what was told before."""
    told: list[bytes] = []
    box = Outbox(lambda _node, body: told.append(body), lambda: 1000.0)
    nursery.start_soon(box.run)
    await wait_all_tasks_blocked()
    for expected in (1, 1):
        box.put(1, Unlock(TERM, 1, 0, None))
        box.close()
        assert len(told) == expected
    with box:
        pass  # this is how Lockspace.deliver hears
    assert len(told) == 2
    box.put(1, Unlock(TERM, 1, 0, None))
    box.close()
    assert len(told) == 3


async def test_without_the_task_nothing_is_put_off(nursery: trio.Nursery) -> None:
    wired = await wire(nursery)
    wired.space.unlock_nowait(await wired.lock())
    assert wired.batches == [["Request"], ["Unlock"]]


async def test_what_was_put_off_goes_when_the_task_ends(nursery: trio.Nursery) -> None:
    wired = await wire(nursery)
    async with trio.open_nursery() as running:
        running.start_soon(wired.space.run)
        first, second = await wired.lock(), await wired.lock(b"y")
        wired.space.unlock_nowait(first)
        running.cancel_scope.cancel()
    assert wired.batches == [["Request"], ["Request"], ["Unlock"]]
    wired.space.unlock_nowait(second)
    assert wired.batches[3:] == [["Unlock"]]


def test_batches_of_any_length_are_read_as_they_were_said() -> None:
    for count in (1, 2, 15, 16, 500, 70_000):
        said: list[Message] = [Unlock(TERM, number + 1, 0, None) for number in range(count)]
        assert decode_all(encode_all(said)) == said
    request = Request(1, 2, 3, b"\x90", b"", EX, 0, "", Route.ASK)
    assert decode_all(encode_all([request])) == [request]
