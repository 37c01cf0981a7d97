"""The client side of durability: ask every replica to sync; at most one round is under way.

A caller that comes while a round is under way joins the next one, for that round may have begun
before the caller's data was applied.

Invariant: a round is done when every replica that is in a set of the current view has synced since
the round began.
"""

from collections.abc import Callable

import trio

from clusterfs.cluster.views import nodes_of
from clusterfs.errors import BrickFailed
from clusterfs.volume.messages import Code, Message, Sync, Synced
from clusterfs.volume.placement import replica_nodes
from clusterfs.volume.site import Site, Spawn
from dlm.errors import LockLost
from dlm.net.wire import encode


class Round:
    """One request to all replicas."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.waiting = 0
        self.asked: dict[int, int] = {}  # node -> incarnation
        self.failed = 0
        self.error: Exception | None = None


class Syncer:
    """This node's sync rounds."""

    def __init__(self, site: Site, spawn: Spawn, local: Callable[[Message], None]) -> None:
        self._site = site
        self._spawn = spawn
        self._local = local
        self._token = 0
        self._current: Round | None = None
        self._next: Round | None = None
        self._lost = False
        self.rounds = 0

    async def sync(self) -> None:
        """Wait for a whole round that begins now or later. Raises BrickFailed, LockLost."""
        if self._lost:
            raise LockLost("this node was removed from the cluster")
        if self._current is None:
            mine = self._start(Round())
        else:
            mine = self._next = self._next or Round()
        await mine.done.wait()
        if mine.error is not None:
            raise mine.error

    def synced(self, node: int, message: Synced) -> None:
        """Take a replica's answer."""
        current = self._current
        if current is None or message.token != self._token:
            return
        current.waiting &= ~(1 << node)
        if message.code is not Code.OK:
            current.failed |= 1 << node
        self._settle()

    def entered(self) -> None:
        """Do not wait for replicas that left; one that came syncs before it counts as in sync.

        A node that came back at once, in the view that it left by, has not heard the question.
        """
        current, view = self._current, self._site.view
        if current is not None:
            replicas = replica_nodes(view)
            for node, incarnation in current.asked.items():
                if not view.has(node, incarnation):
                    replicas &= ~(1 << node)
            current.waiting &= replicas
            current.failed &= replicas
            self._settle()

    def lose(self) -> None:
        """Fail every wait."""
        self._lost = True
        for waiting in (self._current, self._next):
            if waiting is not None:
                waiting.error = LockLost("this node was removed from the cluster")
                waiting.done.set()
        self._current = self._next = None

    def begin(self) -> None:
        """Start anew as another incarnation."""
        self._lost = False

    def _start(self, new: Round) -> Round:
        self.rounds += 1
        self._current = new
        self._token += 1
        site = self._site
        mask = replica_nodes(site.view)
        new.waiting = mask
        new.asked = {m.node: m.incarnation for m in site.view.members if mask >> m.node & 1}
        body = encode(Sync(self._token, site.view.epoch))
        for node in nodes_of(mask & ~site.bit):
            site.send(node, body)
        if mask & site.bit:
            self._local(Sync(self._token, site.view.epoch))
        return new

    def _settle(self) -> None:
        """Finish the round once all answered; a replica whose sync failed must leave first."""
        current = self._current
        assert current is not None
        if current.waiting:
            return
        view = self._site.view
        if current.failed:
            if any(not mask & ~current.failed for mask in view.in_sync):
                current.error = BrickFailed("no replica of some group could sync")
            else:
                for node in nodes_of(current.failed):
                    self._spawn(self._site.views.drop_replica, node, None, "its sync failed")
                return
        self._current = None
        current.done.set()
        if self._next is not None:
            waiting, self._next = self._next, None
            self._start(waiting)
