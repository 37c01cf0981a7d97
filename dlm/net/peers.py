"""The mesh: one authenticated connection to every listed peer; messages and calls on channels.

Who is a peer is told by `set_peers`; the mesh itself decides nothing about membership. Of each pair
the node with the lower number dials. When a connection breaks, the next one resumes the session
(see session.py), so a link is ordered and lossless for as long as both nodes list each other in the
same incarnations.

Handlers run in the receive loop: what they do synchronously happens in the order in which the peer
sent. `begin_call` may return the answer, or an awaitable that is finished in a task of its own.

Invariants: nothing of a peer is delivered that is not listed in exactly that incarnation; a node
has at most one link here, the one of its dialer's latest attempt.
"""

import errno
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeAlias

import trio
from structlog.typing import FilteringBoundLogger

from dlm.errors import LockError, PeerLost
from dlm.net.complaints import Complaints
from dlm.net.errors import (
    CODE_LOCK_ERROR,
    CODE_MALFORMED,
    CODE_NO_HANDLER,
    Malformed,
    Refused,
    Rejected,
    SessionLost,
)
from dlm.net.framing import BULK_BYTES, FRAME_LIMIT, Buffer, Frame, Kind
from dlm.net.greeting import Greeting, accept, connect, handshake_frame, listen
from dlm.net.handshake import NONCE_BYTES, Dialer, Hello, Listener, Peer, reject
from dlm.net.link import Link
from dlm.net.remote import Call, Limits, Remote

Answer: TypeAlias = tuple[bytes, Buffer]

_BACKOFF_S = (0.02, 0.5)
_STABLE_TICKS = 4  # a link that lived so long lets the next dial start without backoff
_STRANGERS = 64  # connections in their handshake at once
_ACCUSE_S = 1.0
_TICKS_PER_PING = 2


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


