"""Meshes over real loopback sockets, and a proxy between them that cuts, stalls and garbles."""

import random
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from structlog.typing import FilteringBoundLogger

from dlm.net import Answer, Limits, Malformed, Mesh, Peer, Refused, Timing
from dlm.net.tls import Tls

CHANNEL = 2


class Log:
    """Keeps what was logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    info = warning

    def about(self, text: str) -> list[tuple[str, dict[str, Any]]]:
        return [line for line in self.lines if text in repr(line)]


class Recorder:
    """Keeps what arrives; calls are answered as their bodies ask."""

    def __init__(self) -> None:
        self.arrived: list[tuple[int, int, int, bytes, bytes]] = []
        self.held = trio.Event()

    @property
    def bodies(self) -> list[bytes]:
        return [entry[3] for entry in self.arrived]

    def message(
        self, sender: int, incarnation: int, epoch: int, body: bytes, payload: bytes
    ) -> None:
        if body == b"garbage":
            raise Malformed("as asked")
        self.arrived.append((sender, incarnation, epoch, body, payload))

    def begin_call(
        self, sender: int, incarnation: int, epoch: int, body: bytes, payload: bytes
    ) -> Answer | Awaitable[Answer]:
        self.arrived.append((sender, incarnation, epoch, body, payload))
        if body.startswith(b"refuse"):
            raise Refused(42, b"no " + body)
        if body.startswith(b"garbage"):
            raise Malformed("as asked")
        if body.startswith((b"later", b"held")):
            return self._later(body, payload)
        return b"re " + body, payload

    async def _later(self, body: bytes, payload: bytes) -> Answer:
        if body.startswith(b"held"):
            await self.held.wait()
        await trio.lowlevel.checkpoint()
        if body == b"later refuse":
            raise Refused(43, b"late no")
        return b"re " + body, payload


class Node:
    """A mesh that serves, with what it was told."""

    def __init__(self, mesh: Mesh, peer: Peer, handler: Recorder, log: Log) -> None:
        self.mesh = mesh
        self.peer = peer  # with the real port
        self.handler = handler
        self.log = log
        self.lost: list[tuple[int, int]] = []
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        mesh.on_lost = lambda node, incarnation: self.lost.append((node, incarnation))

    def numbers(self, peer: int) -> dict[str, Any]:
        peers: Any = self.mesh.statistics()["peers"]
        numbers: dict[str, Any] = peers[peer]
        return numbers

    async def stop(self) -> None:
        self.scope.cancel()
        await self.ended.wait()


class Proxy:
    """Forwards TCP to a target; breaks it in several ways."""

    def __init__(self, target: str, noise: random.Random) -> None:
        self.host, port = target.rsplit(":", 1)
        self.port = int(port)
        self.address = ""
        self.noise = noise
        self.budget: int | None = None  # bytes until the next cut
        self.garble = False  # flip a bit of the next piece
        self.stalled = False  # swallow everything
        self.connections = 0
        self._streams: set[trio.SocketStream] = set()

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        task_status.started()
        await trio.serve_listeners(self._serve_one, listeners)

    def cut(self) -> None:
        """Reset every connection."""
        for stream in self._streams:
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.socket.close()
        self._streams.clear()

    async def _serve_one(self, near: trio.SocketStream) -> None:
        self.connections += 1
        try:
            far = await trio.open_tcp_stream(self.host, self.port)
        except OSError:
            await trio.aclose_forcefully(near)
            return
        self._streams |= {near, far}
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, near, far)
            await self._pump(far, near)
            nursery.cancel_scope.cancel()

    async def _pump(self, source: trio.SocketStream, target: trio.SocketStream) -> None:
        try:
            while data := await source.receive_some(4096):
                await self._forward(data, target)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        for stream in (source, target):
            self._streams.discard(stream)
            await trio.aclose_forcefully(stream)

    async def _forward(self, data: bytes, target: trio.SocketStream) -> None:
        if self.stalled:
            return
        if self.garble:
            self.garble = False
            place = self.noise.randrange(len(data))
            data = data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]
        if self.budget is not None:
            self.budget -= len(data)
            if self.budget < 0:
                await target.send_all(data[: self.budget])
                self.budget = None
                self.cut()
                return
        await target.send_all(data)


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    with trio.fail_after(300):
        while not condition():
            await trio.sleep(0.002)


@pytest.fixture(name="until")
def _until() -> Callable[[Callable[[], object]], Awaitable[None]]:
    return until


Start = Callable[..., Awaitable[Node]]


@pytest.fixture
async def start(nursery: trio.Nursery) -> Start:
    """Return what starts a node on a free port."""

    async def start_node(  # noqa: PLR0913
        number: int,
        incarnation: int = 1,
        *,
        cluster: str = "c",
        secret: bytes = b"secret",
        limits: Limits | None = None,
        timing: Timing | None = None,
        tls: Tls | None = None,
    ) -> Node:
        log, handler = Log(), Recorder()
        typed: FilteringBoundLogger = log  # type: ignore[assignment]
        me = Peer(number, incarnation, "")
        mesh = Mesh(
            *(me, cluster, secret, lambda: number * 100, typed),
            limits=limits,
            timing=timing,
            tls=tls,
        )
        mesh.register(CHANNEL, handler)
        node = Node(mesh, me, handler, log)

        async def serve(*, task_status: trio.TaskStatus[int]) -> None:
            with node.scope:
                await mesh.serve("127.0.0.1", 0, task_status=task_status)
            node.ended.set()

        port = await nursery.start(serve)
        node.peer = me._replace(address=f"127.0.0.1:{port}")
        return node

    return start_node


@pytest.fixture
async def proxy(nursery: trio.Nursery) -> Callable[..., Awaitable[Proxy]]:
    """Return what starts a proxy in front of a node."""

    async def start_proxy(target: str, seed: int = 0) -> Proxy:
        made = Proxy(target, random.Random(seed))
        await nursery.start(made.serve)
        return made

    return start_proxy


@pytest.fixture
async def pair(start: Start) -> tuple[Node, Node]:
    """Return two nodes that list each other."""
    low, high = await start(1, 11), await start(2, 22)
    low.mesh.set_peers([low.peer, high.peer])
    high.mesh.set_peers([low.peer, high.peer])
    return low, high
