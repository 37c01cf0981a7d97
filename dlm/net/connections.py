"""How links to the listed peers come about, stay alive and are replaced.

Of each pair the node with the lower number dials, again and again with a short backoff; the other
accepts, makes sure who it is, and waits a moment for one that proved to be genuine but is not
listed yet: its view may be newer. A keepalive pings idle links and drops silent ones. All that a
stranger can cause is a few bytes, a timeout and a log line now and then.

A broken link alone says nothing about the peer. But when a link to it was there, and now nobody
listens at its address, its process is gone: that is worth an accusation. The side that does not
dial probes the address after a loss to learn the same. And when there is no link for long
(`Timing.unreachable_s`), whatever the reason, one of the two must go: it is accused by a node that
was connected with it, or that is older. A newcomer that reaches nobody accuses nobody.

Invariants: no link to anybody but a listed peer in exactly the listed incarnation; at most one link
to each, the one of its dialer's latest attempt.
"""

import math
import secrets
import socket
from collections.abc import Callable, Iterable
from contextlib import ExitStack

import trio
from structlog.typing import FilteringBoundLogger

from dlm.net.complaints import Complaints
from dlm.net.errors import Malformed, Rejected, SessionLost
from dlm.net.framing import FRAME_LIMIT, Frame, Kind
from dlm.net.greeting import Greeting, accept, connect, handshake_frame
from dlm.net.handshake import NONCE_BYTES, Dialer, Hello, Listener, Peer, reject
from dlm.net.link import Link
from dlm.net.remote import Limits, Remote
from dlm.net.tls import Channel, Tls

_BACKOFF_S = (0.02, 0.5)
_STABLE_TICKS = 4  # a link that lived so long lets the next dial start without backoff
_STRANGERS = 64  # connections in their handshake at once
_ACCUSE_S = 1.0
_TICKS_PER_PING = 2


class Timing:
    """How long the mesh waits for what, in seconds."""

    def __init__(
        self,
        ping_s: float = 0.5,
        silent_s: float = 2.0,
        handshake_s: float = 2.0,
        unlisted_s: float = 1.0,
        unreachable_s: float = math.inf,
    ) -> None:
        assert ping_s < silent_s
        assert unlisted_s < handshake_s
        self.ping_s = ping_s  # after so long without a frame out, a PING
        self.silent_s = silent_s  # after so long without a byte in, the connection is dropped
        self.handshake_s = handshake_s
        self.unlisted_s = unlisted_s  # a genuine peer not listed yet may wait so long for it
        # Who cannot be reached for so long is accused; later, the more there are: if it is us who
        # are cut off, the others are to be faster.
        self.unreachable_s = unreachable_s


