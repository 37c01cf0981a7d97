"""Who receives the next request: the task that just did, unless its request has to wait.

pyfuse3's tasks take turns at /dev/fuse with a trio.Lock, so after each request another task is
woken to wait for the next one, which costs a pass of the scheduler. Here the turn stays with the
task until its handler suspends for the first time (`keeping_turn`); most requests never do. What
pyfuse3 finds under the name `trio` is `Trio`, as with its own `pyfuse3.asyncio`.

And while trio has nothing to do but wait, the next request is waited for without it (_at_once.c).

Invariants:
  * receiving never stops: while nobody has the turn, either nobody waits for it, or the task that
    had it last is between receiving a request and its first suspension;
  * a task that ends instead hands the turn on: because more than SPARE_TASKS wait for it (pyfuse3
    ends such tasks), because waiting failed, or because the session is over.
"""

import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar, cast

import trio

from clusterfs.fuse.binding import native, pyfuse3

SPARE_TASKS = 8  # idle tasks kept, so that a burst need not make new ones

Answer = TypeVar("Answer")


class Turn:
    """A lock that stays with whoever comes back for it at once."""

    def __init__(self) -> None:
        self.taken = False
        self._over = False
        self._waiting: deque[trio.lowlevel.Task] = deque()

    def begin(self) -> "Turn":
        """Be the lock of a new main loop."""
        self.taken = self._over = False
        self._waiting.clear()
        native.call_at_end(self.end)
        return self

    def end(self) -> None:
        """The session is over: every task is to see that."""
        self._over = True
        self.pass_on()

    def pass_on(self) -> None:
        """Let the next task receive, unless one does."""
        if self._waiting and not self.taken:
            self.taken = True
            trio.lowlevel.reschedule(self._waiting.popleft())

    async def __aenter__(self) -> None:
        if not self.taken:
            self.taken = True
            return
        task = trio.lowlevel.current_task()
        self._waiting.append(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.taken = False
        if kind is not None or self._over or len(self._waiting) > SPARE_TASKS:
            self.pass_on()


turn = Turn()


async def _wait_readable(descriptor: int) -> None:
    if not native.request_comes_next(descriptor):
        await trio.lowlevel.wait_readable(descriptor)


class Lowlevel:
    """The module trio.lowlevel, but a request that comes soon is waited for without a pass."""

    wait_readable = staticmethod(_wait_readable)

    def __getattr__(self, name: str) -> Any:
        """Return what trio.lowlevel has."""
        return getattr(trio.lowlevel, name)


class Trio:
    """The module trio with our lock in it."""

    Lock = turn.begin
    lowlevel = Lowlevel()

    def __getattr__(self, name: str) -> Any:
        """Return what trio has."""
        return getattr(trio, name)


class Watch:
    """A trio.abc.Instrument: tells the native extension whether trio has anything else to do."""

    task_scheduled = staticmethod(native.task_scheduled)
    before_task_step = staticmethod(native.task_steps)
    before_io_wait = staticmethod(native.scheduler_waits)
    after_io_wait = staticmethod(native.scheduler_waited)


@contextmanager
def in_place() -> Iterator[None]:
    """Let pyfuse3's tasks share `turn`, and wait for requests between trio's passes, in here."""
    pyfuse3.trio = Trio()  # type: ignore[attr-defined]
    watch = cast("trio.abc.Instrument", Watch())
    trio.lowlevel.add_instrument(watch)
    native.wait_beside(_epoll())
    try:
        yield
    finally:
        native.wait_beside(-1)
        with suppress(KeyError):  # it is gone if it raised anything
            trio.lowlevel.remove_instrument(watch)


def _epoll() -> int:
    """Return the descriptor at which trio waits for all others, -1 if this trio hides it."""
    runner = getattr(trio._core._run.GLOBAL_RUN_CONTEXT, "runner", None)  # noqa: SLF001  nothing public tells
    epoll = getattr(getattr(runner, "io_manager", None), "_epoll", None)
    return -1 if epoll is None else int(epoll.fileno())


@types.coroutine
def keeping_turn(handler: Coroutine[Any, Any, Answer]) -> Generator[Any, Any, Answer]:
    """Await a handler; the turn goes on at its first suspension."""
    try:
        trap = handler.send(None)
    except StopIteration as done:
        answer: Answer = done.value
        return answer
    turn.pass_on()
    return (yield from _rest(handler, trap))


def _rest(handler: Coroutine[Any, Any, Answer], trap: Any) -> Generator[Any, Any, Answer]:
    """Do what `yield from` does with a coroutine that was begun already."""
    while True:
        try:
            value = yield trap
        except BaseException as error:  # noqa: BLE001  passed on, whatever it is
            resume: Callable[[], Any] = partial(handler.throw, error)
        else:
            resume = partial(handler.send, value)
        try:
            trap = resume()
        except StopIteration as done:
            answer: Answer = done.value
            return answer
