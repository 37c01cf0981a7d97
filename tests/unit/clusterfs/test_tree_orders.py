"""Orders for a tree of locks: only its master carries them out, whoever was asked."""

from typing import Any

import pytest

from clusterfs.tree_orders import CHANNEL, TreeOrders
from dlm.errors import PeerLost
from dlm.net import Malformed

ROOT = "00000000000000aa"
NAMES = {1: "n1", 2: "n2", 3: "n3"}


class Trees:
    """What one node masters, and what it was told to do."""

    def __init__(self, *roots: str, pinned: int = 0) -> None:
        self.roots = {bytes.fromhex(root) for root in roots}
        self.pinned = pinned
        self.done: list[tuple[Any, ...]] = []
        self.blind = 0  # so many looks at first

    def describe(self, root: bytes) -> dict[str, object] | None:
        if self.blind:
            self.blind -= 1
            return None
        known = {"master": 2, "locks": 3, "pinned": self.pinned, "moving_to": 0, "rates": {}}
        return known if root in self.roots else None

    def send(self, root: bytes, target: int) -> None:
        self.done.append(("send", root.hex(), target))

    def pin(self, root: bytes, target: int) -> None:
        self.done.append(("pin", root.hex(), target))

    def unpin(self, root: bytes) -> None:
        self.done.append(("unpin", root.hex()))


class Mesh:
    """Peers that answer; node 3 is not connected."""

    def __init__(self) -> None:
        self.handlers: dict[int, TreeOrders] = {}
        self._next = 1

    def register(self, channel: int, handler: TreeOrders) -> None:
        assert channel == CHANNEL
        self.handlers[self._next] = handler
        self._next += 1

    async def call(self, node: int, _channel: int, body: bytes) -> tuple[bytes, bytes]:
        if node not in self.handlers:
            raise PeerLost(node)
        answer = self.handlers[node].begin_call(1, 1, 1, body, b"")
        assert isinstance(answer, tuple)
        return answer


class Pair:
    """Node 1, which is asked, and node 2."""

    def __init__(self, first: Trees, second: Trees) -> None:
        self.trees = {1: first, 2: second}
        mesh = Mesh()
        for node, trees in self.trees.items():
            TreeOrders(mesh, lambda trees=trees: trees, lambda n=node: n, lambda: NAMES)  # type: ignore[arg-type, misc]
        self.orders = mesh.handlers[1]

    async def ask(self, **order: Any) -> dict[str, Any]:
        return await self.orders.take({"request": "lock_tree", "root": ROOT, **order})


@pytest.mark.parametrize(
    ("order", "done"),
    [
        ({"action": "show"}, []),
        ({"action": "migrate", "node": "n3"}, [("send", ROOT, 3)]),
        ({"action": "pin", "node": "n1"}, [("pin", ROOT, 1)]),
        ({"action": "pin"}, [("pin", ROOT, 2)]),
        ({"action": "unpin"}, [("unpin", ROOT)]),
    ],
)
async def test_the_master_obeys_and_nobody_else(order: dict[str, Any], done: list[Any]) -> None:
    pair = Pair(Trees(), Trees(ROOT))
    reply = await pair.ask(**order)
    assert (reply["master"], reply["locks"]) == (2, 3)
    assert reply["names"] == {"1": "n1", "2": "n2", "3": "n3"}
    assert pair.trees[2].done == done
    assert not pair.trees[1].done


async def test_the_asked_node_obeys_itself() -> None:
    pair = Pair(Trees(ROOT), Trees())
    await pair.ask(action="migrate", node="n2")
    assert pair.trees[1].done == [("send", ROOT, 2)]


async def test_what_is_pinned_elsewhere_is_not_sent_away() -> None:
    pair = Pair(Trees(), Trees(ROOT, pinned=2))
    assert "pinned" in (await pair.ask(action="migrate", node="n1"))["refused"]
    assert "refused" not in await pair.ask(action="migrate", node="n2")
    assert pair.trees[2].done == [("send", ROOT, 2)]


@pytest.mark.usefixtures("autojump_clock")
async def test_a_tree_on_its_way_is_asked_for_again_and_a_missing_one_is_said_to_be() -> None:
    pair = Pair(Trees(), Trees(ROOT))
    pair.trees[2].blind = 3
    assert (await pair.ask())["master"] == 2
    assert (await Pair(Trees(), Trees()).ask())["master"] == 0


@pytest.mark.parametrize(
    ("order", "complaint"),
    [
        ({"node": "n9"}, "no member is called 'n9'; there are: n1, n2, n3"),
        ({"root": "xyz"}, "not an order"),
        ({"root": None}, "not an order"),
        ({"action": "melt"}, "not an order"),
    ],
)
async def test_nonsense_is_refused(order: dict[str, Any], complaint: str) -> None:
    reply = await Pair(Trees(), Trees(ROOT)).ask(**order)
    assert reply["ok"] is False
    assert complaint in reply["error"]


@pytest.mark.parametrize("body", [b"{}", b"no", b'{"root": "x", "action": "show"}'])
def test_a_peer_that_sends_garbage_is_told(body: bytes) -> None:
    orders = Pair(Trees(), Trees()).orders
    with pytest.raises(Malformed):
        orders.begin_call(2, 2, 1, body, b"")
    with pytest.raises(Malformed):
        orders.message(2)
