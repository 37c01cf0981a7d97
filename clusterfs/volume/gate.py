"""The group gate: once a client is gone, nobody serves before its last work is everywhere.

In a view from which a client is gone since our gate was last open, or when we may have missed such
a view, this replica answers no read, prepare or commit. It asks every other replica what it
remembers of clients that are gone, pulls what it lacks, decides what was prepared, and waits until
all the others have done so too. A view that comes in between starts this again.

Stopped groups restart in the same way, but over all their objects: once the whole last in-sync set
is back, each takes what another has at a higher version, and then the groups are opened.

Invariants:
  * the gate opens in epoch e only after every in-sync replica has finished its part in epoch e;
  * objects that share a transaction come forward in one local transaction;
  * a client is forgotten only when all have rolled forward and no group is stopped.
"""

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Any

import structlog
import trio

from clusterfs.cluster.views import View, nodes_of
from clusterfs.errors import FilesystemError, Unavailable, WouldBlock
from clusterfs.store.objects import ABSENT, Change, ObjectId, Transaction, Version
from clusterfs.volume.copies import Blockwise, Copy, Moved, deletion, describe, difference
from clusterfs.volume.departed import Departed
from clusterfs.volume.memory import Memory
from clusterfs.volume.merge import newer, reached
from clusterfs.volume.messages import (
    Agree,
    Buried,
    Gone,
    Known,
    List,
    Listing,
    Remembered,
    Touched,
    Trace,
    Unstable,
)
from clusterfs.volume.placement import groups_to_bitmap
from clusterfs.volume.ports import LocalStore
from clusterfs.volume.replica import Replica
from clusterfs.volume.resync import START, Resync
from clusterfs.volume.rollforward import (
    Newest,
    components,
    lacks,
    took_place,
    union,
    verdict,
)
from clusterfs.volume.site import INTERNAL, Site
from dlm.errors import LockLost, PeerLost
from dlm.net.errors import Refused
from dlm.net.wire import decode, encode

_RETRY_S = 0.05
_PAGE = 512


