"""The mesh: one authenticated connection to every listed peer; messages and calls on channels.

Who is a peer is told by `set_peers`; the mesh itself decides nothing about membership. Of each pair
the node with the lower number dials. When a connection breaks, the next one resumes the session
(connections.py, session.py), so a link is ordered and lossless for as long as both nodes list each
other in the same incarnations.

Handlers run in the receive loop: what they do synchronously happens in the order in which the peer
sent. `begin_call` may return the answer, or an awaitable that is finished in a task of its own.

Invariants: nothing of a peer is delivered that is not listed in exactly that incarnation; a node
has at most one link here, the one of its dialer's latest attempt.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeAlias

import trio
from structlog.typing import FilteringBoundLogger

from dlm.errors import LockError, PeerLost
from dlm.net.connections import Connections, Timing
from dlm.net.errors import (
    CODE_LOCK_ERROR,
    CODE_MALFORMED,
    CODE_NO_HANDLER,
    Malformed,
    Refused,
)
from dlm.net.framing import BULK_BYTES, Buffer, Frame, Kind
from dlm.net.greeting import listen
from dlm.net.handshake import Peer
from dlm.net.link import Link
from dlm.net.remote import Call, Limits, Remote
from dlm.net.tls import Tls

Answer: TypeAlias = tuple[bytes, Buffer]

_CHANNELS = 256
_MESSAGE = Kind.MESSAGE


class Handler(Protocol):
    """What serves a channel. Expected failures of a call are raised as Refused."""

    def message(
        self, sender: int, incarnation: int, epoch: int, body: bytes, payload: bytes
    ) -> None:
        """Take a one-way message; may raise Malformed, which drops the connection."""

    def begin_call(
        self, sender: int, incarnation: int, epoch: int, body: bytes, payload: bytes
    ) -> Answer | Awaitable[Answer]:
        """Return the answer, or what will; the part up to the return runs in order of arrival."""


class Mesh:
    """This node's connections to all its peers."""

    def __init__(  # noqa: PLR0913  a composition root names these once
        self,
        me: Peer,
        cluster: str,
        secret: bytes,
        epoch: Callable[[], int],
        log: FilteringBoundLogger,
        *,
        on_lost: Callable[[int, int], None] | None = None,
        limits: Limits | None = None,
        timing: Timing | None = None,
        tls: Tls | None = None,
    ) -> None:
        # (node, incarnation): it was connected, and now nobody listens at its address; or its
        # session was given up. Not for a connection that merely broke. At most once a second.
        self.on_lost = on_lost
        self._epoch = epoch
        self._handlers: dict[int, Handler] = {}
        self._nursery: trio.Nursery | None = None
        self._connections = Connections(
            me,
            cluster,
            secret,
            epoch=epoch,
            deliver=self._deliver,
            on_lost=self._lost,
            log=log,
            limits=limits or Limits(),
            timing=timing or Timing(),
            tls=tls,
        )
        self._remotes = self._connections.remotes
        self._dispatch: dict[int, Callable[[Remote, Frame], None]] = {
            Kind.MESSAGE: self._on_message,
            Kind.CALL: self._on_call,
            Kind.REPLY: Remote.answered,
            Kind.REFUSED: Remote.answered,
        }

    @property
    def me(self) -> Peer:
        """This node, as it introduces itself."""
        return self._connections.me

    def register(self, channel: int, handler: Handler) -> None:
        """Serve a channel (0..255); before `serve`, or before anybody uses it."""
        assert 0 <= channel < _CHANNELS
        assert channel not in self._handlers, channel
        self._handlers[channel] = handler

    def set_peers(self, peers: Iterable[Peer]) -> None:
        """Talk to exactly these (this node may be among them and is skipped).

        Calls in flight to a node, or incarnation, that is no longer listed raise PeerLost. An
        incarnation that was dropped must not be listed again.
        """
        self._connections.set_peers(peers)

    def never_met(self) -> list[Peer]:
        """Return the listed peers to which no connection came about in half `unreachable_s`."""
        return self._connections.never_met()

    def become(self, me: Peer) -> None:
        """Go on as another incarnation: every session ends, no peer is listed any more."""
        self._connections.set_peers(())
        self._connections.me = me

    async def serve(
        self,
        host: str,
        port: int,
        *,
        task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen, dial and keep alive until cancelled; `task_status` gets the port.

        Raises:
            OSError: cannot listen there.
        """
        listeners = await listen(host, port)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._connections.start(nursery, listeners)
                task_status.started(listeners[0].getsockname()[1])
        finally:
            self._connections.stop()
            self._nursery = None
            for listener in listeners:
                listener.close()

    def send(self, node: int, channel: int, body: bytes, payload: Buffer = b"") -> None:
        """Send a one-way message; dropped if the node is no peer. Never blocks.

        A payload that is bytes or a read-only view is not copied and must not change any more.
        """
        assert node != self._connections.me.node, "a node does not talk to itself over the mesh"
        remote = self._remotes.get(node)
        if remote is not None:
            remote.push(_MESSAGE, channel, 0, 0, self._epoch(), body, payload)

    def start_call(self, node: int, channel: int, body: bytes, payload: Buffer = b"") -> Call:
        """Send a call now, in order with `send`, room or not; `await call.wait()` is the answer.

        Raises:
            PeerLost: the node is no peer.
        """
        return self._remote(node).begin(channel, self._epoch(), body, payload)

    async def call(
        self, node: int, channel: int, body: bytes, payload: Buffer = b""
    ) -> tuple[bytes, bytes]:
        """Send a call and return the body and payload of its answer.

        Sent before the first await, unless too much is unacknowledged: then calls wait in order
        (and a later `send` overtakes them).

        Raises:
            Refused: by the handler there.
            PeerLost: the node is no peer (any more); the call may or may not have run.
        """
        remote = self._remote(node)
        if remote.has_room():
            return await remote.begin(channel, self._epoch(), body, payload).wait()
        turn = await remote.turn()
        try:
            call = remote.begin(channel, self._epoch(), body, payload)
        finally:
            turn.release()
        return await call.wait()

    def reachable(self, node: int) -> bool:
        """Whether there is a live connection to the node."""
        remote = self._remotes.get(node)
        return remote is not None and remote.link is not None

    def statistics(self) -> dict[str, object]:
        """Return numbers for tools."""
        return {
            "rejected": self._connections.rejected,
            "handshakes": self._connections.strangers,
            "peers": {node: remote.statistics() for node, remote in self._remotes.items()},
        }

    def _remote(self, node: int) -> Remote:
        assert node != self._connections.me.node, "a node does not talk to itself over the mesh"
        remote = self._remotes.get(node)
        if remote is None:
            raise PeerLost(node)
        return remote

    def _deliver(self, remote: Remote, link: Link, frames: list[Frame]) -> None:
        """Handle one batch; runs without awaiting."""
        session = remote.session
        for frame in frames:
            message = session.accept(frame)
            if message is None:
                continue
            handle = self._dispatch.get(message.kind)
            if handle is None:
                raise Malformed(f"unknown frame kind {message.kind}")
            handle(remote, message)
            if not link.alive:
                return
        if session.owes_ack:
            link.push(session.control(Kind.ACK, self._epoch()))
        remote.announce_room()

    def _on_message(self, remote: Remote, frame: Frame) -> None:
        handler = self._handlers.get(frame.channel)
        if handler is None:
            self._connections.complain(
                "message for an unknown channel", remote, channel=frame.channel
            )
            return
        peer = remote.peer
        handler.message(peer.node, peer.incarnation, frame.epoch, frame.body, frame.payload)

    def _on_call(self, remote: Remote, frame: Frame) -> None:
        handler = self._handlers.get(frame.channel)
        peer = remote.peer
        if handler is None:
            self._refuse(remote, frame, Refused(CODE_NO_HANDLER, b"no such channel"))
            return
        try:
            answer = handler.begin_call(
                peer.node, peer.incarnation, frame.epoch, frame.body, frame.payload
            )
        except (Refused, Malformed, LockError) as error:
            self._refuse(remote, frame, error)
            return
        if not isinstance(answer, tuple):
            assert self._nursery is not None
            self._nursery.start_soon(self._finish, remote, frame, answer)
        elif len(answer[1]) >= BULK_BYTES and remote.crowded():
            assert self._nursery is not None
            self._nursery.start_soon(self._reply_when_room, remote, frame, answer)
        else:
            self._reply(remote, frame, answer)

    async def _finish(self, remote: Remote, frame: Frame, answer: Awaitable[Answer]) -> None:
        try:
            finished = await answer
        except (Refused, Malformed, LockError) as error:
            self._refuse(remote, frame, error)
            return
        await self._reply_when_room(remote, frame, finished)

    async def _reply_when_room(self, remote: Remote, frame: Frame, answer: Answer) -> None:
        if len(answer[1]) >= BULK_BYTES:
            await remote.wait_acknowledged()
        self._reply(remote, frame, answer)

    def _reply(self, remote: Remote, frame: Frame, answer: Answer) -> None:
        body, payload = answer
        remote.push(Kind.REPLY, frame.channel, 0, frame.call, self._epoch(), body, payload)

    def _refuse(self, remote: Remote, frame: Frame, error: Exception) -> None:
        code, detail = CODE_LOCK_ERROR, f"{type(error).__name__}: {error}".encode()[:1024]
        if isinstance(error, Refused):
            code, detail = error.code, error.detail
        elif isinstance(error, Malformed):
            code = CODE_MALFORMED
            self._connections.complain(
                "malformed call", remote, channel=frame.channel, why=str(error)
            )
        remote.push(Kind.REFUSED, frame.channel, code, frame.call, self._epoch(), detail)

    def _lost(self, node: int, incarnation: int) -> None:
        if self.on_lost is not None:
            self.on_lost(node, incarnation)
