"""A network in one process: ordered, lossless links with seeded delays that can be cut for a while.

Each node has a `SimMesh` with the interface of the real mesh. A message to an incarnation that is
not listed, or from one, is dropped; a cut link delivers later, in order.

Invariant: what one node sent to another arrives in that order, whatever the delays.
"""

import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import trio

from dlm.errors import LockError, PeerLost
from dlm.net.errors import Malformed, Refused

_Item = tuple[str, int, int, int, bytes, bytes]


class Network:
    """All links."""

    def __init__(self, rng: random.Random, nursery: trio.Nursery, delay_s: float = 0.001) -> None:
        self.rng = rng
        self.nursery = nursery
        self.delay_s = delay_s
        self.meshes: dict[tuple[int, int], SimMesh] = {}  # by (node, incarnation)
        self._links: dict[tuple[int, int, int, int], trio.MemorySendChannel[_Item]] = {}
        self._cut: dict[tuple[int, int], trio.Event] = {}  # by source and target
        self.delivered = 0

    def cut(self, one: int, other: int) -> None:
        """Hold back everything between two nodes."""
        self.cut_one_way(one, other)
        self.cut_one_way(other, one)

    def cut_one_way(self, source: int, target: int) -> None:
        """Hold back everything that one node sends to another."""
        self._cut.setdefault((source, target), trio.Event())

    def heal(self, one: int, other: int) -> None:
        """Let it flow again, both ways."""
        for pair in ((one, other), (other, one)):
            event = self._cut.pop(pair, None)
            if event is not None:
                event.set()

    def push(self, source: "SimMesh", target: tuple[int, int], item: _Item) -> None:
        """Put something on the link to that incarnation."""
        key = (source.node, source.incarnation, *target)
        if key not in self._links:
            send, receive = trio.open_memory_channel[_Item](1 << 20)
            self._links[key] = send
            self.nursery.start_soon(self._deliver, source, source.incarnation, target, receive)
        self._links[key].send_nowait(item)

    async def _deliver(
        self,
        source: "SimMesh",
        incarnation: int,
        target: tuple[int, int],
        items: "trio.MemoryReceiveChannel[_Item]",
    ) -> None:
        async for item in items:
            await trio.sleep(self.rng.random() * self.delay_s)
            pair = (source.node, target[0])
            while pair in self._cut:
                await self._cut[pair].wait()
            mesh = self.meshes.get(target)
            if mesh is not None and source.alive:
                self.delivered += 1
                await mesh.arrived(source.node, incarnation, item)


class SimMesh:
    """One incarnation's end of the network."""

    def __init__(
        self, network: Network, node: int, incarnation: int, nursery: trio.Nursery
    ) -> None:
        self._network = network
        self._nursery = nursery
        self.node = node
        self.incarnation = incarnation
        self.alive = True
        self.epoch: Callable[[], int] = int
        self.paused: trio.Event | None = None
        self._peers: dict[int, int] = {}
        self._handlers: dict[int, Any] = {}
        self._calls: dict[int, tuple[int, int, trio.Event, list[Any]]] = {}
        self._next_call = 0
        network.meshes[node, incarnation] = self

    def stop(self) -> None:
        """Crash."""
        self.alive = False
        self._network.meshes.pop((self.node, self.incarnation), None)

    def become(self, incarnation: int) -> None:
        """Go on as another incarnation of the same process; it has no peers and no calls yet."""
        self.set_peers(())
        del self._network.meshes[self.node, self.incarnation]
        self.incarnation = incarnation
        self._network.meshes[self.node, incarnation] = self
        self._fail_calls(lambda *_: True)

    def register(self, channel: int, handler: Any) -> None:
        """Let a handler have a channel."""
        self._handlers[channel] = handler

    def set_peers(self, peers: Iterable[tuple[int, int]]) -> None:
        """List the (node, incarnation) to talk to; calls to others fail."""
        self._peers = {node: incarnation for node, incarnation in peers if node != self.node}
        self._fail_calls(lambda node, incarnation: self._peers.get(node) != incarnation)

    def _fail_calls(self, concerns: Callable[[int, int], bool]) -> None:
        """No answer comes any more: ours or theirs is over."""
        for number, (node, incarnation, done, box) in list(self._calls.items()):
            if concerns(node, incarnation):
                del self._calls[number]
                box.append(PeerLost(f"node {node}"))
                done.set()

    def send(self, node: int, channel: int, body: bytes, payload: Any = b"") -> None:
        """Send one way."""
        self._push(node, ("message", channel, 0, self.epoch(), body, bytes(payload)))

    async def call(
        self, node: int, channel: int, body: bytes, payload: Any = b""
    ) -> tuple[bytes, bytes]:
        """Ask and wait."""
        if node not in self._peers:
            raise PeerLost(f"node {node} is no peer")
        self._next_call += 1
        number = self._next_call
        done = trio.Event()
        box: list[Any] = []
        self._calls[number] = (node, self._peers[node], done, box)
        self._push(node, ("call", channel, number, self.epoch(), body, bytes(payload)))
        try:
            await done.wait()
        finally:
            self._calls.pop(number, None)
        if isinstance(box[0], Exception):
            raise box[0]
        answer: tuple[bytes, bytes] = box[0]
        return answer

    async def arrived(self, sender: int, incarnation: int, item: _Item) -> None:
        """Handle what the network brings."""
        meant = self.incarnation
        while self.paused is not None:
            await self.paused.wait()
        listed = self.alive and self._peers.get(sender) == incarnation
        if not listed and not await self._listed(sender, incarnation):
            return
        if self.incarnation != meant:
            return  # it was for one that is over
        kind, channel, number, epoch, body, payload = item
        if kind == "message":
            self._handlers[channel].message(sender, incarnation, epoch, body, payload)
        elif kind == "call":
            self._serve(sender, incarnation, item)
        else:
            waiting = self._calls.get(number)
            if waiting is not None:
                code = channel
                waiting[3].append((body, payload) if kind == "reply" else Refused(code, body))
                waiting[2].set()

    async def _listed(self, sender: int, incarnation: int) -> bool:
        """Wait for a view that lists the sender, as a real peer that retries would; not forever."""
        for _ in range(200):
            if not self.alive:
                return False
            if self._peers.get(sender) == incarnation:
                return True
            await trio.sleep(0.01)
        return False

    def _push(self, node: int, item: _Item) -> None:
        incarnation = self._peers.get(node)
        if incarnation is not None and self.alive:
            self._network.push(self, (node, incarnation), item)

    def _serve(self, sender: int, incarnation: int, item: _Item) -> None:
        _, channel, number, epoch, body, payload = item
        try:
            answer = self._handlers[channel].begin_call(sender, incarnation, epoch, body, payload)
        except (Refused, Malformed, LockError) as error:
            self._refuse(sender, number, error)
            return
        if isinstance(answer, tuple):
            self._push(sender, ("reply", channel, number, self.epoch(), *answer))
        else:
            self._nursery.start_soon(self._finish, sender, channel, number, answer)

    async def _finish(
        self, sender: int, channel: int, number: int, answer: Awaitable[tuple[bytes, bytes]]
    ) -> None:
        try:
            body, payload = await answer
        except (Refused, Malformed, LockError) as error:
            self._refuse(sender, number, error)
            return
        self._push(sender, ("reply", channel, number, self.epoch(), body, payload))

    def _refuse(self, sender: int, number: int, error: Exception) -> None:
        code = error.code if isinstance(error, Refused) else 0xFFFF
        self._push(sender, ("refused", code, number, self.epoch(), b"", b""))