class Gate:
    """This replica's roll-forward, and the flag that lets it serve."""

    def __init__(
        self, site: Site, store: LocalStore, memory: Memory, replica: Replica, resync: Resync
    ) -> None:
        self._site = site
        self._store = store
        self._memory = memory
        self._replica = replica
        self._resync = resync
        self._log = structlog.get_logger("clusterfs.volume").bind(node=site.node)
        self._opened = trio.Event()
        self._last_open: frozenset[int] = frozenset()  # incarnations up when the gate was open
        self._finished: dict[str, int] = {"gate": 0, "restart": 0}
        self._progress = trio.Event()
        self._took_place: dict[int, set[int]] = {}  # what gone clients did, as the last round found
        self.departed = Departed()
        self.on_open: Callable[[], None] | None = None  # called in each view with an open gate
        self.rounds = self.brought_forward = self.restarts = 0

    # -- the flag -------------------------------------------------------------------------------

    async def wait_open(self) -> None:
        """Wait until the gate is open."""
        await self._opened.wait()

    def entered(self, old: View, new: View) -> None:
        """Close the gate if a client is gone, or may have come and gone unseen."""
        skipped = new.epoch > old.epoch + 1 and any(g > old.epoch for g in new.generation)
        undecided = bool(self._site.blocked)
        if not self._site.gate_open or skipped or undecided or self._last_open - _up(new):
            self.close()
        else:
            self._last_open = _up(new)
            self._finish("gate", new.epoch)
            self._tell_open()

    def close(self) -> None:
        """Serve nothing before the next roll-forward."""
        self._site.gate_open = False
        if self._opened.is_set():
            self._opened = trio.Event()

    async def wait_finished(self, part: str, epoch: int) -> None:
        """Wait until this replica has finished its part of that epoch's exchange."""
        while self._finished[part] < epoch:
            await self._progress.wait()

    def remembered(self, request: Unstable) -> Remembered:
        """Say what this replica knows of clients that are not up."""
        gone = self._memory.clients() - _up(self._site.view)
        return Remembered(
            self._traces(gone),
            tuple(self._replica.known(client, sequence) for client, sequence in request.asked),
        )

    def tombstone(self, object_id: ObjectId) -> Version | None:
        """Return the version at which this replica deleted the object lately."""
        return self._memory.tombstone(object_id)

    def statistics(self) -> dict[str, Any]:
        """Return the state."""
        return {
            "open": self._site.gate_open,
            "rounds": self.rounds,
            "brought_forward": self.brought_forward,
            "restarts": self.restarts,
            "remembered": self._memory.count(),
            "undecided": len(self._replica.undecided()),
        }

    # -- the rounds -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Roll forward whenever the gate is closed; restart stopped groups."""
        while True:
            epoch = self._site.view.epoch
            if not self._site.gate_open or self._restartable(self._site.view):
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._until_changed, nursery.cancel_scope)
                        await self._rounds()
                        nursery.cancel_scope.cancel()
                except* (PeerLost, Refused, Moved, WouldBlock, LockLost, Unavailable):
                    await trio.sleep(_RETRY_S)
                    epoch = 0
                except* FilesystemError as errors:
                    await self._broken(repr(errors.exceptions[0]))
            if self._site.view.epoch == epoch:
                await self._site.changed()

    async def _until_changed(self, scope: trio.CancelScope) -> None:
        await self._site.changed()
        scope.cancel()

    async def _broken(self, reason: str) -> None:
        """This store cannot be brought forward: it must leave its sets."""
        with suppress(Unavailable):  # out of all sets already
            await self._site.views.drop_replica(self._site.node, None, reason)
        await trio.sleep(_RETRY_S)

    async def _rounds(self) -> None:
        view = self._site.view
        if not self._site.gate_open:
            await self._roll_forward(view)
        groups = self._restartable(view)
        if groups:
            await self._restart(view, groups)

    async def _roll_forward(self, view: View) -> None:
        self.rounds += 1
        site = self._site
        peers = site.others(_replicas(view))
        reports = await self._ask(peers)
        self._resolve(view, reports)
        gone = self._memory.clients() - _up(view)
        traces = {node: report.traces for node, report in reports.items()}
        traces[site.node] = self._traces(gone)
        self._took_place = took_place(traces, _serving(view))
        newest = union(traces, _serving(view))
        await self._bring_forward(newest, [t for some in traces.values() for t in some])
        self._resync.recheck(
            (t.object_id, t.group) for some in traces.values() for r in some for t in r.objects
        )
        for some in traces.values():
            for trace in some:
                kept = tuple(t for t in trace.objects if view.in_sync[t.group] & site.bit)
                if kept:
                    self._memory.add(type(trace)(trace.client, trace.sequence, kept))
        self._finish("gate", view.epoch)
        await self._agree(peers, "gate")
        self._open(view)

    def _open(self, view: View) -> None:
        """Every in-sync replica has what the gone clients did: serve again."""
        pending = {transaction.client for transaction in self._replica.undecided()}
        complete = [group for group in range(len(view.in_sync)) if self._site.holds(group)]
        for client in self._last_open - _up(view) - pending:
            sequences, stable = self._took_place.get(client, ()), self._memory.stable(client)
            self.departed.note(client, sequences, stable, complete)
        if not any(view.stopped):
            for client in self._memory.clients() - _up(view) - pending:
                self._replica.tombstones.remove(self._memory.forget(client))
                self._store.forget_client(client)
            self._replica.tombstones.remove(self._memory.drop_loaded())
        self._last_open = _up(view)
        self._site.gate_open = True
        self._opened.set()
        self._tell_open()

    def _tell_open(self) -> None:
        if self.on_open is not None:
            self.on_open()

    def _finish(self, part: str, epoch: int) -> None:
        self._finished[part] = epoch
        progress, self._progress = self._progress, trio.Event()
        progress.set()

    # -- talking to the others ------------------------------------------------------------------

    async def _ask(self, peers: Iterable[int]) -> dict[int, Remembered]:
        asked = tuple((t.client, t.sequence) for t in self._replica.undecided())
        request = encode(Unstable(self._site.view.epoch, asked))
        reports: dict[int, Remembered] = {}

        async def ask(node: int) -> None:
            body, _ = await self._site.call(node, request)
            reports[node] = decode(body, Remembered)

        async with trio.open_nursery() as nursery:
            for node in peers:
                nursery.start_soon(ask, node)
        return reports

    async def _agree(self, peers: Iterable[int], part: str) -> None:
        request = encode(Agree(self._site.view.epoch, part))
        async with trio.open_nursery() as nursery:
            for node in peers:
                nursery.start_soon(self._site.call, node, request)

    def _traces(self, clients: Collection[int]) -> tuple[Trace, ...]:
        """Return what is remembered of these clients, as far as the objects are still so here.

        A replica that synced anew since may have lost what only it had.
        """
        found = []
        for trace in self._memory.traces(clients):
            kept = tuple(touched for touched in trace.objects if self._has(touched))
            if kept:
                found.append(Trace(trace.client, trace.sequence, kept))
        return tuple(found)

    def _has(self, touched: Touched) -> bool:
        version = self._store.version(touched.object_id)
        if touched.deleted:
            return version == ABSENT
        return reached(version, self._memory.tombstone(touched.object_id)) >= touched.version

    # -- bringing objects forward ---------------------------------------------------------------

    async def _bring_forward(self, newest: dict[ObjectId, Newest], traces: Iterable[Any]) -> None:
        """Pull what this replica lacks of the groups it holds; what hangs together at once."""
        lacking = {
            object_id: found.node
            for object_id, found in newest.items()
            if self._site.view.in_sync[found.touched.group] & self._site.bit
            and lacks(
                found.touched, self._store.version(object_id), self._memory.tombstone(object_id)
            )
        }
        for component in components(traces, lacking):
            await self._install([(object_id, lacking[object_id]) for object_id in component])

    async def _install(self, objects: Iterable[tuple[ObjectId, int]]) -> None:
        """Make local objects equal to others' copies, all in one transaction."""
        changes: list[Change] = []
        pieces: list[bytes] = []
        for object_id, node in objects:
            copy = await describe(self._site, node, object_id)
            if copy.version == ABSENT:
                if self._store.version(object_id) != ABSENT:
                    changes.append(deletion(self._store, object_id, copy.version))
            elif copy.version > self._store.version(object_id):
                change, payload = await self._difference(node, object_id, copy)
                changes.append(change)
                pieces.append(payload)
        if changes:
            await self._apply(tuple(changes), b"".join(pieces))

    async def _apply(self, changes: tuple[Change, ...], payload: bytes) -> None:
        """Apply changes of this replica's own, at once."""
        sequence = self._site.internal_sequence()
        transaction = Transaction(INTERNAL, sequence, self._site.view.epoch, changes)
        await self._store.admit_transaction(transaction)
        self._store.apply(transaction, payload)
        self._store.set_stable(INTERNAL, sequence)
        self.brought_forward += len(changes)

    async def _difference(self, node: int, object_id: ObjectId, copy: Copy) -> tuple[Change, bytes]:
        fetch = Blockwise(self._site, node, object_id, copy)
        return await difference(self._store, object_id, copy, fetch)

    def _resolve(self, view: View, reports: dict[int, Remembered]) -> None:
        """Decide the prepared transactions of clients that are gone; block what stays undecided."""
        blocked: set[bytes] = set()
        up = _up(view)
        for position, transaction in enumerate(self._replica.undecided()):
            if transaction.client in up:
                continue
            known = {node: Known(report.standings[position]) for node, report in reports.items()}
            known[self._site.node] = Known.PREPARED
            groups = self._replica.participants(transaction)
            participants = [tuple(nodes_of(view.in_sync[group])) for group in groups]
            present = all(
                set(nodes) <= known.keys() and (not view.stopped[group] or view.present(group))
                for group, nodes in zip(groups, participants, strict=True)
            )
            outcome = verdict(participants, known, all_present=present)
            if outcome is Known.PREPARED:
                blocked.update(change.object_id for change in transaction.changes)
            else:
                self._replica.resolve(transaction, committed=outcome is Known.COMMITTED)
        self._site.blocked = blocked

    # -- stopped groups -------------------------------------------------------------------------

    def _restartable(self, view: View) -> frozenset[int]:
        """Return the stopped groups with our copy whose whole last in-sync set is up."""
        return frozenset(
            group
            for group, stopped in enumerate(view.stopped)
            if stopped and view.in_sync[group] & self._site.bit and view.present(group)
        )

    async def _restart(self, view: View, groups: frozenset[int]) -> None:
        self.restarts += 1
        site = self._site
        mask = 0
        for group in groups:
            mask |= view.in_sync[group]
        peers = site.others(mask)
        for peer in peers:
            shared = frozenset(g for g in groups if view.in_sync[g] >> peer & 1)
            await self._take_newer(peer, shared)
        await self._store.sync()
        self._finish("restart", view.epoch)
        await self._agree(peers, "restart")
        ours = [g for g in groups if next(nodes_of(view.in_sync[g])) == site.node]
        if ours:
            opened = await site.views.restart_groups(ours)
            self._log.info("groups restarted", groups=len(opened))

    async def _take_newer(self, peer: int, groups: frozenset[int]) -> None:
        """Go through all objects of shared groups: take what the peer has newer, deletions too."""
        after: ObjectId | None = START
        while after is not None:
            request = List(self._site.view.epoch, groups_to_bitmap(groups), after, _PAGE)
            body, _ = await self._site.call(peer, encode(request))
            listing = decode(body, Listing)
            theirs = {entry.object_id: (entry.group, entry.version) for entry in listing.objects}
            mine = self._resync.local(groups, after, listing.end)
            tombstones = {o: t for o in theirs if (t := self._memory.tombstone(o)) is not None}
            for object_id in newer(mine, theirs, tombstones):
                await self._install([(object_id, peer)])
            await self._delete_gone(peer, [o for o in mine if o not in theirs])
            after = listing.end

    async def _delete_gone(self, peer: int, objects: list[ObjectId]) -> None:
        """Delete what the peer deleted at a later version."""
        for start in range(0, len(objects), _PAGE):
            some = objects[start : start + _PAGE]
            request = Gone(self._site.view.epoch, tuple(some))
            body, _ = await self._site.call(peer, encode(request))
            for object_id, deleted in zip(some, decode(body, Buried).versions, strict=True):
                version = self._store.version(object_id)
                if deleted is not None and ABSENT < version < deleted:
                    self._replica.tombstones.add({object_id: deleted})
                    self._memory.load({object_id: deleted})
                    await self._apply((deletion(self._store, object_id, deleted),), b"")


def _serving(view: View) -> Callable[[int, int], bool]:
    return lambda node, group: bool(view.in_sync[group] >> node & 1)


def _up(view: View) -> frozenset[int]:
    return frozenset(m.incarnation for m in view.members if view.has(m.node, m.incarnation))


def _replicas(view: View) -> int:
    mask = 0
    for in_sync in view.in_sync:
        mask |= in_sync
    return mask
