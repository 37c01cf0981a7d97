"""The replica side of transactions: fenced where they are applied, in each sender's order.

A transaction is applied only if its sender is up in our view, if no group's generation is newer
than the transaction's epoch, if we are in the set, and if the gate is open. What is newer than our
view waits until we have entered it. "Stale" sends the client to the newer view; it issues again.

Invariants:
  * (client, sequence) changes the store at most once;
  * a replica answers OK only for what it has applied, or, while it syncs, noted to be pulled;
  * what is prepared is on disk before the answer.
"""

import functools
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgpack
import trio

from clusterfs.cluster.views import View
from clusterfs.errors import BrickFailed, FilesystemError, WouldBlock
from clusterfs.store.objects import Transaction
from clusterfs.volume.credits import Ledger
from clusterfs.volume.lanes import Lane
from clusterfs.volume.memory import Memory
from clusterfs.volume.messages import (
    Answered,
    Apply,
    Code,
    Decide,
    Granted,
    Known,
    Message,
    Patience,
    Prepare,
    Stage,
    Sync,
    Synced,
    Void,
    Watermark,
)
from clusterfs.volume.parts import part
from clusterfs.volume.pending import ERRORS
from clusterfs.volume.ports import Buffer, LocalStore
from clusterfs.volume.resync import Resync
from clusterfs.volume.site import INTERNAL, Site, Spawn
from clusterfs.volume.tombstones import Tombstones, deletions

_STABLE_STEP = 64

_CODES: dict[type[Exception], Code] = {error: code for code, error in ERRORS.items()}

Obstacle = Callable[[], Awaitable[None]]


class Arrival(NamedTuple):
    """A message, and who sent it."""

    sender: int
    incarnation: int
    message: Message  # Apply, Prepare or Decide
    payload: Buffer


