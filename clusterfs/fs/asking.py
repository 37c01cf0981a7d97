"""Whom a task works for: the system call that uses and awaits locks, so that people can see it.

The mount says so at the start of each request (`begin`); what the request starts inherits it. It
decides nothing: without it everything works the same, and dumps say less.
"""

from contextvars import ContextVar
from itertools import count

_numbers = count(1)


class Asker:
    """One system call, or one of the daemon's own tasks."""

    __slots__ = ("number", "operation", "pid")

    def __init__(self, operation: str, pid: int = 0) -> None:
        self.number = next(_numbers)  # unique in this process
        self.operation = operation
        self.pid = pid  # 0: not known, or the daemon itself

    def __repr__(self) -> str:
        return f"<Asker {self.number} {self}>"

    def __str__(self) -> str:
        """Return "PID OPERATION", the form that owners of locks have in dumps."""
        return f"{self.pid} {self.operation}"


_current: ContextVar[Asker | None] = ContextVar("asker", default=None)


def begin(operation: str, pid: int = 0) -> None:
    """Work for this system call from now on, in this task and those that it starts."""
    _current.set(Asker(operation, pid))


def current() -> Asker | None:
    """Return whom this task works for, if anybody said so."""
    return _current.get()
