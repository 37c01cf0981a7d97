"""One queue per sender: its messages are served in order, and mostly at once.

A message that cannot be served yet (a newer view, a closed gate, no room in memory) waits, and
those behind it wait too; only then does the sender have a task. A message that can be served at
once costs none.

Invariant: what one sender sent is attempted in the order of arrival, each again until served.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

from clusterfs.volume.site import Spawn

T = TypeVar("T")

# Serves an item and returns None, or returns what to wait for before the next attempt.
Attempt = Callable[[T], Callable[[], Awaitable[None]] | None]


class Lane(Generic[T]):
    """The unserved messages of one sender."""

    def __init__(self, spawn: Spawn, attempt: Attempt[T]) -> None:
        self._spawn = spawn
        self._attempt = attempt
        self._queue: deque[T] = deque()
        self._scope: trio.CancelScope | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, item: T) -> None:
        """Serve the item now if nothing is before it; else in its turn."""
        if self._queue:
            self._queue.append(item)
        elif (obstacle := self._attempt(item)) is not None:
            self._queue.append(item)
            self._spawn(self._drain, obstacle)

    def close(self) -> None:
        """Forget what waits: its sender, or this node, is out."""
        self._closed = True
        self._queue.clear()
        if self._scope is not None:
            self._scope.cancel()

    async def _drain(self, obstacle: Callable[[], Awaitable[None]]) -> None:
        with trio.CancelScope() as self._scope:
            await obstacle()
            while self._queue and not self._closed:
                waiting = self._attempt(self._queue[0])
                if waiting is None:
                    self._queue.popleft()
                else:
                    await waiting()