class Connections:
    """The listed peers of this node, and the links to them."""

    def __init__(  # noqa: PLR0913  the mesh names these once
        self,
        me: Peer,
        cluster: str,
        secret: bytes,
        *,
        epoch: Callable[[], int],
        deliver: Callable[[Remote, Link, list[Frame]], None],
        on_lost: Callable[[int, int], None],
        log: FilteringBoundLogger,
        limits: Limits,
        timing: Timing,
        tls: Tls | None = None,
    ) -> None:
        self.me = me
        self.remotes: dict[int, Remote] = {}
        self.strangers = 0
        self.rejected = 0
        self.complaints = Complaints(log)
        self._cluster = cluster
        self._secret = secret
        self._epoch = epoch
        self._deliver = deliver
        self._on_lost = on_lost
        self._log = log
        self._limits = limits
        self._timing = timing
        self._tick_s = timing.ping_s / _TICKS_PER_PING
        self._tls = tls
        self._changed = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._accused_s: dict[int, float] = {}  # do not accuse again before

    def start(self, nursery: trio.Nursery, listeners: Iterable[socket.socket]) -> None:
        """Accept, dial and keep alive in the nursery until it is cancelled."""
        self._nursery = nursery
        for listener in listeners:
            nursery.start_soon(self._accept, listener)
        nursery.start_soon(self._keep_alive)
        for remote in self.remotes.values():
            self._start_dialling(remote)

    def stop(self) -> None:
        """Forget the nursery, and every peer."""
        self._nursery = None
        self.set_peers(())

    def set_peers(self, peers: Iterable[Peer]) -> None:
        """Connect to new ones, close those not listed; see Mesh.set_peers."""
        wanted = {peer.node: peer for peer in peers if peer.node != self.me.node}
        for node, remote in list(self.remotes.items()):
            peer = wanted.get(node)
            if peer is None or peer.incarnation != remote.peer.incarnation:
                del self.remotes[node]
                self._accused_s.pop(node, None)
                remote.close("no longer listed")
            else:
                remote.peer = peer
        for node, peer in wanted.items():
            if node not in self.remotes:
                self.remotes[node] = Remote(peer, self._limits)
                self._start_dialling(self.remotes[node])
        self._changed.set()
        self._changed = trio.Event()

    def never_met(self) -> list[Peer]:
        """Return the peers to which no connection came about, though there was time for one."""
        enough = self._timing.unreachable_s / 2 / self._tick_s
        return [
            remote.peer
            for remote in self.remotes.values()
            if not remote.connects and remote.unlinked_ticks >= enough
        ]

    def complain(self, event: str, remote: Remote, **fields: object) -> None:
        """Log a warning about a peer, not too often."""
        peer = remote.peer
        self.complaints.warn(
            event,
            (peer.node, fields.get("why")),
            node=peer.node,
            incarnation=peer.incarnation,
            address=peer.address,
            **fields,
        )

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
                    continue  # at once: if nobody listens there any more, others should know soon
                await trio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, longest_s)

    async def _dial_once(self, remote: Remote) -> bool:
        """Connect and serve the link until it breaks; tell whether it was a good one."""
        link = None
        try:
            with trio.fail_after(self._timing.handshake_s):
                sock = await connect(remote.peer.address)
        except (OSError, ValueError, trio.TooSlowError) as error:
            if isinstance(error, ConnectionRefusedError) and remote.connects:
                self._accuse(remote)
            self.complain("cannot connect", remote, why=str(error) or "timeout")
            return False
        greeting = None
        with sock, ExitStack() as closing:
            try:
                with trio.fail_after(self._timing.handshake_s):
                    channel = await self._secured(sock, dialling=True)
                    closing.callback(channel.close)
                    greeting = Greeting(channel)
                    peer_received = await self._introduce(remote, greeting)
                link = self._attach(remote, greeting, peer_received, b"")
            except (Rejected, Malformed, SessionLost) as error:
                remote.refused += 1
                self.complain("peer refused", remote, why=str(error))
                if greeting is not None:
                    await self._say_no(greeting, error)
            except (OSError, trio.TooSlowError) as error:
                self.complain("no handshake", remote, why=str(error) or "timeout")
            else:
                await self._run(remote, link)
        return link is not None and link.age_ticks >= _STABLE_TICKS

    async def _secured(self, sock: socket.socket, *, dialling: bool) -> Channel:
        """Return the connection inside TLS, if this mesh uses it. Raises OSError."""
        if self._tls is None:
            return sock
        return await (self._tls.connect(sock) if dialling else self._tls.accept(sock))

    async def _introduce(self, remote: Remote, greeting: Greeting) -> int:
        """Do the dialer's side of the handshake; return what the peer has received."""
        if self._tls is not None:
            self._tls.check(greeting.socket, remote.peer.node)
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
                self.complaints.warn("cannot accept", "", why=str(error))
                await trio.sleep(_BACKOFF_S[0])
                continue
            if self.strangers >= _STRANGERS:
                self.complaints.warn("too many handshakes at once", "")
                sock.close()
            else:
                self._nursery.start_soon(self._answer, sock)

    async def _answer(self, sock: socket.socket) -> None:
        """Do the listener's side of a handshake, then serve the link."""
        address, greeting = _address_of(sock), None
        listener = Listener(self.me, self._cluster, self._secret, secrets.token_bytes(NONCE_BYTES))
        with sock, ExitStack() as closing:
            try:
                self.strangers += 1
                try:
                    with trio.fail_after(self._timing.handshake_s):
                        channel = await self._secured(sock, dialling=False)
                        closing.callback(channel.close)
                        greeting = Greeting(channel)
                        remote, peer_received = await self._examine(greeting, listener)
                finally:
                    self.strangers -= 1
                welcome = listener.welcome(remote.session.received)
                link = self._attach(remote, greeting, peer_received, welcome)
            except (Rejected, Malformed, SessionLost) as error:
                self.rejected += 1
                self._complain_stranger(address, listener.hello, str(error))
                if greeting is not None:
                    await self._say_no(greeting, error)
            except (OSError, trio.TooSlowError) as error:
                if listener.hello is not None or not isinstance(error, ConnectionResetError):
                    self._complain_stranger(address, listener.hello, str(error) or "timeout")
            else:
                await self._run(remote, link)

    async def _examine(self, greeting: Greeting, listener: Listener) -> tuple[Remote, int]:
        """Return who it proved to be, and what it has received."""
        challenge = listener.challenge(await greeting.receive(Kind.HELLO))
        await greeting.send(Kind.CHALLENGE, challenge)
        peer_received = listener.check(await greeting.receive(Kind.PROOF))
        assert listener.hello is not None
        remote = await self._listed(listener.hello)
        if self._tls is not None:
            self._tls.check(greeting.socket, remote.peer.node)
        if listener.hello.attempt <= remote.attempt:
            raise Rejected("an older attempt came late")
        remote.attempt = listener.hello.attempt
        return remote, peer_received

    async def _listed(self, hello: Hello) -> Remote:
        """Return the remote of a proven dialer; give a newcomer a moment until it is listed."""
        with trio.move_on_after(self._timing.unlisted_s):
            while (hello.target_node, hello.target_incarnation) == self.me[:2]:
                remote = self.remotes.get(hello.node)
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
            self.complain("connection lost", remote, why=link.reason)
            if self.me.node > remote.peer.node and not remote.probing and self._nursery is not None:
                remote.probing = True
                self._nursery.start_soon(self._probe, remote)

    async def _probe(self, remote: Remote) -> None:
        """While the dialer stays away, look whether anybody listens at its address."""
        backoff_s, longest_s = _BACKOFF_S
        with trio.CancelScope() as remote.dialling:
            while remote.link is None and not (remote.given_up or remote.closed):
                try:
                    with trio.move_on_after(self._timing.handshake_s):
                        (await connect(remote.peer.address)).close()
                except ConnectionRefusedError:
                    self._accuse(remote)
                except (OSError, ValueError):
                    pass  # no answer is no proof
                await trio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, longest_s)
        remote.probing = False

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
        tick_s = self._tick_s
        silent_ticks = round(self._timing.silent_s / tick_s)
        while True:
            await trio.sleep(tick_s)
            for remote in list(self.remotes.values()):
                if remote.link is not None:
                    remote.unlinked_ticks = 0
                    self._tick(remote, remote.link, silent_ticks)
                    continue
                remote.unlinked_ticks += 1
                if remote.unlinked_ticks * tick_s >= self._patience_s(remote):
                    self.complain("peer unreachable", remote, why="no connection for long")
                    self._accuse(remote)
                elif remote.given_up:
                    self.complain("peer given up", remote, why=remote.given_up)
                    self._accuse(remote)

    def _patience_s(self, remote: Remote) -> float:
        if not remote.connects and remote.peer.incarnation < self.me.incarnation:
            return math.inf  # it may be us who cannot be reached
        unlinked = sum(other.link is None for other in self.remotes.values())
        return self._timing.unreachable_s * (1 + unlinked) / 2

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
        """Tell that the peer's process is gone, or its session beyond repair; not too often."""
        node, now_s = remote.peer.node, trio.current_time()
        if now_s >= self._accused_s.get(node, now_s):
            self._accused_s[node] = now_s + _ACCUSE_S
            self._on_lost(node, remote.peer.incarnation)

    def _complain_stranger(self, address: str, hello: Hello | None, why: str) -> None:
        node = hello.node if hello else None
        incarnation = hello.incarnation if hello else None
        self.complaints.warn(
            "connection refused",
            (address, node, why),
            address=address,
            node=node,
            incarnation=incarnation,
            why=why,
        )


def _address_of(sock: socket.socket) -> str:
    try:
        return str(sock.getpeername()[0])
    except OSError:
        return "gone"
