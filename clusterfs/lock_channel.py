"""The lock manager's place on the mesh: messages reach it in the view they belong to, or later.

A message of a newer epoch waits until that view is entered, and all that came after it waits too,
so the order in which a peer sent is kept.
"""

from collections import deque
from collections.abc import Awaitable
from typing import Protocol

from clusterfs.cluster.views import View
from dlm.errors import LockLost
from dlm.messages import BadMessage
from dlm.net import Answer, Malformed, Refused
from dlm.node import Lockspace

LOCKS = 1  # the mesh's channel of the lock manager; the volume's is 2
_NO_CALLS = 1


class Node(Protocol):
    """What the channel needs of the daemon."""

    locks: Lockspace

    @property
    def view_epoch(self) -> int:
        """The epoch of the view in force here."""
        ...

    def heard(self, epoch: int) -> None:
        """Note the highest epoch that anybody knows."""
        ...

    def poke(self, epoch: int) -> None:
        """Fetch the view of that epoch soon."""
        ...


class LockChannel:
    """The mesh's side of the lock manager; messages of a newer epoch wait until we entered it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._early: deque[tuple[int, int, int, bytes]] = deque()

    def message(
        self, sender: int, incarnation: int, epoch: int, body: bytes, payload: bytes
    ) -> None:
        """Take one message of a peer's lock manager."""
        del payload
        self._node.heard(epoch)
        if self._early or epoch > self._node.view_epoch:
            self._early.append((sender, incarnation, epoch, body))
            self._node.poke(epoch)
            return
        self._deliver(sender, body)

    def begin_call(
        self, sender: int, incarnation: int, epoch: int, body: bytes, payload: bytes
    ) -> Answer | Awaitable[Answer]:
        """Refuse: locks are asked for by messages."""
        del sender, incarnation, epoch, body, payload
        raise Refused(_NO_CALLS, b"the lock manager takes no calls")

    def drain(self, view: View) -> None:
        """Deliver what may be delivered in this view."""
        while self._early and self._early[0][2] <= view.epoch:
            sender, incarnation, _, body = self._early.popleft()
            if view.has(sender, incarnation):
                self._deliver(sender, body)

    def clear(self) -> None:
        """Forget what waits: it was meant for an incarnation that is over."""
        self._early.clear()

    def _deliver(self, sender: int, body: bytes) -> None:
        try:
            self._node.locks.deliver(sender, body)
        except LockLost:
            return  # meant for an incarnation that is over
        except BadMessage as bad:
            raise Malformed(str(bad)) from bad