class Timing:
    """How long the mesh waits for what, in seconds."""

    def __init__(
        self,
        ping_s: float = 0.5,
        silent_s: float = 2.0,
        handshake_s: float = 2.0,
        unlisted_s: float = 1.0,
    ) -> None:
        assert ping_s < silent_s
        assert unlisted_s < handshake_s
        self.ping_s = ping_s  # after so long without a frame out, a PING
        self.silent_s = silent_s  # after so long without a byte in, the connection is dropped
        self.handshake_s = handshake_s
        self.unlisted_s = unlisted_s  # a genuine peer not listed yet may wait so long for it


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
    ) -> None:
        self.me = me
        self.on_lost = (
            on_lost  # (node, incarnation): a live connection broke, or a dial was refused
        )
        self._cluster = cluster
        self._secret = secret
        self._epoch = epoch
        self._log = log
        self._complaints = Complaints(log)
        self._limits = limits or Limits()
        self._timing = timing or Timing()
        self._handlers: dict[int, Handler] = {}
        self._remotes: dict[int, Remote] = {}
        self._changed = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._strangers = 0
        self._rejected = 0
        self._accused_s: dict[int, float] = {}
        self._dispatch: dict[int, Callable[[Remote, Frame], None]] = {
            Kind.MESSAGE: self._on_message,
            Kind.CALL: self._on_call,
            Kind.REPLY: Remote.answered,
            Kind.REFUSED: Remote.answered,
        }

    # --- what the node says

    def register(self, channel: int, handler: Handler) -> None:
        """Serve a channel (0..255); before `serve`, or before anybody uses it."""
        assert 0 <= channel <= 255  # noqa: PLR2004  one byte on the wire
        assert channel not in self._handlers, channel
        self._handlers[channel] = handler

    def set_peers(self, peers: Iterable[Peer]) -> None:
        """Talk to exactly these (this node may be among them and is skipped).

        Calls in flight to a node, or incarnation, that is no longer listed raise PeerLost. An
        incarnation that was dropped must not be listed again.
        """
        wanted = {peer.node: peer for peer in peers if peer.node != self.me.node}
        for node, remote in list(self._remotes.items()):
            peer = wanted.get(node)
            if peer is None or peer.incarnation != remote.peer.incarnation:
                del self._remotes[node]
                self._accused_s.pop(node, None)
                remote.close("no longer listed")
            else:
                remote.peer = peer
        for node, peer in wanted.items():
            if node not in self._remotes:
                self._remotes[node] = Remote(peer, self._limits)
                self._start_dialling(self._remotes[node])
        self._changed.set()
        self._changed = trio.Event()

    def become(self, me: Peer) -> None:
        """Go on as another incarnation: every session ends, no peer is listed any more."""
        self.me = me
        self.set_peers(())

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
                for listener in listeners:
                    nursery.start_soon(self._accept, listener)
                nursery.start_soon(self._keep_alive)
                for remote in self._remotes.values():
                    self._start_dialling(remote)
                task_status.started(listeners[0].getsockname()[1])
        finally:
            self._nursery = None
            self.set_peers(())
            for listener in listeners:
                listener.close()

    # --- messages and calls

    def send(self, node: int, channel: int, body: bytes, payload: Buffer = b"") -> None:
        """Send a one-way message; dropped if the node is no peer. Never blocks.

        A payload that is bytes or a read-only view is not copied and must not change any more.
        """
        assert node != self.me.node, "a node does not talk to itself over the mesh"
        remote = self._remotes.get(node)
        if remote is not None:
            remote.push(Kind.MESSAGE, channel, 0, 0, self._epoch(), body, payload)

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
            "rejected": self._rejected,
            "handshakes": self._strangers,
            "peers": {node: remote.statistics() for node, remote in self._remotes.items()},
        }

    def _remote(self, node: int) -> Remote:
        assert node != self.me.node, "a node does not talk to itself over the mesh"
        remote = self._remotes.get(node)
        if remote is None:
            raise PeerLost(node)
        return remote

    # --- frames in

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
            self._complain("message for an unknown channel", remote, channel=frame.channel)
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
            self._complain("malformed call", remote, channel=frame.channel, why=str(error))
        remote.push(Kind.REFUSED, frame.channel, code, frame.call, self._epoch(), detail)

    # --- connections

    def _start_dialling(self, remote: Remote) -> None:
        if self._nursery is not None and self.me.node < remote.peer.node:
            self._nursery.start_soon(self._dial, remote)

    async def _dial(self, remote: Remote) -> None:
        """Connect again and again until the remote is closed."""
        shortest_s, longest_s = _BACKOFF_S
        backoff_s = shortest_s
        with remote.dialling:
            while not remote.given_up:
                if await self._dial_once(remote):
                    backoff_s = shortest_s
                await trio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, longest_s)

    async def _dial_once(self, remote: Remote) -> bool:
        """Connect and serve the link until it breaks; tell whether it was a good one."""
        link = None
        try:
            with trio.fail_after(self._timing.handshake_s):
                sock = await connect(remote.peer.address)
        except (OSError, ValueError, trio.TooSlowError) as error:
            if isinstance(error, OSError) and error.errno == errno.ECONNREFUSED:
                self._accuse(remote)
            self._complain("cannot connect", remote, why=str(error) or "timeout")
            return False
        with sock:
            greeting = Greeting(sock)
            try:
                with trio.fail_after(self._timing.handshake_s):
                    peer_received = await self._introduce(remote, greeting)
                link = self._attach(remote, greeting, peer_received, b"")
            except (Rejected, Malformed, SessionLost) as error:
                remote.refused += 1
                self._complain("peer refused", remote, why=str(error))
                await self._say_no(greeting, error)
            except (OSError, trio.TooSlowError) as error:
                self._complain("no handshake", remote, why=str(error) or "timeout")
            else:
                await self._run(remote, link)
        return link is not None and link.age_ticks >= _STABLE_TICKS

    async def _introduce(self, remote: Remote, greeting: Greeting) -> int:
        """Do the dialer's side of the handshake; return what the peer has received."""
        remote.attempt += 1
        nonce = secrets.token_bytes(NONCE_BYTES)
        dialer = Dialer(self.me, remote.peer, self._cluster, self._secret, remote.attempt, nonce)
        await greeting.send(Kind.HELLO, dialer.hello)
        challenge = await greeting.receive(Kind.CHALLENGE)
        await greeting.send(Kind.PROOF, dialer.prove(challenge, remote.session.received))
        return dialer.finish(await greeting.receive(Kind.WELCOME))

    async def _accept(self, listener: socket.socket) -> None:
        assert self._nursery is not None
        while True:
            try:
                sock = await accept(listener)
            except OSError as error:
                self._complaints.warn("cannot accept", "", why=str(error))
                await trio.sleep(_BACKOFF_S[0])
                continue
            if self._strangers >= _STRANGERS:
                self._complaints.warn("too many handshakes at once", "")
                sock.close()
            else:
                self._nursery.start_soon(self._answer, sock)

    async def _answer(self, sock: socket.socket) -> None:
        """Do the listener's side of a handshake, then serve the link."""
        greeting = Greeting(sock)
        listener = Listener(self.me, self._cluster, self._secret, secrets.token_bytes(NONCE_BYTES))
        with sock:
            try:
                self._strangers += 1
                try:
                    with trio.fail_after(self._timing.handshake_s):
                        remote, peer_received = await self._examine(greeting, listener)
                finally:
                    self._strangers -= 1
                welcome = listener.welcome(remote.session.received)
                link = self._attach(remote, greeting, peer_received, welcome)
            except (Rejected, Malformed, SessionLost) as error:
                self._rejected += 1
                self._complain_stranger(sock, listener.hello, str(error))
                await self._say_no(greeting, error)
            except (OSError, trio.TooSlowError) as error:
                self._complain_stranger(sock, listener.hello, str(error) or "timeout")
            else:
                await self._run(remote, link)

    async def _examine(self, greeting: Greeting, listener: Listener) -> tuple[Remote, int]:
        """Return who it proved to be, and what it has received."""
        challenge = listener.challenge(await greeting.receive(Kind.HELLO))
        await greeting.send(Kind.CHALLENGE, challenge)
        peer_received = listener.check(await greeting.receive(Kind.PROOF))
        assert listener.hello is not None
        remote = await self._listed(listener.hello)
        if listener.hello.attempt <= remote.attempt:
            raise Rejected("an older attempt came late")
        remote.attempt = listener.hello.attempt
        return remote, peer_received

    async def _listed(self, hello: Hello) -> Remote:
        """Return the remote of a proven dialer; give a newcomer a moment until it is listed."""
        with trio.move_on_after(self._timing.unlisted_s):
            while (hello.target_node, hello.target_incarnation) == self.me[:2]:
                remote = self._remotes.get(hello.node)
                incarnation = remote.peer.incarnation if remote is not None else 0
                if remote is not None and incarnation == hello.incarnation:
                    if remote.given_up:
                        raise Rejected(f"given up: {remote.given_up}")
                    return remote
                if incarnation > hello.incarnation:
                    break
                await self._changed.wait()
        raise Rejected(f"node {hello.node} incarnation {hello.incarnation} is not listed")

    def _attach(
        self, remote: Remote, greeting: Greeting, peer_received: int, welcome: bytes
    ) -> Link:
        """Make a proven connection the remote's link, in place of an older one.

        Raises:
            SessionLost: the remote is given up.
        """
        if remote.link is not None:
            remote.link.kill("a newer connection")
        try:
            missing = remote.session.resume(peer_received)
        except SessionLost as error:
            remote.give_up(str(error))
            raise
        greeting.decoder.limit = FRAME_LIMIT

        def deliver(frames: list[Frame]) -> None:
            self._deliver(remote, link, frames)

        link = remote.link = Link(greeting.socket, greeting.decoder, deliver)
        remote.connects += 1
        if welcome:
            link.push((handshake_frame(Kind.WELCOME, welcome),))
        link.push(missing)
        self._log.info("connected", node=remote.peer.node, incarnation=remote.peer.incarnation)
        return link

    async def _run(self, remote: Remote, link: Link) -> None:
        try:
            await link.run()
        finally:
            if remote.link is link:
                remote.link = None
            remote.drops += 1
            remote.last_drop = link.reason
        if not remote.closed and remote.link is None:
            self._complain("connection lost", remote, why=link.reason)
            self._accuse(remote)

    @staticmethod
    async def _say_no(greeting: Greeting, error: Exception) -> None:
        """Tell the other side why; it may be gone, or not read."""
        if isinstance(error, Rejected) and error.told:
            return
        with trio.move_on_after(_BACKOFF_S[1]):
            try:
                await greeting.send(Kind.REJECT, reject(str(error)))
            except OSError:
                return

    async def _keep_alive(self) -> None:
        """Ping idle links, drop silent ones. Counts ticks, so that a stall of ours is nobody's."""
        tick_s = self._timing.ping_s / _TICKS_PER_PING
        silent_ticks = round(self._timing.silent_s / tick_s)
        while True:
            await trio.sleep(tick_s)
            for remote in list(self._remotes.values()):
                if remote.link is not None:
                    self._tick(remote, remote.link, silent_ticks)

    def _tick(self, remote: Remote, link: Link, silent_ticks: int) -> None:
        link.age_ticks += 1
        link.silent_ticks = 0 if link.heard else link.silent_ticks + 1
        link.idle_ticks = 0 if link.wrote else link.idle_ticks + 1
        link.heard = link.wrote = False
        if link.silent_ticks >= silent_ticks:
            link.kill(f"silent for {self._timing.silent_s} s")
        elif link.idle_ticks >= _TICKS_PER_PING and link.idle:
            link.push(remote.session.control(Kind.PING, self._epoch()))

    def _accuse(self, remote: Remote) -> None:
        """Give the membership a hint, not too often."""
        node, now_s = remote.peer.node, trio.current_time()
        if self.on_lost is not None and now_s >= self._accused_s.get(node, now_s):
            self._accused_s[node] = now_s + _ACCUSE_S
            self.on_lost(node, remote.peer.incarnation)

    def _complain(self, event: str, remote: Remote, **fields: object) -> None:
        peer = remote.peer
        self._complaints.warn(
            event,
            (peer.node, fields.get("why")),
            node=peer.node,
            incarnation=peer.incarnation,
            address=peer.address,
            **fields,
        )

    def _complain_stranger(self, sock: socket.socket, hello: Hello | None, why: str) -> None:
        try:
            address = str(sock.getpeername()[0])
        except OSError:
            address = "gone"
        node = hello.node if hello else None
        incarnation = hello.incarnation if hello else None
        self._complaints.warn(
            "connection refused",
            (address, node, why),
            address=address,
            node=node,
            incarnation=incarnation,
            why=why,
        )
