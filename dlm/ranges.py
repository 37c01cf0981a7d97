"""The trio shell of ranges: awaitable requests for bytes. Nothing is decided here.

What ends early is withdrawn, but the keeper has the last word: `finish` may be called again after
`cancel`, and returns normally if the grant was faster.
"""

from collections.abc import Callable, Sequence

import trio

from dlm.core.range_table import Span
from dlm.core.range_user import RangeUser
from dlm.errors import DeadlockVictim, LockCancelled, LockLost, WouldBlock
from dlm.events import (
    AskRange,
    AskWitnesses,
    CancelRange,
    Event,
    FreeRange,
    GiveBack,
    Hearing,
    Name,
    Party,
    RangeRequest,
)
from dlm.range_messages import Held, How, Verdict

__all__ = ["TO_THE_END", "Held", "How", "Name", "Party", "RangeRequest", "Ranges", "Span"]

TO_THE_END = 2**63 - 1  # the last byte that there may be

_FAILURES = {
    Verdict.DEADLOCK: DeadlockVictim,
    Verdict.CANCELLED: LockCancelled,
    Verdict.LOST: LockLost,
}


class Ranges:
    """The ranges of one lockspace's node."""

    def __init__(self, core: RangeUser, handle: Callable[[Event], None]) -> None:
        self._core = core
        self._handle = handle
        self.awaited: trio.Event | None = None  # somebody waits until others may have it

    def ask(self, party: Party, span: Span, how: How) -> RangeRequest:
        """Begin to ask for a range, see `finish`; no message if this node is its only user."""
        done = trio.Event()
        request = RangeRequest(party, *span, how, context=done)
        self._handle(AskRange(request))
        return request

    async def finish(self, request: RangeRequest) -> None:
        """Wait until a request is decided; for TEST, `request.conflict` then says how.

        Raises:
            WouldBlock: it is not free, and was not to be waited for; `request.conflict` says why.
            DeadlockVictim: its transaction waits for itself in a circle, and is to give way.
            LockCancelled: `cancel` was called.
            LockLost: this node was removed.
        """
        assert isinstance(request.context, trio.Event)
        if request.verdict is None:
            await request.context.wait()
        verdict = request.verdict
        assert verdict is not None
        if verdict is Verdict.WOULD_BLOCK and request.how is How.TRY:
            raise WouldBlock(repr(request))
        failure = _FAILURES.get(verdict)
        if failure is not None:
            raise failure(request.story or repr(request))

    def cancel(self, request: RangeRequest) -> None:
        """Let a request that still waits end with LockCancelled."""
        self._handle(CancelRange(request))

    def free_nowait(self, party: Party, start: int = 0, last: int = TO_THE_END) -> None:
        """Hold nothing there any more, at once and for certain."""
        self._handle(FreeRange(party, start, last))

    async def freed(self, name: Name) -> None:
        """Wait until other nodes may have whatever was freed here."""
        while self._core.awaits(name):
            if self.awaited is None:
                self.awaited = trio.Event()
            await self.awaited.wait()

    async def stand(self, parties: Sequence[Party], since: int) -> Hearing:
        """Ask whether others had what these parties hold again, after lock epoch `since`.

        That is the last one this node knew when it held it before. Raises LockLost.
        """
        done = trio.Event()
        hearing = Hearing(parties, since, done)
        self._handle(AskWitnesses(hearing))
        await done.wait()
        if hearing.lost:
            raise LockLost
        return hearing

    def heard(self, hearing: Hearing) -> None:
        """Let whoever waits for a hearing go on."""
        assert isinstance(hearing.context, trio.Event)
        hearing.context.set()

    def held(self, party: Party) -> list[Span]:
        """Return what a party holds, in order."""
        return self._core.held(party)

    def give_back(self, name: Name) -> None:
        """Return a table that is of no use here, if it is lent to us and empty."""
        if name in self._core.used:
            self._handle(GiveBack(name))

    def answered(self, request: RangeRequest) -> None:
        """Let whoever waits for a request see its verdict."""
        assert isinstance(request.context, trio.Event)
        request.context.set()

    def acknowledged(self) -> None:
        """Let those who wait for others to hear of something look again."""
        if self.awaited is not None:
            self.awaited.set()
            self.awaited = None
