"""Real lockspaces in one process, and the pictures that tools see of them."""

from collections import deque
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from clusterfs.cli.locks.picture import Picture, read_picture, with_names
from dlm.modes import Flags, Mode
from dlm.node import Lockspace, Name

FILE = Name((0x2A).to_bytes(8, "big"))
OPEN = Name((0x2A).to_bytes(8, "big"), b"o")


class Spaces:
    """Lockspaces of nodes 1, 2, 3, joined by links that a task keeps empty."""

    def __init__(self, nodes: int) -> None:
        self.now_s = 100.0
        self._links: deque[tuple[int, int, bytes]] = deque()
        self._said = trio.Event()
        self.nodes = {node: self._start(node) for node in range(1, nodes + 1)}
        for space in self.nodes.values():
            space.enter(1, dict.fromkeys(self.nodes, 7))

    def _start(self, node: int) -> Lockspace:
        def send(target: int, message: bytes) -> None:
            self._links.append((node, target, message))
            self._said.set()

        return Lockspace(node, 7, send, lambda: self.now_s, lvb_bytes=8)

    async def carry(self) -> None:
        while True:
            await self._said.wait()
            self._said = trio.Event()
            while self._links:
                source, target, message = self._links.popleft()
                self.nodes[target].deliver(source, message)

    def described(self, node: int, **more: Any) -> dict[str, Any]:
        """Return what a daemon would send as JSON, decoded, names made printable."""
        value = msgspec.json.decode(msgspec.json.encode(self.nodes[node].dump() | more))
        return with_names(value)

    def picture(self) -> Picture:
        return read_picture({"nodes": [self.described(node) for node in self.nodes]})


@pytest.fixture
async def spaces(nursery: trio.Nursery) -> Spaces:
    spaces = Spaces(3)
    nursery.start_soon(spaces.carry)
    await wait_all_tasks_blocked()
    return spaces


@pytest.fixture
async def fought(spaces: Spaces, nursery: trio.Nursery) -> Spaces:
    """Node 1 holds EX on a file, 2 waits for PR, 3 waits behind it; 2 and 3 hold PR on its leaf o,
    which 3 wants to make EX."""
    one, two, three = spaces.nodes.values()
    held = await one.lock(FILE, Mode.EX, owner="41 write")
    one.convert_down_nowait(held, Mode.PR, b"x" * 8)
    await one.convert(held, Mode.EX)
    await two.lock(OPEN, Mode.PR, owner="a b")
    opened = await three.lock(OPEN, Mode.PR, owner="43 open")

    async def wait_two() -> None:
        await two.lock(FILE, Mode.PR, owner="42 read")

    async def wait_three() -> None:
        await three.lock(FILE, Mode.CR, owner="43 read")

    async def convert_three() -> None:
        await three.convert(opened, Mode.EX, flags=Flags.VALBLK)

    for wait in (wait_two, wait_three, convert_three):
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        spaces.now_s += 1.5
    return spaces
