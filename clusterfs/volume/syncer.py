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

from clusterfs.cluster.views import mask_of, nodes_of
from clusterfs.errors import BrickFailed
from clusterfs.volume.messages import Code, Message, Sync, Synced
from clusterfs.volume.site import Site, Spawn
from dlm.errors import LockLost
from dlm.net.wire import encode

_PATIENCE_S = 0.1


class Round:
    """One request to all replicas."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.token = 0
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
        self._silent = 0  # replicas that missed the last round
        self._answers: dict[int, int] = {}  # node -> the last round that it has synced for
        self.rounds = 0

    async def sync(self, needed: Callable[[], int] | None = None) -> bool:
        """Wait for a whole round that begins now or later; tell whether no replica missed it.

        needed: gives the mask of replicas that must not miss it; None: all. Raises BrickFailed,
        LockLost.
        """
        mine = latest = await self._round(needed is not None)
        while True:
            if latest.error is not None:
                raise latest.error
            missing = mine.missing & self._asked_still(mine)
            for node in nodes_of(missing):
                if self._answers.get(node, 0) >= mine.token:
                    missing &= ~(1 << node)  # late
            if not missing:
                return True
            if needed is not None and not needed() & missing:
                return False
            with trio.move_on_after(_PATIENCE_S):  # a round without the silent one may end at once
                await self._site.changed()
            latest = await self._round(needed is not None)

    async def _round(self, impatient: bool) -> Round:  # noqa: FBT001
        if self._lost:
            raise LockLost("this node was removed from the cluster")
        if self._current is None:
            mine = self._start(Round())
        else:
            mine = self._next = self._next or Round()
        mine.impatient |= impatient
        while impatient and not mine.done.is_set():
            if self._current is not None and self._current.waiting:
                self._current.impatient = True
                self._settle()
            with trio.move_on_after(_PATIENCE_S):
                await mine.done.wait()
        await mine.done.wait()
        return mine

    def synced(self, node: int, message: Synced) -> None:
        """Take a replica's answer."""
        self._silent &= ~(1 << node)
        if message.code is Code.OK:
            self._answers[node] = max(message.token, self._answers.get(node, 0))
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
        current = self._current
        if current is not None:
            replicas = self._asked_still(current)
            current.waiting &= replicas
            current.failed &= replicas
            self._settle()

    def _asked_still(self, asked: Round) -> int:
        """Return the mask of the replicas of the view that heard the question."""
        view = self._site.view
        gone = mask_of(n for n, incarnation in asked.asked.items() if not view.has(n, incarnation))
        return self._site.replicas & ~gone

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
        self._silent = 0
        self._answers.clear()

    def _start(self, new: Round) -> Round:
        self.rounds += 1
        self._current = new
        self._token += 1
        new.token = self._token
        site = self._site
        mask = site.replicas
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
        if current.waiting and not (current.impatient and self._may_end(current)):
            return
        view = self._site.view
        if current.failed:
            if any(not mask & ~current.failed for mask in view.in_sync):
                current.error = BrickFailed("no replica of some group could sync")
            else:
                for node in nodes_of(current.failed):
                    self._spawn(self._site.views.drop_replica, node, None, "its sync failed")
                return
        self._silent = current.missing = current.waiting
        self._current = None
        current.done.set()
        if self._next is not None:
            waiting, self._next = self._next, None
            self._start(waiting)

    def _may_end(self, current: Round) -> bool:
        """Tell whether all that it waits for are silent, and a disk has a copy of every group."""
        if current.waiting & ~self._silent and trio.current_time() - current.begun_s < _PATIENCE_S:
            return False
        view = self._site.view
        return all(
            stopped or in_sync & current.synced
            for in_sync, stopped in zip(view.in_sync, view.stopped, strict=True)
        )
