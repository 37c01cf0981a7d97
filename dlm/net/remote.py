"""Another node in one incarnation, as the mesh sees it: a session, a live link or none, open calls.

A call is pushed in the pass of the scheduler in which it is begun, and waits for its reply, for as
many connections as that takes. Only when the remote is closed does it fail, with PeerLost.

Invariants: a closed remote has no link, no open call and nothing buffered; a call that waits for
room keeps its place before later calls.
"""

from typing import Final

import outcome
import trio

from dlm.errors import PeerLost
from dlm.net.errors import Refused
from dlm.net.framing import Buffer, Frame, Kind
from dlm.net.handshake import Peer
from dlm.net.link import Link
from dlm.net.session import Session

_Answer = tuple[bytes, bytes]


class Call:
    """A call that was sent; `wait` returns the reply."""

    __slots__ = ("_answer", "_number", "_task", "_withdraw")

    def __init__(self, withdraw: "dict[int, Call]", number: int) -> None:
        self._withdraw = withdraw
        self._number = number
        self._answer: outcome.Outcome[_Answer] | None = None
        self._task: trio.lowlevel.Task | None = None

    async def wait(self) -> _Answer:
        """Return body and payload of the reply.

        Cancelling gives up the answer, not the call: it may run, or have run.

        Raises:
            Refused: as the handler there raised it.
            PeerLost: the peer is no longer listed; the call may or may not have run.
        """
        if self._answer is None:
            assert self._task is None, "one waits for a call"
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abandon)
        assert self._answer is not None
        return self._answer.unwrap()

    def answer(self, answer: outcome.Outcome[_Answer]) -> None:
        """Hand the reply to whoever waits, now or later."""
        self._answer = answer
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)

    def _abandon(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        self._withdraw.pop(self._number, None)
        return trio.lowlevel.Abort.SUCCEEDED


class Remote:
    """One listed peer."""

    def __init__(self, peer: Peer, limits: "Limits") -> None:
        self.peer = peer
        self.session: Final = Session()
        self.link: Link | None = None
        self.closed = False
        self.given_up = ""  # why no connection can help any more, until a new incarnation
        self.attempt = 0  # of the dialer: our latest, or the latest that was let in
        self.dialling = trio.CancelScope()  # of the task that dials, or probes
        self.probing = False
        self.connects = 0
        self.unlinked_ticks = 0  # since there was a link, or since it was listed
        self.drops = 0
        self.refused = 0
        self.last_drop = ""
        self._limits = limits
        self._calls: dict[int, Call] = {}
        self._last_call = 0
        self._turn = trio.StrictFIFOLock()
        self._room: trio.Event | None = None  # somebody waits for room

    def push(  # noqa: PLR0913, PLR0917  the header's fields
        self,
        kind: Kind,
        channel: int,
        code: int,
        call: int,
        epoch: int,
        body: bytes,
        payload: Buffer = b"",
    ) -> None:
        """Send one message, now or when connected again; dropped when closed."""
        if self.closed or self.given_up:
            return
        buffers = self.session.push(kind, channel, code, call, epoch, body, payload)
        if self.session.unacked_bytes > self._limits.hard_bytes:
            self.give_up(f"more than {self._limits.hard_bytes} bytes unacknowledged")
        elif self.link is not None:
            self.link.push(buffers)

    def begin(self, channel: int, epoch: int, body: bytes, payload: Buffer) -> Call:
        """Send a call without waiting for room.

        Raises:
            PeerLost: closed or given up.
        """
        if self.closed or self.given_up:
            raise PeerLost(self.peer.node)
        self._last_call = number = self._last_call + 1
        call = self._calls[number] = Call(self._calls, number)
        self.push(Kind.CALL, channel, 0, number, epoch, body, payload)
        return call

    def has_room(self) -> bool:
        """Whether a further call may be sent now, without overtaking one that waits."""
        return (
            self.session.unacked_bytes < self._limits.room_bytes
            and len(self._calls) < self._limits.calls
            and not self._turn.locked()
        )

    async def turn(self) -> trio.StrictFIFOLock:
        """Wait until a call may be sent; the caller sends it, then releases the lock returned."""
        await self._turn.acquire()
        try:
            await self.wait_room()
        except BaseException:
            self._turn.release()
            raise
        return self._turn

    async def wait_room(self) -> None:
        """Wait until there is room, or the remote is closed."""
        limits = self._limits
        while not (self.closed or self.given_up) and (
            self.session.unacked_bytes >= limits.room_bytes or len(self._calls) >= limits.calls
        ):
            await self._wait()

    def crowded(self) -> bool:
        """Whether a bulky reply had better wait for acknowledgements."""
        return self.session.unacked_bytes >= self._limits.room_bytes

    async def wait_acknowledged(self) -> None:
        """Wait until bulk may be sent, whatever the number of calls; at once when closed."""
        while self.crowded() and not (self.closed or self.given_up):
            await self._wait()

    async def _wait(self) -> None:
        if self._room is None:
            self._room = trio.Event()
        await self._room.wait()

    def announce_room(self) -> None:
        """Wake those who wait for room; called after each batch of incoming frames."""
        if self._room is not None:
            self._room.set()
            self._room = None

    def answered(self, frame: Frame) -> None:
        """Hand a reply to its caller; a caller that was cancelled does not mind."""
        call = self._calls.pop(frame.call, None)
        if call is None:
            return
        if frame.kind == Kind.REPLY:
            call.answer(outcome.Value((frame.body, frame.payload)))
        else:
            call.answer(outcome.Error(Refused(frame.code, frame.body)))

    def close(self, reason: str) -> None:
        """End it: calls in flight fail, what is buffered is dropped."""
        self.closed = True
        self.dialling.cancel()
        self._abandon(reason)

    def give_up(self, reason: str) -> None:
        """Note that the session cannot go on, although the peer is still listed."""
        self.given_up = reason
        self.dialling.cancel()
        self._abandon(reason)

    def statistics(self) -> dict[str, object]:
        """Return numbers for tools; the sums are over all connections."""
        session = self.session
        return {
            "incarnation": self.peer.incarnation,
            "address": self.peer.address,
            "connected": self.link is not None,
            "connects": self.connects,
            "drops": self.drops,
            "last_drop": self.last_drop,
            "refused": self.refused,
            "given_up": self.given_up,
            "sent": session.sent,
            "received": session.received,
            "resent": session.resent,
            "duplicates": session.duplicates,
            "unacked": session.sent - session.acked,
            "unacked_bytes": session.unacked_bytes,
            "calls": len(self._calls),
        }

    def _abandon(self, reason: str) -> None:
        if self.link is not None:
            self.link.kill(reason)
        self.session.clear()
        calls = list(self._calls.values())
        self._calls.clear()
        for call in calls:
            call.answer(outcome.Error(PeerLost(self.peer.node, reason)))
        self.announce_room()


class Limits:
    """How much may pile up for one peer."""

    def __init__(
        self, room_bytes: int = 64 << 20, hard_bytes: int = 256 << 20, calls: int = 4096
    ) -> None:
        assert 0 < room_bytes < hard_bytes
        self.room_bytes = room_bytes  # calls wait while so much is unacknowledged
        self.hard_bytes = hard_bytes  # the peer is given up beyond
        self.calls = calls  # in flight at once
