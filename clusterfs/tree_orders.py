"""Orders for one tree of locks: show it, send it to a node, pin it, from any node of the cluster.

Only a tree's master can carry an order out, and no other node knows for sure who that is: all are
asked at once. A tree that is just on its way is nobody's for a moment: then they are asked again.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Literal

import msgspec
import trio

from dlm.errors import PeerLost
from dlm.net import Answer, Malformed, Mesh, Refused
from dlm.trees import Trees

CHANNEL = 5
ANSWER_S = 5.0  # how long a peer may take
_ROUNDS = 5
_PAUSE_S = 0.1


class Order(msgspec.Struct, frozen=True):
    """What the master of a tree is to do."""

    root: str  # hexadecimal
    action: Literal["show", "migrate", "pin", "unpin"] = "show"
    target: int = 0  # a node; for a pin 0: where it is


class TreeOrders:
    """Takes orders from the admin socket and from peers."""

    def __init__(
        self,
        mesh: Mesh,
        trees: Callable[[], Trees],
        me: Callable[[], int],
        members: Callable[[], dict[int, str]],
    ) -> None:
        self._mesh = mesh
        self._trees = trees
        self._me = me
        self._members = members  # every member, this node too, and its name
        mesh.register(CHANNEL, self)

    def message(self, *_: object) -> None:
        """Refuse: orders are given by calls."""
        raise Malformed("the channel of orders takes no messages")

    def begin_call(
        self, sender: int, incarnation: int, epoch: int, body: bytes, payload: bytes
    ) -> Answer:
        """Carry out a peer's order, if this node masters the tree."""
        del sender, incarnation, epoch, payload
        try:
            return b"", msgspec.json.encode(self._obey(msgspec.json.decode(body, type=Order)))
        except (msgspec.DecodeError, ValueError) as bad:
            raise Malformed(str(bad)) from bad

    def take(self, request: Mapping[str, Any]) -> Awaitable[dict[str, Any]]:
        """Answer the admin request "lock_tree": {root, action, node}; see `docs/operations.md`.

        The reply has the keys of Trees.describe before the order was carried out, with `refused`
        if it was not, and `names` of the nodes; `master` is 0 if nobody has a lock there.
        """
        return self._take(request)

    async def _take(self, request: Mapping[str, Any]) -> dict[str, Any]:
        names = self._members()
        known = {name: node for node, name in names.items()}
        target = request.get("node")
        if target is not None and target not in known:
            listed = ", ".join(sorted(known))
            return {"ok": False, "error": f"no member is called {target!r}; there are: {listed}"}
        fields = {
            "root": request.get("root"),
            "action": request.get("action", "show"),
            "target": known.get(str(target), 0),
        }
        try:
            order = msgspec.convert(fields, Order)
            bytes.fromhex(order.root)
        except (msgspec.ValidationError, ValueError) as bad:
            return {"ok": False, "error": f"not an order: {bad}"}
        found = await self._ask_all(order)
        return {"names": {str(n): name for n, name in names.items()}, **(found or {"master": 0})}

    async def _ask_all(self, order: Order) -> dict[str, Any] | None:
        for turn in range(_ROUNDS):
            if turn:
                await trio.sleep(_PAUSE_S)
            found: list[dict[str, Any]] = []
            async with trio.open_nursery() as nursery:
                for node in self._members():
                    nursery.start_soon(self._ask, node, order, found)
            if found:
                return found[0]
        return None

    async def _ask(self, node: int, order: Order, found: list[dict[str, Any]]) -> None:
        if node == self._me():
            answer = self._obey(order)
        else:
            answer = None
            with suppress(PeerLost, Refused, trio.TooSlowError), trio.fail_after(ANSWER_S):
                _, body = await self._mesh.call(node, CHANNEL, msgspec.json.encode(order))
                answer = msgspec.json.decode(body, type=dict[str, Any] | None)
        if answer is not None:
            found.append(answer)

    def _obey(self, order: Order) -> dict[str, Any] | None:
        """Carry out an order for a tree that is mastered here; else None."""
        trees, root = self._trees(), bytes.fromhex(order.root)
        known = trees.describe(root)
        if known is None:
            return None
        pinned = known["pinned"]
        if order.action == "migrate":
            if pinned and pinned != order.target:
                return known | {"refused": "it is pinned to another node"}
            trees.send(root, order.target)
        elif order.action == "pin":
            trees.pin(root, order.target or self._me())
        elif order.action == "unpin":
            trees.unpin(root)
        return known
