"""Whom a task works for: the system call that uses and awaits locks; and whether it wants to still.

The mount says so at the start of each request (`begin`); what the request starts inherits it, so
that people can see who holds up whom.

A program that is asked to end while its request waits does not want the answer any more. The mount
says so (`Asker.interrupt`); the request ends with Interrupted when it waits `interruptibly`, now or
later. Once it is `changing` something its answer must be true, so it is not interrupted any more,
unless the program is dying and nobody will see the answer.

Invariants: only the request's own task is interrupted, never one that it started; writeback, which
is everybody's, never is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count

import trio

from clusterfs.errors import Interrupted

_numbers = count(1)


class Asker:
    """One system call, or one of the daemon's own tasks."""

    __slots__ = ("_dying", "_task", "_unwanted", "_wait", "changing", "number", "operation", "pid")

    def __init__(self, operation: str, pid: int = 0) -> None:
        self.number = next(_numbers)  # unique in this process
        self.operation = operation
        self.pid = pid  # 0: not known, or the daemon itself
        self.changing = False
        self._task: trio.lowlevel.Task | None = None  # the one that may be interrupted
        self._unwanted = self._dying = False
        self._wait: trio.CancelScope | None = None  # that may end early

    def __repr__(self) -> str:
        return f"<Asker {self.number} {self}>"

    def __str__(self) -> str:
        """Return "PID OPERATION", the form that owners of locks have in dumps."""
        return f"{self.pid} {self.operation}"

    def work_here(self) -> None:
        """Be interrupted in this task, and in no other."""
        self._task = trio.lowlevel.current_task()

    def works_here(self) -> bool:
        """Tell whether this is the task that may be interrupted."""
        return self._task is trio.lowlevel.current_task()

    @property
    def may_be_asked_anew(self) -> bool:
        """Whether it waits, and has changed nothing: nobody would notice if it started again."""
        return self._wait is not None and not self.changing

    def interrupt(self, *, dying: bool) -> None:
        """End the request as soon as it may; `dying`: its program will not see the answer."""
        self._unwanted = True
        self._dying |= dying
        if self._wait is not None and self._may_end():
            self._wait.cancel()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let `interrupt` end what is inside. Raises Interrupted."""
        with trio.CancelScope() as scope:
            self._wait = scope
            if self._may_end():
                scope.cancel()
            try:
                yield
            finally:
                self._wait = None
        if scope.cancelled_caught:
            raise Interrupted(f"{self}: interrupted by a signal")

    def _may_end(self) -> bool:
        return self._dying or (self._unwanted and not self.changing)


_current: ContextVar[Asker | None] = ContextVar("asker", default=None)


def begin(operation: str, pid: int = 0) -> Asker:
    """Work for this system call from now on, in this task and those that it starts."""
    asker = Asker(operation, pid)
    asker.work_here()
    _current.set(asker)
    return asker


def current() -> Asker | None:
    """Return whom this task works for, if anybody said so."""
    return _current.get()


def changing() -> None:
    """Say that this request changes something from now on: its answer must be true."""
    asker = _current.get()
    if asker is not None and asker.works_here():
        asker.changing = True


@contextmanager
def interruptibly() -> Iterator[None]:
    """Let a signal to the program that asked end the wait inside. Raises Interrupted."""
    asker = _current.get()
    if asker is None or not asker.works_here():
        yield
        return
    with asker.waiting():
        yield


def label(asker: Asker | None) -> str:
    """Return how the owner of a lock that is asked for by `asker` looks in dumps."""
    return "" if asker is None else str(asker)
