"""The client side of durability: ask every replica to sync; at most one round is under way.

A caller that comes while a round is under way joins the next one, for that round may have begun
before the caller's data was applied.

A replica that does not answer, until a view removes it, need not keep those waiting whose own data
does not lie there. They asked the others' replicas because what they saw of other clients may not
be on disk yet: of that it is enough that each group has it on one disk, for a group that is stopped
starts again from the union of what its last in-sync set has. So a round may end without some.

Invariants: a round ends when every replica that is in a set of the current view has synced since it
began; or, if somebody is impatient, at least one in-sync replica of every running group. A caller
returns when a round that began after its call has ended, with no replica missing that it needs.
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


_PATIENCE_S = 0.1


class Round:
    """One request to all replicas."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.begun_s = 0.0
        self.waiting = 0
        self.asked: dict[int, int] = {}  # node -> incarnation
        self.synced = 0
        self.failed = 0
        self.impatient = False  # somebody does not need all replicas
        self.missing = 0  # replicas that it ended without
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

    async def sync(self, needed: Callable[[], int] | None = None) -> bool:
        """Wait for a whole round that begins now or later; tell whether no replica missed it.

        needed: gives the mask of replicas that must not miss it; None: all. Raises BrickFailed,
        LockLost.
        """
        while True:
            mine = await self._round(needed is not None)
            if mine.error is not None:
                raise mine.error
            if not mine.missing:
                return True
            if needed is not None and not needed() & mine.missing:
                return False

    async def _round(self, impatient: bool) -> Round:  # noqa: FBT001
        if self._lost:
            raise LockLost("this node was removed from the cluster")
        if self._current is None:
            mine = self._start(Round())
        else:
            mine = self._next = self._next or Round()
        while impatient and not mine.done.is_set():
            with trio.move_on_after(_PATIENCE_S):
                await mine.done.wait()
            self._hurry()
        await mine.done.wait()
        return mine

    def _hurry(self) -> None:
        """End the round under way, if it is an old one, as soon as may be."""
        current = self._current
        if current is not None and trio.current_time() - current.begun_s >= _PATIENCE_S:
            current.impatient = True
            self._settle()

    def synced(self, node: int, message: Synced) -> None:
        """Take a replica's answer."""
        current = self._current
        if current is None or message.token != self._token:
            return
        current.waiting &= ~(1 << node)
        if message.code is Code.OK:
            current.synced |= 1 << node
        else:
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
        new.begun_s = trio.current_time()
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
        if current.waiting and not (current.impatient and self._covered(current)):
            return
        view = self._site.view
        if current.failed:
            if any(not mask & ~current.failed for mask in view.in_sync):
                current.error = BrickFailed("no replica of some group could sync")
            else:
                for node in nodes_of(current.failed):
                    self._spawn(self._site.views.drop_replica, node, None, "its sync failed")
                return
        current.missing = current.waiting
        self._current = None
        current.done.set()
        if self._next is not None:
            waiting, self._next = self._next, None
            self._start(waiting)

    def _covered(self, current: Round) -> bool:
        """Tell whether of every running group a disk has what was there when the round began."""
        view = self._site.view
        return all(
            stopped or in_sync & current.synced
            for in_sync, stopped in zip(view.in_sync, view.stopped, strict=True)
        )
