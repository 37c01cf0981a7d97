"""The turn at receiving requests, with tasks like pyfuse3's over a queue of requests."""

import inspect
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio
import trio.testing

from clusterfs.fuse.binding import native
from clusterfs.fuse.operations import Operations
from clusterfs.fuse.receiving import (
    SPARE_TASKS,
    Lowlevel,
    Turn,
    _epoll,
    in_place,
    keeping_turn,
    turn,
)

Handler = Callable[[], Awaitable[None]]


class Loop:
    """pyfuse3's main loop, as far as the turn goes: see `_session_loop` in its internal.pxi."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.turn = turn.begin()
        self.requests: deque[Handler] = deque()
        self.news = trio.Event()
        self.exited = False
        self.readers = self.tasks = 0
        self.receivers: list[int] = []
        self._nursery = nursery
        self._start()

    def send(self, *handlers: Handler) -> None:
        self.requests.extend(handlers)
        self.news.set()

    def unmount(self) -> None:
        self.exited = True
        self.news.set()

    def _start(self) -> None:
        self.tasks += 1
        self._nursery.start_soon(self._work, self.tasks)

    async def _work(self, number: int) -> None:
        while not self.exited and self.readers <= SPARE_TASKS:
            self.readers += 1
            async with self.turn:
                if not self.exited:
                    while not (self.requests or self.exited):
                        self.news = trio.Event()
                        await self.news.wait()
                    await trio.lowlevel.checkpoint()
            self.readers -= 1
            if self.exited:
                self.turn.end()
                break
            request = self.requests.popleft()
            self.receivers.append(number)
            if not self.readers:
                self._start()
            await keeping_turn(request())  # type: ignore[arg-type]
        self.tasks -= 1


async def quick() -> None:
    """Be answered at once."""


async def test_who_receives_keeps_the_turn_while_nothing_waits(nursery: trio.Nursery) -> None:
    loop = Loop(nursery)
    for _ in range(5):
        loop.send(quick)
        await trio.testing.wait_all_tasks_blocked()
    assert loop.receivers == [1] * 5
    loop.unmount()


async def test_receiving_goes_on_while_requests_wait(nursery: trio.Nursery) -> None:
    loop = Loop(nursery)
    gate, passed = trio.Event(), []

    async def slow() -> None:
        await gate.wait()
        passed.append(1)

    for round_ in range(30):
        loop.send(slow)
        await trio.testing.wait_all_tasks_blocked()
        assert len(loop.receivers) == round_ + 1, "nobody received it"
    gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert len(passed) == 30
    assert loop.tasks <= SPARE_TASKS + 2, "those that are not needed have ended"
    for _ in range(5):
        loop.send(quick, slow, quick)
        await trio.testing.wait_all_tasks_blocked()
    assert len(loop.receivers) == 45, "receiving goes on although tasks have ended"
    loop.unmount()


async def test_all_end_with_the_session(nursery: trio.Nursery) -> None:
    loop = Loop(nursery)
    gate = trio.Event()
    loop.send(*[gate.wait] * 6)
    await trio.testing.wait_all_tasks_blocked()
    gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert loop.tasks > 5
    loop.unmount()
    await trio.testing.wait_all_tasks_blocked()
    assert not loop.tasks


async def test_a_task_that_is_cancelled_or_fails_hands_the_turn_on() -> None:
    lock, entered = Turn(), []

    async def user(name: str, scope: trio.CancelScope) -> None:
        with scope:
            async with lock:
                entered.append(name)
                await trio.sleep_forever()

    scopes = [trio.CancelScope() for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for name, scope in zip("abc", scopes, strict=True):
            nursery.start_soon(user, name, scope)
            await trio.testing.wait_all_tasks_blocked()
        scopes[1].cancel()
        await trio.testing.wait_all_tasks_blocked()
        scopes[0].cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert entered == ["a", "c"]
        scopes[2].cancel()
    assert not lock.taken


async def test_a_handler_is_resumed_with_what_it_waited_for_and_its_failure_comes_out() -> None:
    turn.begin()
    with trio.CancelScope() as scope:

        async def cancelled() -> str:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                return "cleaned up"

        async def failing() -> None:
            await trio.lowlevel.checkpoint()
            raise KeyError("x")

        with pytest.raises(KeyError):
            await keeping_turn(failing())
        send, receive = trio.open_memory_channel[int](1)
        await send.send(7)
        assert await keeping_turn(receive.receive()) == 7
        scope.cancel()
        assert await keeping_turn(cancelled()) == "cleaned up"


def test_every_handler_passes_the_turn_on() -> None:
    handlers = [
        handler
        for name, handler in vars(Operations).items()
        if inspect.iscoroutinefunction(handler) and not name.startswith("_")
    ]
    assert len(handlers) > 20
    for handler in handlers:
        assert hasattr(handler, "__wrapped__"), f"{handler.__name__} lacks @replying"


class Awaited:
    """A pipe that requests would come through, asked for as pyfuse3's main loop asks."""

    def __init__(self) -> None:
        self.out, self.into = os.pipe()

    def send(self) -> None:
        os.write(self.into, b"x")

    def comes_next(self) -> bool:
        return native.request_comes_next(self.out)

    def close(self) -> None:
        os.close(self.out)
        os.close(self.into)


