"""What the shell keeps with each lock: whom to tell, who waits for it, and how that ended."""

from collections.abc import Callable

import trio

from dlm.errors import DeadlockVictim, LockCancelled, LockLost, WouldBlock
from dlm.events import Lock
from dlm.messages import Status
from dlm.modes import Mode

Blocking = Callable[[Lock, Mode], None]

_FAILURES = {
    Status.WOULD_BLOCK: WouldBlock,
    Status.DEADLOCK: DeadlockVictim,
    Status.CANCELLED: LockCancelled,
    Status.LOST: LockLost,
}


class Use:
    """One lock's user."""

    __slots__ = ("abandoned", "blocking", "status", "waiting")

    def __init__(self, blocking: Blocking | None) -> None:
        self.blocking = blocking
        self.status: Status | None = None  # how the operation under way ended
        self.waiting: trio.lowlevel.Task | None = None  # for that
        self.abandoned = False  # nobody wants the lock that was asked for

    async def finish(self, lock: Lock, *, shield: bool = False) -> None:
        """Wait until the operation under way has ended; raises what it failed with.

        shield: the wait cannot be cancelled, at less cost than a scope's.
        """
        if self.status is None:
            assert self.waiting is None, "one waits for a lock"
            self.waiting = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(_never if shield else self._abort)
        assert self.status is not None
        failure = _FAILURES.get(self.status)
        if failure is not None:
            raise failure(lock.deadlock or repr(lock))

    def ended(self, status: Status) -> None:
        """Let whoever waits go on."""
        self.status = status
        if self.waiting is not None:
            task, self.waiting = self.waiting, None
            trio.lowlevel.reschedule(task)

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self.waiting = None
        return trio.lowlevel.Abort.SUCCEEDED

    def notify(self, lock: Lock, mode: Mode) -> None:
        """Say that the lock keeps somebody from `mode`, if that is so and anybody wants to hear."""
        if self.blocking is None or self.abandoned:
            return
        if lock.granted is not None and not lock.granted.compatible(mode):
            self.blocking(lock, mode)


def _never(_: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED
