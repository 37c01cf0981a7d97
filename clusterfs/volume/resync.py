"""A replica that came back becomes equal again, while writers go on.

While syncing, the replica receives every transaction. What fits its copy is applied; what does not
is noted as a need: this object must be pulled at least at that version. An object being pulled
parks its transactions, and applies after the pull those that the pulled copy does not contain; so
even an object that is written all the time catches up.

One pass merges the listings of all objects with an in-sync replica's and pulls what differs; then
needs are served until none is left. Before the view that calls it in sync every replica syncs its
store: this one because it will count, the others because a transaction that was one message to one
set of replicas must not lie in two sets, durable in one and not in the other.

Invariants:
  * an object that neither is needed, nor is being pulled, nor lies after the cursor, equals the
    source's, but for transactions on their way;
  * what a client that is gone has sent counts only as far as the in-sync replicas have it: its
    objects are compared again after these rolled forward.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple

import msgspec
import structlog
import trio

from clusterfs.cluster.views import View
from clusterfs.errors import BrickFailed, FilesystemError, OutOfSpace, Unavailable, WouldBlock
from clusterfs.store.objects import ABSENT, Change, Delete, ObjectId, Transaction, Version
from clusterfs.volume.copies import Blockwise, Moved, deletion, describe, replace
from clusterfs.volume.merge import differing
from clusterfs.volume.messages import Agree, List, Listing, Reported
from clusterfs.volume.pace import Pace, Progress
from clusterfs.volume.parts import part
from clusterfs.volume.placement import groups_to_bitmap
from clusterfs.volume.ports import Buffer, LocalStore
from clusterfs.volume.site import INTERNAL, Site
from dlm.errors import LockLost, PeerLost
from dlm.net.errors import Refused
from dlm.net.wire import decode, encode

_PARKED_BYTES = 64 << 20
_PAGE = 512
_PULLS = 8
_RETRY_S = 0.05
START = ObjectId(b"")


class Need(NamedTuple):
    """Why an object must be pulled: by a transaction that did not fit, or just to compare."""

    group: int
    version: Version | None = None
    client: int = INTERNAL
    sequence: int = 0


class Parked(NamedTuple):
    """One change to an object that is being pulled."""

    client: int
    sequence: int
    change: Change
    payload: Buffer


class Resync:
    """The syncing side of one replica."""

    def __init__(
        self,
        site: Site,
        store: LocalStore,
        sync_all: Callable[[], Awaitable[object]],
        pace: Pace,
    ) -> None:
        self._site = site
        self._sync_all = sync_all
        self._store = store
        self._log = structlog.get_logger("clusterfs.volume").bind(node=site.node)
        self._needs: dict[ObjectId, Need] = {}
        self._pulling: dict[ObjectId, list[Parked]] = {}
        self._parked_bytes = 0
        self._held: dict[tuple[int, int], tuple[Transaction, Buffer]] = {}
        self._groups: frozenset[int] = frozenset()
        self._cursors: dict[frozenset[int], ObjectId | None] = {}
        self._attempts = 0  # a source that fails is not asked twice in a row
        self._relapsed: set[int] = set()  # called in sync, but something was needed after all
        self._progress = Progress()
        self.pace = pace
        self.compared = self.pulled = self.pulled_bytes = 0

    @property
    def groups(self) -> frozenset[int]:
        """The groups that sync here."""
        return self._groups

    # -- what arrives ---------------------------------------------------------------------------

    def concerns(self, transaction: Transaction) -> bool:
        """Tell whether the transaction touches a group that syncs here."""
        if not self._groups:
            return False
        return any(change.group in self._groups for change in transaction.changes)

    def take(self, transaction: Transaction, payload: Buffer) -> None:
        """Apply what fits, park or note the rest. Raises as `LocalStore.apply` does."""
        now: set[ObjectId] = set()
        later: list[Change] = []
        for change in transaction.changes:
            if change.group not in self._groups:
                now.add(change.object_id)
            elif not self._contains(change):
                if self._fits(change):
                    now.add(change.object_id)
                else:
                    later.append(change)
        if now:
            self._apply_part(*part(transaction, payload, lambda c: c.object_id in now))
        for change in later:
            self._set_aside(transaction, payload, change)

    def finish(self, transaction: Transaction, payload: Buffer) -> None:
        """Do what an earlier life of a transaction has left undone here.

        It was sent to fewer groups of ours, in an older view. Raises as `LocalStore.apply` does.
        """
        rest, data = part(transaction, payload, lambda change: not self._done(change))
        if rest.changes:
            self.take(rest, data)

    def hold(self, transaction: Transaction, payload: Buffer) -> None:
        """Keep a prepared transaction in memory until it is decided."""
        self._held[transaction.client, transaction.sequence] = (transaction, payload)

    def held(self, client: int, sequence: int) -> Transaction | None:
        """Return a transaction that is held."""
        found = self._held.get((client, sequence))
        return None if found is None else found[0]

    def decided(self, transaction: Transaction, *, committed: bool) -> None:
        """Take or forget a held transaction."""
        held, payload = self._held.pop((transaction.client, transaction.sequence))
        if committed:
            self.finish(held, payload)

    def void(self, client: int, sequence: int) -> None:
        """A transaction failed everywhere: only compare what it touched."""
        self._disown(lambda c, s: (c, s) == (client, sequence))

    def recheck(self, objects: Iterable[tuple[ObjectId, int]]) -> None:
        """Compare these (object, group) again."""
        for object_id, group in objects:
            if group in self._groups:
                self._needs.setdefault(object_id, Need(group))

    def entered(self, old: View, new: View) -> None:
        """Adapt to another view."""
        bit = self._site.bit
        groups = frozenset(
            g for g, mask in enumerate(new.syncing) if mask & bit and not new.stopped[g]
        )
        skipped = new.epoch > old.epoch + 1
        for group in groups:
            fresh = group not in self._groups or not old.syncing[group] & bit
            if fresh or (skipped and new.generation[group] > old.epoch):
                self._cursors = {}
                self._progress = Progress()
                break
        self._groups = groups
        self._relapsed |= {
            need.group
            for need in self._needs.values()
            if need.group not in groups and new.in_sync[need.group] & bit
        }
        self._needs = {o: need for o, need in self._needs.items() if need.group in groups}
        for object_id, group in self._site.distrusted.items():
            if group in groups:
                self._needs.setdefault(object_id, Need(group))
        up = {m.incarnation for m in new.members if new.has(m.node, m.incarnation)} | {INTERNAL}
        self._disown(lambda client, _: client not in up)
        self._held = {key: value for key, value in self._held.items() if key[0] in up}

    def statistics(self) -> dict[str, Any]:
        """Return the progress."""
        return {
            "groups": len(self._groups),
            "compared": self.compared,
            "pulled": self.pulled,
            "pulled_bytes": self.pulled_bytes,
            "needed": len(self._needs),
            "pulling": len(self._pulling),
            "parked_bytes": self._parked_bytes,
            "listed": bool(self._groups) and self._listed(),
            "rate_bytes": self.pace.rate_bytes,
            **msgspec.structs.asdict(self.report()),
        }

    def report(self) -> Reported:
        """Return how far it is, for administrators of any node."""
        needed = len(self._needs)
        if not self._groups:
            return Reported(1.0, 0.0, self.pulled, self.pulled_bytes)
        part, eta_s = self._progress.part(needed), self._progress.eta_s(needed)
        return Reported(part, eta_s, self.pulled, self.pulled_bytes)

    def _apply_part(self, transaction: Transaction, payload: Buffer) -> None:
        """Apply what fits; under a name of our own if another part went by the client's before."""
        if not self._store.applied(transaction.client, transaction.sequence):
            self._store.apply(transaction, payload)
        else:
            self._apply_internal(transaction.changes, payload)

    def _contains(self, change: Change) -> bool:
        """Tell whether the local object has this change already."""
        if change.object_id in self._pulling:
            return False
        version = self._store.version(change.object_id)
        return version >= change.version

    def _done(self, change: Change) -> bool:
        if self._contains(change):
            return True
        deleted = bool(change.operations) and isinstance(change.operations[-1], Delete)
        gone = self._store.version(change.object_id) == ABSENT
        return gone and deleted and change.group not in self._groups

    def _fits(self, change: Change) -> bool:
        if change.object_id in self._pulling or change.object_id in self._needs:
            return False
        return self._store.version(change.object_id) == change.expected

    def _set_aside(self, transaction: Transaction, payload: Buffer, change: Change) -> None:
        parked = self._pulling.get(change.object_id)
        _, data = part(transaction, payload, lambda c: c is change)
        if parked is not None and self._parked_bytes + len(data) <= _PARKED_BYTES:
            parked.append(Parked(transaction.client, transaction.sequence, change, data))
            self._parked_bytes += len(data)
        else:
            self._note(transaction, change)

    def _note(self, transaction: Transaction, change: Change) -> None:
        known = self._needs.get(change.object_id)
        if known is None or known.version is None or known.version < change.version:
            self._needs[change.object_id] = Need(
                change.group, change.version, transaction.client, transaction.sequence
            )

    def _disown(self, matches: Callable[[int, int], bool]) -> None:
        for object_id, need in list(self._needs.items()):
            if need.version is not None and matches(need.client, need.sequence):
                self._needs[object_id] = Need(need.group)
        for object_id, parked in self._pulling.items():
            for index, item in enumerate(parked):
                if matches(item.client, item.sequence):
                    self._parked_bytes -= sum(len(p.payload) for p in parked[index:])
                    del parked[index:]
                    self._needs[object_id] = Need(item.change.group)
                    break

    # -- the work -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Bring this replica's syncing groups up to date, whenever there are any."""
        while True:
            if self._relapsed:
                relapsed = set(self._relapsed)
                if await self._drop(relapsed, "not in sync after all"):
                    self._relapsed -= relapsed
            if self._groups:
                epoch = self._site.view.epoch
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._until_changed, nursery.cancel_scope)
                        await self._round()
                        nursery.cancel_scope.cancel()
                except* (PeerLost, Refused, Moved, WouldBlock, LockLost, Unavailable):
                    self._attempts += 1
                    await trio.sleep(_RETRY_S)
                except* (BrickFailed, OutOfSpace) as errors:
                    reason = str(errors.exceptions[0])
                    await self._drop(None, reason)
                if self._site.view.epoch == epoch and self._groups:
                    await trio.sleep(_RETRY_S)
            else:
                await self._site.changed()

    async def _drop(self, groups: set[int] | None, reason: str) -> bool:
        """Take this replica out of its sets; False if the node is no member at the moment."""
        try:
            await self._site.views.drop_replica(self._site.node, groups, reason)
        except Unavailable:
            await trio.sleep(_RETRY_S)
            return False
        return True

    async def _until_changed(self, scope: trio.CancelScope) -> None:
        await self._site.changed()
        scope.cancel()

    async def _round(self) -> None:
        """Compare and pull until nothing is missing, then say so."""
        view, groups = self._site.view, self._groups
        plan = self._plan(view, groups)
        if plan is None:
            await self._site.changed()
            return
        for source in plan:
            await self._site.call(source, encode(Agree(view.epoch, "gate")))
        for source, theirs in plan.items():
            await self._merge(source, theirs)
        while True:
            await self._serve_needs(view)
            await self._sync_all()
            if not self._needs:
                break
        done = await self._site.views.report_in_sync(groups)
        self._log.info("in sync", groups=len(done), objects=self.compared, pulled=self.pulled)

    def _plan(self, view: View, groups: frozenset[int]) -> dict[int, frozenset[int]] | None:
        """Return from whom to copy which groups; None if nobody is there for some."""
        by_source: dict[int, set[int]] = {}
        for group in groups:
            sources = self._site.others(view.in_sync[group])
            if not sources:
                return None
            by_source.setdefault(sources[self._attempts % len(sources)], set()).add(group)
        plan = {source: frozenset(groups) for source, groups in by_source.items()}
        self._cursors = {theirs: self._cursors.get(theirs, START) for theirs in plan.values()}
        return plan

    def _listed(self) -> bool:
        return bool(self._cursors) and all(c is None for c in self._cursors.values())

    async def _merge(self, source: int, groups: frozenset[int]) -> None:
        cursors = self._cursors
        while (cursor := cursors.get(groups, START)) is not None:
            request = List(self._site.view.epoch, groups_to_bitmap(groups), cursor, _PAGE)
            body, _ = await self._site.call(source, encode(request))
            if self._cursors is not cursors:
                raise WouldBlock  # another view, entered meanwhile, begins the comparison anew
            listing = decode(body, Listing)
            self._progress.total += listing.total
            self._progress.seen += len(listing.objects)
            mine = self.local(groups, cursor, listing.end)
            theirs = {entry.object_id: (entry.group, entry.version) for entry in listing.objects}
            self.compared += len(theirs)
            for object_id in differing(mine, theirs):
                known = theirs.get(object_id)
                group = known[0] if known else mine[object_id][0]
                self._needs.setdefault(object_id, Need(group))
            cursors[groups] = listing.end
            await self._serve_needs(self._site.view)

    def local(
        self, groups: frozenset[int], after: ObjectId, end: ObjectId | None
    ) -> dict[ObjectId, tuple[int, Version]]:
        """Return this store's objects of the groups with after < id <= end."""
        found: dict[ObjectId, tuple[int, Version]] = {}
        while True:
            page = self._store.objects(None, after, _PAGE)
            for object_id, version in page:
                if end is not None and object_id > end:
                    return found
                group = self._store.group(object_id)
                if group is not None and group in groups:
                    found[object_id] = (group, version)
            if len(page) < _PAGE:
                return found
            after = page[-1][0]

    async def _serve_needs(self, view: View) -> None:
        limit = trio.CapacityLimiter(_PULLS)

        async def pull(object_id: ObjectId, need: Need) -> None:
            async with limit:
                sources = self._site.others(view.in_sync[need.group])
                if sources:
                    await self.pull(sources[self._attempts % len(sources)], object_id)

        while self._needs:
            async with trio.open_nursery() as nursery:
                for object_id, need in list(self._needs.items())[: 8 * _PULLS]:
                    if object_id not in self._pulling:
                        nursery.start_soon(pull, object_id, need)
            await trio.sleep(_RETRY_S if self._needs else 0)

    async def pull(self, source: int, object_id: ObjectId) -> None:
        """Make one object equal to the source's, and apply what was parked meanwhile."""
        assert object_id not in self._pulling, "one pull per object"
        self._pulling[object_id] = []
        hot: tuple[int, ...] = ()
        try:
            while True:
                copy = await describe(self._site, source, object_id, hot)
                fetch = Blockwise(self._site, source, object_id, copy, self.pace, self._took)
                try:
                    if copy.version == ABSENT:
                        self._delete(object_id)
                    elif self._differs(object_id, copy.version):
                        await replace(self._store, object_id, copy, fetch)
                        self.pulled += 1
                except Moved as moved:
                    hot = tuple(dict.fromkeys((*hot, *moved.numbers)))[-256:]
                    continue
                break
            self._site.distrusted.pop(object_id, None)
            self._catch_up(object_id)
            self._satisfy(object_id, copy.version)
        finally:
            self._drop_parked(object_id)

    def _took(self, size_bytes: int) -> None:
        """Count what was copied, of whole objects and of those that a view interrupted."""
        self.pulled_bytes += size_bytes

    def _differs(self, object_id: ObjectId, version: Version) -> bool:
        distrusted = object_id in self._site.distrusted
        return distrusted or version != self._store.version(object_id)

    def _satisfy(self, object_id: ObjectId, source: Version) -> None:
        need = self._needs.get(object_id)
        if need is None:
            return
        version = need.version
        if version is None or source == ABSENT or self._store.version(object_id) >= version:
            del self._needs[object_id]

    def _catch_up(self, object_id: ObjectId) -> None:
        """Apply the parked changes that the pulled copy does not contain."""
        for item in self._pulling[object_id]:
            version = self._store.version(object_id)
            change = item.change
            deleted = version == ABSENT and isinstance(change.operations[-1], Delete)
            if version >= change.version or deleted:
                continue
            need = Need(change.group, change.version, item.client, item.sequence)
            if version != change.expected:
                self._needs[object_id] = need
                return
            try:
                self._apply_internal((change,), item.payload)
            except (WouldBlock, FilesystemError):
                self._needs[object_id] = need
                return

    def _delete(self, object_id: ObjectId) -> None:
        version = self._store.version(object_id)
        if version != ABSENT:
            self._apply_internal((deletion(self._store, object_id, version),), b"")

    def _apply_internal(self, changes: tuple[Change, ...], payload: Buffer) -> None:
        sequence = self._site.internal_sequence()
        transaction = Transaction(INTERNAL, sequence, self._site.view.epoch, changes)
        self._store.apply(transaction, payload)
        self._store.set_stable(INTERNAL, sequence)

    def _drop_parked(self, object_id: ObjectId) -> None:
        """End a pull; what was parked and is not contained must be pulled again."""
        parked = self._pulling.pop(object_id)
        self._parked_bytes -= sum(len(item.payload) for item in parked)
        for item in parked:
            change = item.change
            if object_id in self._needs or change.group not in self._groups:
                continue
            version = self._store.version(object_id)
            gone = version == ABSENT and isinstance(change.operations[-1], Delete)
            if version < change.version and not gone:
                self._needs[object_id] = Need(
                    change.group, change.version, item.client, item.sequence
                )
