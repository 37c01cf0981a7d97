"""The requests that are under way, by the kernel's number, and which are not wanted any more.

The kernel interrupts a request when its thread has any signal pending, once; it goes on to wait for
the answer. What EINTR would break is spared: a program that only gets SIGCHLD or a timer's SIGALRM
expects a file system never to answer EINTR. So a request ends early only if its thread is about to
die, or has a signal that asks programs to end (SIGINT, SIGTERM, SIGHUP, SIGQUIT) although it
handles it. A wait for a file lock ends at any signal, as it does elsewhere. /proc tells; since
there is no second notice, it is asked again until the request ends.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import Signals
from typing import Final, NamedTuple

import trio

from clusterfs.fs import asking
from clusterfs.fuse.binding import native

_LOOK_S = 0.1
_ANY_SIGNAL = ("setlkw", "flockw")  # waits that programs expect to end
_UNMET = 256  # interrupts that came before their requests were begun


class Requests:
    """Which requests are under way, for whom."""

    def __init__(self) -> None:
        self._running: dict[int, asking.Asker] = {}
        self._signalled: dict[int, asking.Asker] = {}
        self._unmet: dict[int, None] = {}
        self._news = trio.Event()
        self.interrupts = 0

    def begin(self, operation: str, whose: tuple[int, int] | None = None) -> int:
        """Note a request of (number, pid), the one just received; returns the number, for `end`."""
        number, pid = whose or (native.current_request(), native.current_pid())
        self._running[number] = asking.begin(operation, pid)
        if number in self._unmet:
            self.interrupted(number)
        return number

    def end(self, number: int) -> None:
        """Note that a request is answered."""
        self._running.pop(number, None)
        self._signalled.pop(number, None)

    @contextmanager
    def under_way(self, operation: str) -> Iterator[None]:
        """Note the request that was just received while it is worked on."""
        number = self.begin(operation)
        try:
            yield
        finally:
            self.end(number)

    async def run(self) -> None:
        """Hear of interrupts for ever."""
        native.call_on_interrupt(self.interrupted)
        while True:
            await self._news.wait()
            while self._signalled:
                await trio.sleep(_LOOK_S)
                for number in list(self._signalled):
                    self._look(number)
            self._news = trio.Event()

    def interrupted(self, number: int) -> None:
        """Hear that the thread of a request has a signal pending."""
        self._unmet.pop(number, None)
        asker = self._running.get(number)
        if asker is None:  # its task has not run yet, or it is answered
            self._unmet[number] = None
            if len(self._unmet) > _UNMET:
                del self._unmet[next(iter(self._unmet))]
        else:
            self.interrupts += 1
            self._signalled[number] = asker
            self._look(number)
            self._news.set()

    def _look(self, number: int) -> None:
        asker = self._signalled.get(number)
        if asker is not None:
            signals = pending(asker.pid)
            if signals.dying or signals.asked_to_end or asker.operation in _ANY_SIGNAL:
                asker.interrupt(dying=signals.dying)


class Pending(NamedTuple):
    """What the signals that wait for a thread mean to it."""

    dying: bool = False
    asked_to_end: bool = False


def pending(thread: int, proc: Path = Path("/proc")) -> Pending:
    """Tell what signals a thread has; 0, or a thread of another pid namespace: none."""
    if not thread:
        return Pending()
    try:
        text = (proc / str(thread) / "status").read_text("ascii", "replace")
    except OSError:
        return Pending()
    masks = {
        key: int(value, 16)
        for key, _, value in (line.partition(":") for line in text.splitlines())
        if key in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")
    }
    if len(masks) < 5:  # noqa: PLR2004  (those above)
        return Pending()
    waiting = (masks["SigPnd"] | masks["ShdPnd"]) & ~masks["SigBlk"] & ~masks["SigIgn"]
    dying = waiting & ~masks["SigCgt"] & ~_HARMLESS
    return Pending(bool(dying), bool(waiting & masks["SigCgt"] & _ENDING))


def _mask(*signals: Signals) -> int:
    return sum(1 << signal - 1 for signal in signals)


# What ends no process by default: it is ignored, stops it, or lets it go on.
_HARMLESS: Final = _mask(
    *(Signals.SIGCHLD, Signals.SIGCONT, Signals.SIGURG, Signals.SIGWINCH),
    *(Signals.SIGSTOP, Signals.SIGTSTP, Signals.SIGTTIN, Signals.SIGTTOU),
)
_ENDING: Final = _mask(Signals.SIGINT, Signals.SIGTERM, Signals.SIGHUP, Signals.SIGQUIT)

requests: Final = Requests()  # of the one session that a process has
