"""Who receives the next request: the task that just did, unless its request has to wait.

pyfuse3's tasks take turns at /dev/fuse with a trio.Lock, so after each request another task is
woken to wait for the next one, which costs a pass of the scheduler. Here the turn stays with the
task until its handler suspends for the first time (`keeping_turn`); most requests never do. What
pyfuse3 finds under the name `trio` is `Trio`, as with its own `pyfuse3.asyncio`.

Invariants:
  * receiving never stops: while nobody has the turn, either nobody waits for it, or the task that
    had it last is between receiving a request and its first suspension;
  * a task that ends instead hands the turn on: because more than SPARE_TASKS wait for it (pyfuse3
    ends such tasks), because waiting failed, or because the session is over.
"""

import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any, TypeVar

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


class Trio:
    """The module trio with our lock in it."""

    Lock = turn.begin

    def __getattr__(self, name: str) -> Any:
        """Return what trio has."""
        return getattr(trio, name)


def use() -> None:
    """Let pyfuse3's tasks share `turn`; before its main loop runs."""
    pyfuse3.trio = Trio()  # type: ignore[attr-defined]


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
