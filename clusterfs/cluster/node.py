"""This node's membership: the trio shell round views and verdicts; nothing is decided here.

While an incarnation lasts, it renews its lease, and `_follow` learns of new views and judges the
others. When it is over, `lost` is set and all pauses; only `rejoin` goes on, as a new incarnation.

Invariants:
  * `lease_left_s()` is positive only while no other node can have taken this incarnation's locks;
  * subscribers see views in order, each with this incarnation UP in it, before any waiter does;
    views may be skipped: compare old with new instead of counting;
  * every proposal is a compare-and-swap against the view it was computed from.
"""

import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import structlog
import trio

from clusterfs.cluster import membership
from clusterfs.cluster.incarnation import Incarnation
from clusterfs.cluster.joining import Applicant, Application, admit, check_identity
from clusterfs.cluster.latest import Latest, Subscriber
from clusterfs.cluster.lease import Heartbeats, Reprieve, judge, undecided
from clusterfs.cluster.providers import Identity, Provider, Registration, Snapshot
from clusterfs.cluster.revocation import revoke
from clusterfs.cluster.views import View
from clusterfs.errors import ProviderAway, SetupError, Unavailable

T = TypeVar("T")
Change = Callable[[View], View | None]
# Called with each new incarnation before it joins; returns the host:port where it can be reached.
Announce = Callable[[Registration], Awaitable[str]]

REMOVED = "removed/"  # notes: the names of nodes that were removed for good
_PROVIDER_PATIENCE_S = 60.0


