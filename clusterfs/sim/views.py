"""Agreed views in one process: one truth, of which each node learns after a seeded delay.

`Agreement` is the provider: a compare-and-swap on the view, by the same pure functions that real
membership uses. `SimViews` is one node's membership; the world declares deaths, nobody detects.

Invariant: a node that is out of the view gets no later view; it is lost.
"""

import random
from collections.abc import Callable, Iterable

import trio

from clusterfs.cluster import membership
from clusterfs.cluster.views import Member, State, View
from clusterfs.errors import Unavailable

Subscriber = Callable[[View, View], None]


class Agreement:
    """The one truth."""

    def __init__(self, rng: random.Random, groups: int, replicas: int, delay_s: float) -> None:
        self.rng = rng
        self.delay_s = delay_s
        self.view = membership.founded("simulated", groups, replicas)
        self.changed = trio.Event()
        self.stopped_ever = False  # some group lost all its in-sync replicas at some time
        self._incarnation = 0

    def propose(self, change: Callable[[View], View | None]) -> View:
        """Apply a change to the truth."""
        proposal = change(self.view)
        if proposal is not None:
            proposal.validate()
            self.view = proposal
            self.stopped_ever |= any(proposal.stopped)
            changed, self.changed = self.changed, trio.Event()
            changed.set()
        return self.view

    def join(self, node: int, dead: Iterable[int] = (), *, weight: int = 1) -> int:
        """Let another start of a node in; returns its incarnation."""
        self._incarnation += 1
        name, brick = f"n{node}", f"brick{node}"
        member = Member(node, self._incarnation, name, f"{name}:1", State.UP, brick, weight)
        self.propose(lambda view: membership.joined(view, member, tuple(dead)))
        return self._incarnation

    def expel(self, incarnations: Iterable[int]) -> None:
        """Declare members leaving."""
        gone = frozenset(incarnations)
        self.propose(lambda view: membership.leaving(view, gone))

    def remove(self, incarnations: Iterable[int]) -> None:
        """Declare members down."""
        gone = frozenset(incarnations)
        self.propose(lambda view: membership.removed(view, gone))


class SimViews:
    """One node's membership."""

    def __init__(self, agreement: Agreement, node: int, incarnation: int) -> None:
        self._agreement = agreement
        self.node = node
        self.incarnation = incarnation
        self.lost = trio.Event()
        self.view = agreement.view
        self._adopted = trio.Event()
        self._subscribers: list[Subscriber] = []
        self.before: Callable[[View], None] = lambda _view: None
        self.dropped: list[tuple[int, str]] = []

    async def run(self) -> None:
        """Follow the truth, a little late, sometimes skipping views."""
        agreement = self._agreement
        while not self.lost.is_set():
            if agreement.view.epoch == self.view.epoch:
                await agreement.changed.wait()
            await trio.sleep(agreement.rng.random() * agreement.delay_s)
            self.adopt(agreement.view)

    def adopt(self, view: View) -> None:
        """Enter a view."""
        if self.lost.is_set() or view.epoch <= self.view.epoch:
            return
        if not view.has(self.node, self.incarnation):
            self.lost.set()
            return
        old, self.view = self.view, view
        self.before(view)
        for callback in self._subscribers:
            callback(old, view)
        adopted, self._adopted = self._adopted, trio.Event()
        adopted.set()

    def rejoin(self, incarnation: int) -> None:
        """Be another incarnation; `run` must be started again."""
        assert self.lost.is_set()
        self.incarnation = incarnation
        self.lost = trio.Event()
        self.adopt(self._agreement.view)

    def lease_left_s(self) -> float:
        """A member's lease holds as long as the truth has it."""
        return 0.0 if self.lost.is_set() else 1.0

    async def entered(self, epoch: int) -> None:
        """Wait for a view."""
        while self.view.epoch < epoch:
            await self._adopted.wait()

    def subscribe(self, callback: Subscriber) -> None:
        """Call back at each change."""
        self._subscribers.append(callback)

    async def report_in_sync(self, groups: Iterable[int]) -> set[int]:
        """Say that this node misses nothing."""
        return await self._propose(
            groups, lambda view, some: membership.in_sync(view, self.node, self.incarnation, some)
        )

    async def restart_groups(self, groups: Iterable[int]) -> set[int]:
        """Open stopped groups."""
        return await self._propose(groups, membership.restarted)

    async def drop_replica(
        self, node: int, groups: Iterable[int] | None = None, reason: str = ""
    ) -> None:
        """Take a replica out of its sets."""
        member = self.view.member(node)
        if member is None:
            return
        self.dropped.append((node, reason))
        incarnation = member.incarnation
        wanted = None if groups is None else tuple(groups)
        await self._delay()
        self._agreement.propose(
            lambda view: membership.replica_dropped(view, node, incarnation, wanted)
        )

    async def return_replica(self) -> None:
        """Let this node's replica sync again."""
        await self._delay()
        self._agreement.propose(
            lambda view: membership.replica_returned(view, self.node, self.incarnation)
        )

    async def _propose(
        self, groups: Iterable[int], change: Callable[[View, set[int]], View | None]
    ) -> set[int]:
        known = self.view
        await self._delay()
        truth = self._agreement.view
        current = {g for g in groups if truth.generation[g] == known.generation[g]}
        self._agreement.propose(lambda view: change(view, current))
        return current

    async def _delay(self) -> None:
        await trio.sleep(self._agreement.rng.random() * self._agreement.delay_s)
        if self.lost.is_set():
            raise Unavailable("this incarnation is no member any more")