@pytest.fixture
def awaited() -> Iterator[Awaited]:
    awaited = Awaited()
    yield awaited
    awaited.close()


async def comes_next_when_idle(awaited: Awaited) -> bool:
    """Ask, right after trio has waited; again if this process was stopped between the two."""
    with trio.fail_after(300):
        while not awaited.comes_next():
            await trio.sleep(0.001)
    return True


async def test_a_request_that_is_there_needs_no_pass_of_the_scheduler(awaited: Awaited) -> None:
    assert not awaited.comes_next()
    awaited.send()
    assert not awaited.comes_next(), "nobody has said where trio waits"
    with in_place():
        assert await comes_next_when_idle(awaited)
    await trio.sleep(0.001)
    assert not awaited.comes_next()


async def test_nothing_is_waited_for_while_another_task_may_run(awaited: Awaited) -> None:
    awaited.send()
    ran, asked = [], []

    async def other() -> None:
        ran.append(True)

    with in_place():
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                assert await comes_next_when_idle(awaited)
                ran.clear()
                nursery.start_soon(other)
                asked.append(awaited.comes_next() and not ran)
                await trio.lowlevel.checkpoint()
                await trio.sleep(0.001)
    assert not any(asked)


async def test_nothing_is_waited_for_while_trio_has_something_to_hear(awaited: Awaited) -> None:
    awaited.send()
    one, other = socket.socketpair()

    async def hear() -> None:
        await trio.lowlevel.wait_readable(other)

    with one, other, in_place():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hear)
            assert await comes_next_when_idle(awaited)
            one.send(b"x")
            assert not awaited.comes_next()


async def test_trio_gets_its_turn_however_many_requests_there_are(awaited: Awaited) -> None:
    awaited.send()
    with in_place(), trio.fail_after(300):
        assert await comes_next_when_idle(awaited)
        while awaited.comes_next():
            pass


async def test_a_wait_for_a_request_ends_when_it_comes_and_can_be_cancelled(
    awaited: Awaited,
) -> None:
    with in_place(), trio.fail_after(300):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Lowlevel().wait_readable, awaited.out)
            await trio.testing.wait_all_tasks_blocked()
            awaited.send()
        os.read(awaited.out, 1)
        with trio.move_on_after(0.01) as scope:
            await Lowlevel().wait_readable(awaited.out)
        assert scope.cancelled_caught


async def test_it_is_known_where_trio_waits() -> None:
    assert _epoll() >= 0, "this trio hides it: requests cost a pass of the scheduler each"