class Replica:
    """Applies clients' transactions to this node's store."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts of a volume meet here
        self,
        site: Site,
        store: LocalStore,
        memory: Memory,
        resync: Resync,
        spawn: Spawn,
        answer: Callable[[int, int, Message], None],
        wait_gate: Obstacle,
    ) -> None:
        self._site = site
        self._store = store
        self._memory = memory
        self._resync = resync
        self._spawn = spawn
        self._answer = answer
        self._wait_gate = wait_gate
        self._lanes: dict[int, Lane[Arrival]] = {}
        self.tombstones = Tombstones(store)
        memory.load(self.tombstones.loaded)
        self._undecided = {(t.client, t.sequence): t for t in store.prepared()}
        self._prepared_for = {client for client, _ in self._undecided}
        self.ledger = Ledger(store.space)
        self.applied = self.refused = 0
        self._serve: dict[type, Callable[[Arrival], Obstacle | None]] = {
            Apply: self._apply,
            Prepare: self._prepare,
            Decide: self._decide,
        }

    def message(self, sender: int, incarnation: int, message: Message, payload: Buffer) -> None:
        """Take a client's message."""
        if type(message) in self._serve:
            lane = self._lanes.get(sender)
            if lane is None:
                lane = self._lanes[sender] = Lane(self._spawn, self._attempt)
            lane.put(Arrival(sender, incarnation, message, payload))
        elif isinstance(message, Sync):
            self._sync(sender, incarnation, message)
        elif isinstance(message, Watermark):
            self._set_stable(incarnation, message.stable, 1)
            self.ledger.returned(incarnation, message.returned)
            self._answer(sender, incarnation, Granted(self.ledger.grant(incarnation)))
        elif isinstance(message, Void):
            self._resync.void(incarnation, message.sequence)

    def entered(self) -> None:
        """Forget the lanes and credits of clients that are out, and what our copy cannot decide."""
        view = self._site.view
        up = {m.node for m in view.members if view.has(m.node, m.incarnation)}
        for node in [node for node in self._lanes if node not in up]:
            self._lanes.pop(node).close()
        self._drop_leftovers(view)
        self.ledger.keep({m.incarnation for m in view.members if m.node in up})

    def _drop_leftovers(self, view: View) -> None:
        """Where our copy is not the truth any more, what it had prepared says nothing."""
        for transaction in self.undecided():
            if not any(view.in_sync[c.group] & self._site.bit for c in transaction.changes):
                try:
                    self.resolve(transaction, committed=False)
                    self._store.forget_outcomes(transaction.client, transaction.sequence + 1)
                except (WouldBlock, BrickFailed):
                    return  # the next view sees to it; a broken brick leaves its sets anyway

    def close(self) -> None:
        """Forget all that waits: this node is out."""
        for lane in self._lanes.values():
            lane.close()
        self._lanes.clear()

    def reassure(self) -> None:
        """Tell those who wait for us that we wait for others."""
        for node, lane in self._lanes.items():
            if len(lane) and not self._site.gate_open:
                self._answer(node, 0, Patience())

    def queued(self) -> int:
        """Return how many messages wait."""
        return sum(map(len, self._lanes.values()))

    def known(self, client: int, sequence: int) -> Known:
        """Say how a transaction stands here; what is unknown now will never be prepared."""
        if (client, sequence) in self._undecided:
            return Known.PREPARED
        outcome = self._store.outcome(client, sequence)
        if outcome == "committed" or self._store.applied(client, sequence):
            return Known.COMMITTED
        return Known.ABORTED if outcome == "aborted" else Known.UNKNOWN

    def undecided(self) -> list[Transaction]:
        """Return the prepared transactions."""
        return list(self._undecided.values())

    def participants(self, transaction: Transaction) -> tuple[int, ...]:
        """Return the groups of all participants of a prepared transaction."""
        packed = self._store.fact(_fact_name(transaction.client, transaction.sequence))
        if isinstance(packed, bytes) and packed:
            return tuple(msgpack.unpackb(packed))
        return tuple({change.group for change in transaction.changes})

    def resolve(self, transaction: Transaction, *, committed: bool) -> None:
        """Carry out the outcome of a prepared transaction."""
        client, sequence = transaction.client, transaction.sequence
        if committed:
            self.tombstones.add(deletions(transaction))
            self._store.commit(client, sequence)
            self._memory.remember(transaction)
            self._resync.recheck((c.object_id, c.group) for c in transaction.changes)
        else:
            self._store.abort(client, sequence)
        self._store.set_fact(_fact_name(client, sequence), b"")
        del self._undecided[client, sequence]

    # -- serving --------------------------------------------------------------------------------

    def _attempt(self, arrival: Arrival) -> Obstacle | None:
        return self._serve[type(arrival.message)](arrival)

    def _fence(  # noqa: PLR0911 - one return for each reason to refuse
        self, arrival: Arrival, transaction: Transaction
    ) -> Code | Obstacle:
        """Return OK, a refusal, or what to wait for."""
        site = self._site
        view = site.view
        if transaction.epoch > view.epoch:
            return functools.partial(site.views.entered, transaction.epoch)
        if site.up.get(arrival.sender) != arrival.incarnation:
            return Code.STALE
        if transaction.client != arrival.incarnation:
            return Code.MALFORMED
        if site.read_only and self._is_read_only(arrival.sender):
            return Code.READ_ONLY
        generation, bit = view.generation, site.bit
        for group in {change.group for change in transaction.changes}:
            if group >= len(generation) or generation[group] > transaction.epoch:
                return Code.STALE
            if view.stopped[group] or not (view.in_sync[group] | view.syncing[group]) & bit:
                return Code.STALE
        if not site.gate_open:
            return self._wait_gate
        if site.blocked and any(c.object_id in site.blocked for c in transaction.changes):
            return site.changed
        return Code.OK

    def _is_read_only(self, sender: int) -> bool:
        """Tell whether a node's name, which its certificate proves, may not change anything."""
        member = self._site.view.member(sender)
        return member is not None and member.name in self._site.read_only

    def _apply(self, arrival: Arrival) -> Obstacle | None:
        message = arrival.message
        assert isinstance(message, Apply)
        transaction = message.transaction
        code = self._fence(arrival, transaction)
        if not isinstance(code, Code):
            return code
        if code is Code.OK:
            self._set_stable(arrival.incarnation, message.stable)
            try:
                self._take(transaction, arrival.payload, hasten=message.durable)
            except WouldBlock:
                return functools.partial(self._make_room, transaction)
            except FilesystemError as error:
                code = self._failed(transaction, error)
            else:
                if message.durable:
                    self._reply_from_disk(arrival, transaction, Stage.APPLY)
                    return None
        self._reply(arrival, transaction, Stage.APPLY, code)
        return None

    def _take(self, transaction: Transaction, payload: Buffer, *, hasten: bool) -> None:
        """Apply a transaction unless that was done; note what a syncing group cannot take."""
        store = self._store
        client, sequence = transaction.client, transaction.sequence
        standing = self._undecided.get((client, sequence))
        if standing is not None:
            self.resolve(standing, committed=True)
        if store.applied(client, sequence):
            self._resync.finish(transaction, payload)
            return
        gone = deletions(transaction)
        if gone:
            self.tombstones.add(gone)
        try:
            if self._resync.concerns(transaction):
                self._resync.take(transaction, payload)
            else:
                store.apply(transaction, payload, hasten=hasten)
        except FilesystemError:
            self.tombstones.remove(gone)
            raise
        self._memory.remember(transaction)
        self.ledger.consumed(client, len(payload))
        self.applied += 1

    def _prepare(self, arrival: Arrival) -> Obstacle | None:
        message = arrival.message
        assert isinstance(message, Prepare)
        transaction = message.transaction
        code = self._fence(arrival, transaction)
        if not isinstance(code, Code):
            return code
        if code is not Code.OK:
            self._reply(arrival, transaction, Stage.PREPARE, code)
            return None
        self._set_stable(arrival.incarnation, message.stable)
        try:
            self._note(transaction, arrival.payload, message.groups)
        except WouldBlock:
            return functools.partial(self._make_room, transaction)
        except FilesystemError as error:
            self._reply(arrival, transaction, Stage.PREPARE, self._failed(transaction, error))
        else:
            self._reply_from_disk(arrival, transaction, Stage.PREPARE)
        return None

    def _note(self, transaction: Transaction, payload: Buffer, groups: tuple[int, ...]) -> None:
        """Prepare a transaction; what only syncs here, or came to us since, is just held."""
        client, sequence = transaction.client, transaction.sequence
        if self._store.applied(client, sequence):
            self._resync.finish(transaction, payload)
            return
        standing = self._undecided.get((client, sequence))
        if standing is not None:
            known = {change.object_id for change in standing.changes}
            self._resync.hold(*part(transaction, payload, lambda c: c.object_id not in known))
            return
        if self._resync.concerns(transaction):
            syncing = self._resync.groups
            self._resync.hold(*part(transaction, payload, lambda c: c.group in syncing))
            transaction, payload = part(transaction, payload, lambda c: c.group not in syncing)
        if transaction.changes:
            self._store.prepare(transaction, payload)
            self._store.set_fact(_fact_name(client, sequence), msgpack.packb(groups))
            self._undecided[client, sequence] = transaction
            self._prepared_for.add(client)

    def _reply_from_disk(self, arrival: Arrival, transaction: Transaction, stage: Stage) -> None:
        """Answer once everything applied or prepared so far is on disk."""

        def synced(failure: BrickFailed | None) -> None:
            self._reply(arrival, transaction, stage, Code.BRICK if failure else Code.OK)

        self._store.when_durable(synced)

    def _decide(self, arrival: Arrival) -> Obstacle | None:
        message = arrival.message
        assert isinstance(message, Decide)
        client, sequence = arrival.incarnation, message.sequence
        standing = self._undecided.get((client, sequence))
        held = self._resync.held(client, sequence)
        if not message.committed:  # its client alone decides this, in whatever epoch
            try:
                self._abort(standing, held)
            except WouldBlock:
                return functools.partial(
                    self._make_room, Transaction(client, sequence, message.epoch, ())
                )
            except BrickFailed:
                pass
            return None
        changes = tuple(
            change
            for known in (standing, held)
            if known is not None
            for change in known.changes
            if self._site.in_set(change.group)  # what we are out of since does not count
        )
        transaction = Transaction(client, sequence, message.epoch, changes)
        code = self._fence(arrival, transaction)
        if not isinstance(code, Code):
            return code
        if code is Code.OK:
            try:
                code = self._committed(client, sequence, standing, held)
            except WouldBlock:
                return functools.partial(self._make_room, transaction)
            except FilesystemError as error:
                code = self._failed(transaction, error)
        self._reply(arrival, transaction, Stage.COMMIT, code)
        return None

    def _committed(
        self, client: int, sequence: int, standing: Transaction | None, held: Transaction | None
    ) -> Code:
        if standing is not None:
            self.resolve(standing, committed=True)
        if held is not None:
            self._resync.decided(held, committed=True)
        known = standing is not None or held is not None
        return Code.OK if known or self._store.applied(client, sequence) else Code.STALE

    def _abort(self, standing: Transaction | None, held: Transaction | None) -> None:
        if standing is not None:
            self.resolve(standing, committed=False)
        if held is not None:
            self._resync.decided(held, committed=False)

    def _failed(self, transaction: Transaction, error: Exception) -> Code:
        """An older epoch excuses a mismatch: an earlier one may have been refused as stale."""
        code = _CODES.get(type(error), Code.MALFORMED)
        if code is Code.MISMATCH and transaction.epoch < self._site.view.epoch:
            return Code.STALE
        return code

    async def _make_room(self, transaction: Transaction) -> None:
        """Wait for room; a failure shows at the next attempt."""
        try:
            await self._store.admit_transaction(transaction)
        except FilesystemError:
            await trio.lowlevel.checkpoint()

    def _reply(self, arrival: Arrival, transaction: Transaction, stage: Stage, code: Code) -> None:
        self.refused += code is not Code.OK
        client = arrival.incarnation
        due = arrival.payload and self.ledger.is_due(client)
        grant = self.ledger.grant(client) if due else None
        answer = Answered(
            transaction.sequence, transaction.epoch, stage, code, self._site.view.epoch, grant
        )
        self._answer(arrival.sender, arrival.incarnation, answer)

    def _sync(self, sender: int, incarnation: int, message: Sync) -> None:
        def synced(failure: BrickFailed | None) -> None:
            code = Code.BRICK if failure else Code.OK
            self._answer(sender, incarnation, Synced(message.token, code))

        self._store.when_durable(synced)

    def _set_stable(self, client: int, sequence: int, at_least: int = _STABLE_STEP) -> None:
        """Forget what is durable everywhere; if the log is full now, the next watermark will.

        Each step costs a record in the log, so with transactions only larger ones are taken.
        """
        if sequence >= self._memory.stable(client) + at_least:
            try:
                self._store.set_stable(client, sequence)
                if client in self._prepared_for:
                    self._store.forget_outcomes(client, sequence + 1)
            except (WouldBlock, BrickFailed):
                return
            self.tombstones.remove(self._memory.set_stable(client, sequence))


def _fact_name(client: int, sequence: int) -> str:
    assert client != INTERNAL
    return f"participants/{client}/{sequence}"
