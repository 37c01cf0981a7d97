"""A mutual exclusion that costs no pass of the scheduler while nobody competes for it.

`async with turns:` enters at once if it is free, without a checkpoint, and else waits in line.
(trio.Lock lets every other task run first, which each transaction would pay for.)

Invariant: whoever leaves hands over to the first in line, so nobody overtakes.
"""

from collections import deque
from types import TracebackType

import trio


class Turns:
    """One user at a time, in the order in which they came."""

    __slots__ = ("_line", "_taken")

    def __init__(self) -> None:
        self._taken = False
        self._line: deque[trio.Event] = deque()

    def locked(self) -> bool:
        """Tell whether somebody has it."""
        return self._taken

    async def acquire(self) -> None:
        """Wait for it."""
        if not self._taken:
            self._taken = True
            return
        turn = trio.Event()
        self._line.append(turn)
        try:
            await turn.wait()
        except trio.Cancelled:
            self._line.remove(turn)  # it is not ours: a wait that was served is not cancelled
            raise

    def release(self) -> None:
        """Hand it over to who waits longest."""
        assert self._taken
        if self._line:
            self._line.popleft().set()
        else:
            self._taken = False

    async def __aenter__(self) -> None:
        if self._taken:
            await self.acquire()
        else:
            self._taken = True

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