def boottime_s() -> float:
    """Return seconds since boot, counting those the machine was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Membership:
    """One node in the cluster. Made by `joined`."""

    def __init__(
        self,
        provider: Provider,
        identity: Identity,
        applicant: Applicant,
        announce: Announce,
        now: Callable[[], float],
    ) -> None:
        self.identity = identity
        self._provider = provider
        self._applicant = applicant
        self._announce = announce
        self._now = now
        self._log = structlog.get_logger(package="cluster", name=applicant.name)
        self._tick_s = min(0.1, identity.lease_s / 20)
        self._current: Incarnation | None = None
        self._latest = Latest()
        self._heartbeats = Heartbeats(identity.lease_s)
        self._caches_dropped: frozenset[int] = frozenset()
        self._accused: set[int] = set()
        self._reprieve = Reprieve(identity.lease_s)
        self._poked = trio.Event()
        self._begun = trio.Event()
        self._proposals = self._conflicts = 0

    @classmethod
    @asynccontextmanager
    async def joined(
        cls,
        provider: Provider,
        applicant: Applicant,
        announce: Announce,
        *,
        lease_s: float = 5.0,
        now: Callable[[], float] = boottime_s,
    ) -> AsyncIterator["Membership"]:
        """Join the cluster, and be a member while the block runs.

        Leaving the block just stops: others notice when the lease has ended. Call `leave` for a
        clean end.

        Raises:
            SetupError: the provider, the brick and the applicant's facts do not fit together.
        """
        found = not applicant.cluster
        identity = await insist(lambda: provider.identity(lease_s, found=found))
        check_identity(identity, applicant, lease_s)
        self = cls(provider, identity, applicant, announce, now)
        await self._join(None, _PROVIDER_PATIENCE_S)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(provider.run)
            nursery.start_soon(self._live)
            try:
                yield self
            finally:
                self._me.retire()
                nursery.cancel_scope.cancel()

    @property
    def node(self) -> int:
        """This node's number, the same for every start."""
        return self._me.node

    @property
    def incarnation(self) -> int:
        """The number of this start; another one after `rejoin`."""
        return self._me.number

    @property
    def lost(self) -> trio.Event:
        """Set once this incarnation is over; another event after `rejoin`."""
        return self._me.lost

    @property
    def view(self) -> View:
        """The latest view in which this incarnation is UP."""
        assert self._latest.view is not None, "not joined yet"
        return self._latest.view

    def lease_left_s(self) -> float:
        """Return for how long this node may still serve; not positive: stop at once."""
        return self._me.left_s()

    async def entered(self, epoch: int) -> None:
        """Wait until the view is at `epoch` or later."""
        while self.view.epoch < epoch:
            self._poked.set()
            await self._latest.wait_later()

    async def names(self) -> dict[int, str]:
        """Return the name of every node that ever joined. Raises ProviderAway."""
        return await self._provider.names()

    def subscribe(self, callback: Subscriber) -> None:
        """Call back with (old, new) at each change of the view."""
        self._latest.subscribe(callback)

    async def propose(self, change: Change) -> View:
        """Apply a change to the current view until it is agreed; returns the view it led to.

        `change` may be called several times, and must return None when nothing is to be done.

        Raises:
            Unavailable: this incarnation is no member any more, or the provider stays away.
        """
        while True:
            await self._refresh()
            view = self.view
            proposal = change(view)
            if proposal is None:
                return view
            if await self._swapped(proposal):
                return proposal

    def accuse(self, node: int, incarnation: int) -> None:
        """Say that a fresh connection to that incarnation failed too: its process is gone."""
        view, me = self.view, self.node
        member = view.member(node)
        if member is None or member.incarnation != incarnation or node == me:
            return
        if not self._reprieve.holds(view, me, member, self._now()):
            self._accused.add(incarnation)
            self._poked.set()

    async def report_in_sync(self, groups: Iterable[int]) -> set[int]:
        """Say that this node's store misses nothing in these groups; returns those that count.

        A group whose generation moved on meanwhile does not count: what was true in the view that
        this node had may not be true any more. Raises Unavailable.
        """
        node, incarnation = self.node, self.incarnation
        return await self._propose_groups(
            groups,
            lambda view, current: membership.in_sync(view, node, incarnation, current),
            lambda view, group: bool(view.in_sync[group] & 1 << node),
        )

    async def restart_groups(self, groups: Iterable[int]) -> set[int]:
        """Open stopped groups after their roll-forward; returns those that count.

        As for `report_in_sync`, a group whose generation moved on does not count. Raises
        Unavailable.
        """
        return await self._propose_groups(
            groups,
            membership.restarted,
            lambda view, group: not view.stopped[group],
        )

    async def drop_replica(
        self, node: int, groups: Iterable[int] | None = None, reason: str = ""
    ) -> None:
        """Take the replica that this node knows as `node` out of its sets; its client stays.

        With groups it must sync those again; with None it is out until its node's next start. The
        only in-sync replica of a group stays. Raises Unavailable.
        """
        member = self.view.member(node)
        if member is None:
            return
        wanted = None if groups is None else sorted(groups)
        incarnation = member.incarnation
        before = self.view
        after = await self.propose(
            lambda view: membership.replica_dropped(view, node, incarnation, wanted)
        )
        if after is not before:
            told = {"replica": member.name, "groups": wanted, "reason": reason}
            self._log.warning("replica dropped", **told)

    async def return_replica(self) -> None:
        """Let this node's replica sync again after it was dropped. Raises Unavailable."""
        node, incarnation = self.node, self.incarnation
        await self.propose(lambda view: membership.replica_returned(view, node, incarnation))

    async def caches_dropped(self) -> None:
        """Tell the others that this lost incarnation serves nothing, nor does its kernel.

        With the provider away they are not told, and wait for the end of the lease instead.
        """
        assert self.lost.is_set(), "a serving node has caches"
        try:
            await self._provider.caches_dropped(self.node, self.incarnation)
        except ProviderAway as error:
            self._me.failed(error)

    async def leave(self) -> View | None:
        """Leave cleanly; this node must have stopped serving and dropped its caches before.

        Gives up after one lease without the provider: then the others have noticed by themselves.
        Returns the view in which it had left, if that is known.
        """
        if self._me.serving:
            self._me.retire()
            with trio.move_on_after(self.identity.lease_s):
                while True:
                    done, view = await self._left()
                    if done:
                        return view
        return None

    async def rejoin(self) -> None:
        """Join again as a new incarnation after `lost`; waits while the provider is away.

        The caller has stopped serving and has dropped its kernel's caches. `announce` is called
        with the new numbers first; subscribers are called with the first view of the new
        incarnation before this returns. Raises SetupError.
        """
        assert self.lost.is_set(), "rejoin is for incarnations that are over"
        self._applicant = self._applicant._replace(store_epoch=self.view.epoch)
        await self._join(self.incarnation, math.inf)

    async def forget(self, node: int, now_s: float) -> None:
        """Forget a node that is no member and in no set; it may not start again under its name.

        Certificates made for it until now (seconds since 1970) count no more.
        Raises Unavailable.
        """
        name = (await self._provider.names())[node]
        await revoke(self._provider, name, now_s)
        note = REMOVED + name
        while note not in await self._provider.notes(note):
            await self._provider.set_note(note, b"", None)
        await self.propose(lambda view: membership.reinstated(view, node))
        await self.propose(lambda view: membership.missed(view, {node}))
        await self._provider.forget(name)

    def statistics(self) -> dict[str, Any]:
        """Return counters and state for administrators."""
        me = self._me
        return {
            "node": me.node,
            "incarnation": me.number,
            "epoch": self.view.epoch,
            "lease_left_s": max(0.0, me.left_s()),
            "renewals": me.renewals,
            "provider_failures": me.failures,
            "proposals": self._proposals,
            "conflicts": self._conflicts,
        }

    @property
    def _me(self) -> Incarnation:
        assert self._current is not None, "not joined yet"
        return self._current

    async def _join(self, replaces: int | None, patience_s: float) -> None:
        """Register, announce, wait until the others' state is known, and get into the view."""
        await insist(self._check_not_removed, patience_s)
        registration = await insist(
            lambda: self._provider.register(self._applicant.name, self._applicant.store_id),
            patience_s,
        )
        address = await self._announce(registration)
        application = Application(self.identity, self._applicant, registration, address, replaces)
        self._heartbeats = Heartbeats(self.identity.lease_s)
        sent_s = self._now()
        while True:
            snapshot = await insist(self._provider.read, patience_s)
            view = snapshot.view
            if view is not None and view.has(registration.node, registration.incarnation):
                break  # an attempt whose answer was lost
            now_s = self._now()
            self._heartbeats.observe(snapshot.beats, now_s)
            admission = admit(application, snapshot, self._heartbeats, now_s)
            if admission is not None:
                sent_s = self._now()
                view = admission.view
                if await self._swapped(view, self._heartbeats.beats(admission.silent)):
                    break
            await trio.sleep(self._tick_s)
        self._begin(registration, view, sent_s)

    async def _check_not_removed(self) -> None:
        name = self._applicant.name
        if REMOVED + name in await self._provider.notes(REMOVED + name):
            raise SetupError(
                f"node {name} was removed from the cluster; `clusterfs cluster token {name}` on "
                "one of its nodes lets it join again, with an empty brick"
            )

    def _begin(self, registration: Registration, view: View, sent_s: float) -> None:
        self._current = Incarnation(
            registration, self.identity.lease_s, sent_s, self._provider, self._now
        )
        self._accused.clear()
        self._log.info("joined", node=self.node, incarnation=self.incarnation, epoch=view.epoch)
        self._adopt(view)
        begun, self._begun = self._begun, trio.Event()
        begun.set()

    async def _live(self) -> None:
        """Run each incarnation until it is over."""
        while True:
            me, next_begun = self._me, self._begun
            async with trio.open_nursery() as nursery:
                nursery.start_soon(me.keep, self._poke)
                nursery.start_soon(self._follow, me)
                await me.over.wait()
                nursery.cancel_scope.cancel()
            await next_begun.wait()

    def _poke(self) -> None:
        self._poked.set()

    async def _follow(self, me: Incarnation) -> None:
        while me.left_s() > 0:
            with trio.move_on_after(self._tick_s):
                await self._poked.wait()
            poked = self._poked.is_set()
            self._poked = trio.Event()
            try:
                if await self._provider.changed() or poked:
                    self._take(await self._provider.read())
                else:
                    self._heartbeats.watch(self._now())
                await self._judge(me)
            except ProviderAway as error:
                me.failed(error)

    async def _judge(self, me: Incarnation) -> None:
        """Propose to remove who is gone; one attempt, for the next tick looks again."""
        others = [member for member in self.view.members if member.node != me.node]
        dropped = self._caches_dropped
        verdict = judge(others, self._heartbeats, self._accused, dropped, self._now())
        if not any(verdict) or not await me.renew():
            return
        view = self.view
        down = verdict.down - undecided(view, verdict.down, self._heartbeats, self._now())
        keep = self._applicant.keeps_places
        proposal = membership.removed(view, down, keep=keep)
        if proposal is None:
            proposal = membership.leaving(view, verdict.leaving, keep=keep)
            self._accused -= verdict.leaving
        if proposal is not None:
            gone = down or verdict.leaving
            if await self._swapped(proposal, self._heartbeats.beats(gone - dropped)):
                names = sorted(m.name for m in view.members if m.incarnation in gone)
                self._log.warning("removed" if down else "leaving", members=names)

    async def _refresh(self) -> None:
        """Read the current view. Raises Unavailable when this incarnation is over."""
        me = self._me
        while me.left_s() > 0:
            try:
                self._take(await self._provider.read())
            except ProviderAway as error:
                me.failed(error)
                await trio.sleep(self._tick_s)
            else:
                if me.left_s() > 0:
                    return
        raise Unavailable("this incarnation is no member of the cluster any more")

    async def _swapped(self, proposal: View, beats: Mapping[int, int] | None = None) -> bool:
        """Compare and swap; False also when it is not known whether it happened."""
        proposal.validate()
        try:
            swapped = await self._provider.propose(proposal, beats or {})
        except ProviderAway as error:
            self._log.warning("proposal without an answer", epoch=proposal.epoch, error=str(error))
            await trio.sleep(self._tick_s)
            return False
        if not swapped:
            self._conflicts += 1
            return False
        self._proposals += 1
        self._adopt(proposal)
        return True

    async def _propose_groups(
        self,
        groups: Iterable[int],
        change: Callable[[View, set[int]], View | None],
        reached: Callable[[View, int], bool],
    ) -> set[int]:
        known, wanted = self.view, set(groups)
        current: set[int] = set()

        def change_current(view: View) -> View | None:
            current.clear()
            current.update(g for g in wanted if view.generation[g] == known.generation[g])
            return change(view, current)

        result = await self.propose(change_current)
        return {group for group in current if reached(result, group)}

    async def _left(self) -> tuple[bool, View | None]:
        """Try to leave; tell whether it has left, and in which view, if it did so now."""
        try:
            view = (await self._provider.read()).view
            assert view is not None
            keep = self._applicant.keeps_places
            proposal = membership.left(view, self.node, self.incarnation, keep=keep)
            if proposal is None:
                return True, None
            left = await self._provider.propose(proposal, {})
        except ProviderAway as error:
            self._me.failed(error)
            await trio.sleep(self._tick_s)
            return False, None
        return left, proposal if left else None

    def _take(self, snapshot: Snapshot) -> None:
        self._heartbeats.observe(snapshot.beats, self._now())
        self._caches_dropped = snapshot.caches_dropped
        if snapshot.view is not None:
            self._adopt(snapshot.view)

    def _adopt(self, view: View) -> None:
        me = self._current
        if me is None or not me.serving or not self._latest.newer(view):
            return
        if view.has(me.node, me.number):
            self._latest.adopt(view)
        else:
            me.lose("the others have removed it from the view")


async def insist(call: Callable[[], Awaitable[T]], patience_s: float = _PROVIDER_PATIENCE_S) -> T:
    """Call until the provider answers; raises SetupError when it stays away for that long."""
    failure = ProviderAway("the store of views does not answer")
    with trio.move_on_after(patience_s):
        while True:
            try:
                return await call()
            except ProviderAway as error:
                failure = error
                await trio.sleep(0.05)
    raise SetupError(str(failure))
