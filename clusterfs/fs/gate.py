"""The one gate that every operation passes: open while this node is a member and its lease holds.

While the node is out, operations stall here (or fail, with on_lost=eio). An operation that was
under way when its locks were lost ends with LockLost inside and is run again from the start after
readmission, so callers never see it. What must not happen twice (create, rename, ...) carries an
Attempt: the second run asks the replicas whether the first one's transaction took place after all.
If none of them remembers, it looks at what there is.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from itertools import count
from typing import Protocol, TypeVar

import trio

from clusterfs.errors import Unavailable
from clusterfs.fs import asking
from clusterfs.fs.quota_ledger import Amount
from clusterfs.volume.departed import Sent
from dlm.errors import LockLost

_RETRY_S = 0.02

Result = TypeVar("Result")


class Attempt:
    """What one request has tried so far: its outcome may be unknown after the node was lost."""

    __slots__ = ("done", "inode", "sent", "tried")

    def __init__(self) -> None:
        self.tried = False  # a transaction was sent, and may have taken place
        self.done = False  # it has
        self.sent: Sent | None = None  # whose outcome is to be asked for
        self.inode = 0  # the inode that it made, moved or unlinked


class Shared(Protocol):
    """A quota of which a node has a share (quotas.py)."""

    number: int

    def holding(self, amount: Amount) -> AbstractAsyncContextManager[None]:
        """Return a context in which this task may use so much. Raises QuotaExceeded, LockLost."""
        ...


class ShareWanted(Exception):
    """An operation needs more of a quota than this node has; it has changed nothing yet."""

    def __init__(self, quota: Shared, amount: Amount) -> None:
        super().__init__(quota.number, amount)
        self.quota = quota
        self.amount = amount


class Wants:
    """What one operation needs of quotas, as far as it is known."""

    def __init__(self) -> None:
        self._wanted: dict[int, tuple[Shared, Amount]] = {}

    def add(self, wanted: ShareWanted) -> None:
        """Hold as much as was asked for last."""
        self._wanted[wanted.quota.number] = (wanted.quota, wanted.amount)

    async def run(self, operation: Callable[[], Awaitable[Result]]) -> Result:
        """Run an operation with all of it, taken in the order of numbers."""
        async with AsyncExitStack() as stack:
            for _, (quota, amount) in sorted(self._wanted.items(), key=_number):
                await stack.enter_async_context(quota.holding(amount))
            return await operation()


def _number(item: tuple[int, tuple[Shared, Amount]]) -> int:
    return item[0]


class Gate:
    """Open, or stalling. `generation` counts the losses."""

    def __init__(self, lease_left_s: Callable[[], float], *, fail_when_lost: bool = False) -> None:
        self.closed = False
        self.generation = 0
        self.stalled = 0  # operations that wait here now
        self.resting = False  # this process serves nothing new: another one is to go on
        self._running: dict[int, asking.Asker | None] = {}
        self._numbers = count()
        self._lease_left_s = lease_left_s
        self._fail_when_lost = fail_when_lost
        self._opened = trio.Event()
        self._opened.set()

    def passable(self) -> bool:
        """Tell whether an operation may be served this very moment."""
        return not self.closed and not self.resting and self._lease_left_s() > 0

    def busy(self) -> bool:
        """Tell whether an operation runs that cannot just be asked for again in another process."""
        return any(asker is None or not asker.may_be_asked_anew for asker in self._running.values())

    def lease_left_s(self) -> float:
        """Return how long what is cached may still be believed."""
        return self._lease_left_s()

    def close(self) -> None:
        """Stall what comes: this node's locks are void."""
        self.generation += 1
        if not self.closed:
            self.closed = True
            self._opened = trio.Event()

    def open(self) -> None:
        """Let the stalled go on."""
        self.closed = False
        self._opened.set()

    async def run(
        self,
        operation: Callable[[], Awaitable[Result]],
        *,
        rerun: bool = False,
        internal: bool = False,
    ) -> Result:
        """Run an operation inside the gate, again if this node was lost meanwhile.

        `rerun`: the answer may have come from a cache, so it only counts if the lease still holds.
        `internal`: no program waits for it, so it stalls even where programs get errors.
        """
        fails = self._fail_when_lost and not internal
        wants: Wants | None = None
        while True:
            if not self.passable():
                await self._wait(fails=fails)
            generation = self.generation
            number = next(self._numbers)
            if not internal:
                self._running[number] = asking.current()
            try:
                result = await (operation() if wants is None else wants.run(operation))
            except ShareWanted as wanted:
                wants = wants or Wants()
                wants.add(wanted)
                continue
            except (LockLost, Unavailable):
                self._running.pop(number, None)
                await self._wait_lost(generation, fails=fails)
                continue
            finally:
                self._running.pop(number, None)
            if not rerun or self.passable():
                return result

    async def _wait(self, *, fails: bool) -> None:
        self.stalled += 1
        try:
            while not self.passable():
                if fails:
                    raise Unavailable("this node is out of the cluster")
                with asking.interruptibly():
                    if self.closed:
                        await self._opened.wait()
                    else:
                        await trio.sleep(_RETRY_S)
        finally:
            self.stalled -= 1

    async def _wait_lost(self, generation: int, *, fails: bool) -> None:
        """Wait for the loss to be told to us: the locks may hear of it before we do."""
        while self.generation == generation and not fails:
            with asking.interruptibly():
                await trio.sleep(_RETRY_S)
            if self.passable():
                return
        if fails:
            raise Unavailable("this node is out of the cluster")
