"""Who uses a cached lock, who waits for it, and what travels with it from holder to holder."""

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Protocol

import trio

from clusterfs.fs import asking
from clusterfs.fs.ports import NO_FLAGS, Flags
from dlm.modes import Mode

GiveUp = Callable[[Mode], Awaitable[None]]


class Contents(Protocol):
    """What the lock protects, as far as it travels with the lock."""

    def value_block(self) -> bytes | None:
        """Return what the next holder may take over; None: nothing that is sure."""
        ...

    def take_over(self, block: bytes) -> None:
        """Believe what the last holder left."""
        ...

    def void(self) -> None:
        """Forget it: the lock is gone."""
        ...


def leave(contents: Contents | None, level: Mode, target: Mode) -> tuple[bytes | None, Flags]:
    """Return what the next holder gets when `level` is given up, and forget what goes with it."""
    if contents is None:
        return None, NO_FLAGS
    block = contents.value_block() if level is Mode.EX else None
    doubtful = level is Mode.EX and block is None
    if target is Mode.NL:
        contents.void()
    return block, Flags.IVVALBLK if doubtful else NO_FLAGS


class Waiter:
    """Somebody who waits for a cached lock."""

    __slots__ = ("asker", "event", "exclusive", "level", "lost", "served", "since_s")

    def __init__(self, level: Mode, *, exclusive: bool) -> None:
        self.asker = asking.current()
        self.since_s = trio.current_time()
        self.level = level
        self.exclusive = exclusive
        self.event = trio.Event()
        self.served = False
        self.lost = False

    def serve(self, users: int) -> int:
        """Let it use the lock beside so many users; return how many there are then."""
        self.served = True
        self.event.set()
        return -1 if self.exclusive else users + 1


class Used(Protocol):
    """A lock that may be used."""

    def enter_use(self) -> asking.Asker | None:
        """Note who uses the lock from now on."""
        ...

    def leave_use(self, asker: asking.Asker | None) -> None:
        """End what `enter_use` began."""
        ...

    def release(self) -> None:
        """End one use."""
        ...


class Use:
    """A context in which a lock is used."""

    __slots__ = ("_asker", "_enter", "_lock")

    def __init__(self, lock: Used, enter: Callable[[], Awaitable[None]]) -> None:
        self._lock = lock
        self._enter = enter
        self._asker: asking.Asker | None = None

    async def __aenter__(self) -> None:
        await self._enter()
        self._asker = self._lock.enter_use()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.leave_use(self._asker)
        self._lock.release()
