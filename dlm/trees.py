"""Which node masters which tree of locks, for those who look after a cluster: look, send, pin.

Everything here concerns trees that this node masters; ask each node for the one that does.
"""

from collections.abc import Callable

import trio

from dlm.core.affinity import Policy
from dlm.core.lockspace import LockspaceCore
from dlm.events import Depart, Event, Place

_LOOK_S = 0.02


class Trees:
    """The trees of one lockspace."""

    def __init__(self, core: LockspaceCore, handle: Callable[[Event], None]) -> None:
        self._core = core
        self._handle = handle

    def move_by_use(self, policy: Policy | None = None) -> None:
        """Let trees move to the nodes that use them most, from now on."""
        self._core.affinity.enable(policy or Policy())

    def describe(self, root: bytes) -> dict[str, object] | None:
        """Return what there is to know of a tree; None: this node does not master it.

        Keys: master (this node), locks, pinned (to which node, or 0), moving_to (a node, or 0),
        rates (requests a second, smoothed, by node; those asked for in the last seconds).
        """
        core = self._core
        tree = core.mastery.trees.get(root)
        if tree is None:
            return None
        departure = core.mastery.departures.get(root)
        moving_to = core.affinity.wishes.get(root, 0)
        return {
            "master": core.here.me,
            "locks": tree.locks(),
            "pinned": tree.pinned,
            "moving_to": moving_to if departure is None else departure.target[0],
            "rates": {
                str(node): round(rate, 1)
                for node, rate in sorted(core.affinity.rates.get(root, {}).items())
            },
        }

    @property
    def longest_freeze_s(self) -> float:
        """How long a tree that left was frozen at most."""
        return self._core.migration.longest_s

    def send(self, root: bytes, target: int) -> None:
        """Let another member master a tree of ours that is not pinned, as soon as it can go."""
        self._handle(Place(root, target, pin=False))

    def pin(self, root: bytes, target: int) -> None:
        """Send a tree of ours to a node, and keep it there."""
        self._handle(Place(root, target, pin=True))

    def unpin(self, root: bytes) -> None:
        """Let it go where it is used again."""
        self._handle(Place(root, 0, pin=True))

    async def leave(self, timeout_s: float) -> bool:
        """Before this node leaves: let others master what they use here; False: not all in time."""
        self._handle(Depart())
        with trio.move_on_after(timeout_s):
            while not (self._core.lost or self._core.affinity.drained):  # noqa: ASYNC110  few looks
                await trio.sleep(_LOOK_S)
            return True
        return False
