"""Messages on their way out: all that one transition says to a peer goes in one batch.

What nobody waits for may be told later: in the same batch as what is said next, or when all those
who were ready to run have had their turn. So is what follows closely on something that was told at
once, with nothing heard between: many want something in one pass of the scheduler.
"""

from collections import Counter
from collections.abc import Callable

import trio

from dlm.messages import Message, encode_all

_BATCH = 500  # messages in one frame
_ALONE_S = 0.0001  # what comes so long after something that was told at once is alone
_LONG_AGO = float("-inf")


class Outbox:
    """What is to be sent when the transition is done."""

    def __init__(self, send: Callable[[int, bytes], None], now: Callable[[], float]) -> None:
        self._send = send
        self._now = now  # seconds
        self._waiting: dict[int, list[Message]] = {}  # by peer
        self.said: Counter[type[Message]] = Counter()
        self.batches = 0
        self._gathering = 0  # `with` blocks
        self._told_s = _LONG_AGO  # when something was told at once, unless we heard something since
        self._running = False
        self._idle: trio.lowlevel.Task | None = None  # `run`, while it waits for `send_soon`

    def put(self, node: int, message: Message) -> None:
        """Let a message go with the next batch to that node."""
        self.said[type(message)] += 1
        if node in self._waiting:
            self._waiting[node].append(message)
        else:
            self._waiting[node] = [message]

    def __enter__(self) -> None:
        """Gather what several transitions say, until the outermost `with` ends."""
        self._gathering += 1

    def __exit__(self, *_: object) -> None:
        """Send it."""
        self._gathering -= 1
        if not self._gathering:
            self._told_s = _LONG_AGO
            self.send()

    def close(self, *, soon: bool = False) -> None:
        """Let everything go now that the transition is done; or `soon`, see `send_soon`."""
        if self._gathering or not self._waiting:
            return
        if not soon:
            now_s = self._now()
            soon = now_s - self._told_s < _ALONE_S
            self._told_s = now_s
        if soon:
            self.send_soon()
        else:
            self.send()

    def send(self) -> None:
        """Send everything."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, {}
        for node, messages in waiting.items():
            for first in range(0, len(messages), _BATCH):
                self.batches += 1
                self._send(node, encode_all(messages[first : first + _BATCH]))

    def send_soon(self) -> None:
        """Send everything when whoever goes on now has gone on, or with what that says."""
        if not self._running:
            self.send()
        elif self._idle is not None and self._waiting:
            task, self._idle = self._idle, None
            trio.lowlevel.reschedule(task)

    async def run(self) -> None:
        """Send what was put off, until cancelled; without this task nothing is."""
        self._running = True
        try:
            while True:
                self._idle = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._woken)
                if self._waiting:  # else it has gone with what was said since
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    self.send()
        finally:
            self._running = False
            self.send()

    def _woken(self, _: object) -> trio.lowlevel.Abort:
        self._idle = None
        return trio.lowlevel.Abort.SUCCEEDED
