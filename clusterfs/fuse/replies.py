"""Exception to errno, once for the whole filesystem: pyfuse3 survives only FUSEError.

An expected failure becomes its errno; the log says why, if that is EIO. A bug becomes a logged EIO:
any other exception would end the main loop, and with it the mount. LockBusy is one: two operations
on one lock at once are no state that a program may be told to wait for.

Whoever looks at locks is told which request this is, and whose; and a request whose program was
told to end may be interrupted.
"""

import errno
import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import structlog

from clusterfs.errors import FilesystemError
from clusterfs.fuse.binding import native, pyfuse3
from clusterfs.fuse.receiving import keeping_turn
from clusterfs.fuse.requests import requests
from dlm.errors import LockBusy, LockError

log = structlog.get_logger()

_SAY_THEMSELVES = ("read", "write")  # and only if they have to wait

Self = TypeVar("Self")
Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")


def replying(
    handler: Callable[Concatenate[Self, Parameters], Coroutine[Any, Any, Answer]],
) -> Callable[Concatenate[Self, Parameters], Coroutine[Any, Any, Answer]]:
    """Make a handler of requests raise nothing but FUSEError."""
    operation = handler.__name__
    told = operation not in _SAY_THEMSELVES

    @functools.wraps(handler)
    async def replied(self: Self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Answer:
        number = requests.begin(operation) if told else None
        try:
            return await keeping_turn(handler(self, *args, **kwargs))
        except pyfuse3.FUSEError:
            raise
        except Exception as failure:
            raise pyfuse3.FUSEError(errno_of(failure, operation, args)) from failure
        finally:
            if number is not None:
                requests.end(number)

    return cast("Callable[Concatenate[Self, Parameters], Coroutine[Any, Any, Answer]]", replied)


def answering(
    handler: Callable[..., Awaitable[None]], operation: str
) -> Callable[..., Coroutine[Any, Any, None]]:
    """Make a handler that answers a native request itself answer with an errno if it raises."""

    async def answered(whose: tuple[int, int], request: native.Request, *arguments: Any) -> None:
        number = requests.begin(operation, whose)
        try:
            await handler(request, *arguments)
        except Exception as failure:
            request.error(errno_of(failure, operation, arguments))
        finally:
            requests.end(number)

    return answered


def errno_of(failure: BaseException, operation: str, arguments: tuple[Any, ...]) -> int:
    """Return what the system call returns; logs what nobody expected."""
    expected = _expected_errno(failure)
    if expected is not None and expected != errno.EIO:
        return expected
    subject = arguments[0] if arguments and isinstance(arguments[0], int) else None
    if expected is not None:
        reason = f"{type(failure).__name__}: {failure}"
        log.warning("answered EIO", operation=operation, subject=subject, reason=reason)
        return expected
    log.error("request failed", operation=operation, subject=subject, exc_info=failure)
    return errno.EIO


def _expected_errno(failure: BaseException) -> int | None:
    """Return the errno of an expected failure; of a nursery's group, what all in it agree on."""
    if isinstance(failure, LockBusy):
        return None
    if isinstance(failure, FilesystemError | LockError):
        return failure.errno
    if isinstance(failure, BaseExceptionGroup):
        inside = {_expected_errno(member) for member in failure.exceptions}
        return inside.pop() if len(inside) == 1 else None
    return None
