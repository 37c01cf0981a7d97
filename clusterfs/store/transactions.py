"""Transactions in: admitted, checked, resolved to chunks, appended to the log, enacted in memory.

The half of the store that changes something. Every method changes the state in memory at once and
returns the log position at which that is durable.

Invariant: what is refused (OutOfSpace, WouldBlock, VersionMismatch, InvalidArgument, BrickFailed)
has changed nothing.
"""

from array import array
from collections.abc import Sequence

import msgspec

from clusterfs.errors import (
    BrickFailed,
    InvalidArgument,
    NoSuchChunk,
    OutOfSpace,
    VersionMismatch,
    WouldBlock,
)
from clusterfs.store.contents import Contents
from clusterfs.store.disk import Buffer
from clusterfs.store.hints import Hints
from clusterfs.store.ingest import Ingest, Ingested
from clusterfs.store.log import Log
from clusterfs.store.maps import MAP_BLOCKS
from clusterfs.store.objects import (
    ABSENT,
    BLOCK_BYTES,
    STRIPE_BLOCKS,
    Change,
    ObjectId,
    Operation,
    Put,
    Share,
    Transaction,
    Version,
    Write,
)
from clusterfs.store.outcomes import Outcome
from clusterfs.store.records import (
    Abort,
    Changes,
    Commit,
    ForgetClient,
    ForgetOutcomes,
    Placed,
    Prepared,
    Record,
    Replaced,
    Resolved,
    SharedMap,
    SharedPages,
    Stable,
    encode,
)
from clusterfs.store.room import Need, Room, need_of
from clusterfs.store.upkeep import Upkeep

_MAX_KEY_BYTES = 320


class Transactions:
    """What changes one open brick."""

    def __init__(
        self, contents: Contents, log: Log, hints: Hints, ingest: Ingest, room: Room, upkeep: Upkeep
    ) -> None:
        self._contents = contents
        self._state, self._outcomes = contents.state, contents.outcomes
        self._log = log
        self._small_blocks = log.blocks_of(0)
        self._hints = hints
        self._ingest = ingest
        self._room = room
        self._upkeep = upkeep

    async def admit(self, nbytes: int) -> None:
        """Wait until a transaction with nbytes of payload, keys and values can be applied.

        A guess for callers who have no transaction yet; `admit_transaction` is exact.
        """
        await self._admit(Need(-(-nbytes // BLOCK_BYTES), nbytes + nbytes // 64 + BLOCK_BYTES))

    async def admit_transaction(self, transaction: Transaction) -> None:
        """Wait until `apply` or `prepare` of this transaction will not raise WouldBlock.

        Holds until the caller's next await. Raises OutOfSpace, BrickFailed.
        """
        need = need_of(transaction.changes)
        self._room.check_space(need.data_blocks, transaction.changes)
        await self._admit(need)

    async def _admit(self, need: Need) -> None:
        while True:
            self._log.check()
            if not self._room.has_segments(need):
                if not await self._upkeep.gain(self._log.blocks_of(need.nbytes)):
                    self._log.check()
                    if self._room.has_segments(need):
                        continue
                    raise OutOfSpace("the brick is full, and nothing can be cleaned")
            elif not self._log.has_ring_room(need.nbytes):
                await self._log.wait_ring_room(need.nbytes)
            elif self._upkeep.behind:
                await self._upkeep.catch_up()
            else:
                return

    def apply(
        self, transaction: Transaction, payload: Buffer = b"", *, hasten: bool = False
    ) -> int:
        """Apply a transaction in memory and log it; return its position. All or nothing.

        hasten: somebody is about to wait until it is durable, so let the disk begin at once. A
        transaction that is already applied changes nothing. Raises VersionMismatch, OutOfSpace,
        WouldBlock (see `admit`), BrickFailed, InvalidArgument.
        """
        self._log.check()
        if self._outcomes.applied(transaction.client, transaction.sequence):
            return self._log.position
        return self._append_changes(Changes, transaction, payload, hasten=hasten)

    def prepare(self, transaction: Transaction, payload: Buffer = b"") -> int:
        """Log a transaction that waits for `commit` or `abort`; its objects are locked until then.

        Raises what `apply` raises; VersionMismatch too if it was aborted before it arrived.
        """
        self._log.check()
        key = (transaction.client, transaction.sequence)
        if key in self._outcomes.prepared or self._outcomes.applied(*key):
            return self._log.position
        if self._outcomes.outcome(*key) == "aborted":
            raise VersionMismatch("the transaction was aborted before it was prepared")
        return self._append_changes(Prepared, transaction, payload)

    def commit(self, client: int, sequence: int) -> int:
        """Apply a prepared transaction. One that is neither prepared nor decided is an error."""
        key = (client, sequence)
        if self._outcomes.outcome(*key) == "committed":
            return self._log.position
        assert key in self._outcomes.prepared, f"{key} is not prepared"
        return self._append_small(Commit(client, sequence))

    def abort(self, client: int, sequence: int) -> int:
        """Record that a transaction, prepared here or not, will never apply."""
        outcome = self._outcomes.outcome(client, sequence)
        assert outcome != "committed", f"({client}, {sequence}) is committed"
        if outcome is not None:
            return self._log.position
        return self._append_small(Abort(client, sequence))

    def prepared(self) -> list[Transaction]:
        """Return the prepared transactions; the data of their writes is not included."""
        return [_unresolved(prepared) for prepared in self._outcomes.prepared.values()]

    def outcome(self, client: int, sequence: int) -> Outcome | None:
        """Return what was decided about a transaction that was prepared or aborted, or None."""
        return self._outcomes.outcome(client, sequence)

    def forget_outcomes(self, client: int, below: int) -> int:
        """Forget the client's outcomes with a lower sequence."""
        return self._append_small(ForgetOutcomes(client, below))

    def applied(self, client: int, sequence: int) -> bool:
        """Tell whether the transaction is applied."""
        return self._outcomes.applied(client, sequence)

    def set_stable(self, client: int, sequence: int) -> int:
        """Every sequence up to this one is applied everywhere; the single ones are forgotten."""
        known = self._outcomes.clients.get(client)
        if known is not None and known.stable >= sequence:
            return self._log.position
        return self._append_small(Stable(client, sequence))

    def forget_client(self, client: int) -> int:
        """Forget all about a client that is gone for good."""
        return self._append_small(ForgetClient(client))

    def replace(
        self,
        object_id: ObjectId,
        group: int,
        version: Version,
        operations: Sequence[Operation],
        payload: Buffer = b"",
        shares: Sequence[tuple[int, bytes]] = (),
    ) -> int:
        """Change an object for resync, whatever version it has; it is at `version` afterwards.

        With version INCOMPLETE a long replacement may come in pieces; the last one gives the real
        version. shares: (block, identity) of blocks this brick has already, see `has_chunk`.
        Raises NoSuchChunk (nothing happened), and what `apply` raises.
        """
        self._log.check()
        change = Change(object_id, group, ABSENT, version, tuple(operations))
        need = self._check_shape((change,), payload)
        self._check_room(need, (change,))
        shared = self._resolve_shares(shares)
        data = _solid(payload)
        ingested = self._ingest.resolve((change,), data, self._next_cid)
        resolved = ingested.changes[0]
        both = msgspec.structs.replace(resolved, operations=[*resolved.operations, *shared])
        ingested.changes[0] = both
        return self._append_ingested(Replaced(0, 0, 0, ingested.changes), ingested, data)

    # -- appending

    @property
    def _next_cid(self) -> int:
        return self._state.chunks.next_cid

    def _append_changes(
        self,
        kind: type[Changes],
        transaction: Transaction,
        payload: Buffer,
        *,
        hasten: bool = False,
    ) -> int:
        changes = transaction.changes
        locked, version = self._outcomes.locked, self._state.version
        for change in changes:
            if change.object_id in locked:
                raise VersionMismatch("a prepared transaction holds the object")
            if version(change.object_id) != change.expected:
                raise VersionMismatch(
                    f"the object is at {version(change.object_id)}, not at {change.expected}"
                )
        self._check_room(self._check_shape(changes, payload), changes)
        data = _solid(payload)
        ingested = self._ingest.resolve(changes, data, self._next_cid)
        record = kind(transaction.client, transaction.sequence, transaction.epoch, ingested.changes)
        return self._append_ingested(record, ingested, data, hasten=hasten)

    def _append_ingested(
        self, record: Changes, ingested: Ingested, payload: bytes, *, hasten: bool = False
    ) -> int:
        first_cid = ingested.first_cid if ingested.fresh else 0
        runs = self._log.append(encode(record), memoryview(payload), ingested.ranges, first_cid)
        if hasten:
            self._log.when_durable(self._log.position, _nobody_waits)
        self._contents.enact(record, runs, ingested.checksums, first_cid)
        if ingested.fresh:
            self._ingest.learn(ingested)
        self._upkeep.poke_if_due()
        return self._log.position

    def _append_small(self, record: Record) -> int:
        self._log.check()
        if self._log.segment_room_blocks() < self._small_blocks:
            self._upkeep.poke(self._small_blocks)
            raise WouldBlock("the log waits for the cleaner or for a new segment")
        self._log.append(encode(record), memoryview(b""))
        self._contents.enact(record)
        self._upkeep.poke_if_due()
        return self._log.position

    def _check_shape(self, changes: tuple[Change, ...], payload: Buffer) -> Need:
        need = need_of(changes)
        if need.data_blocks * BLOCK_BYTES != len(payload):
            raise InvalidArgument("the payload is not what the writes take")
        if len(changes) == 1 and len(changes[0].operations) == 1 and need.data_blocks:
            return need  # one write
        changed = {change.object_id for change in changes}
        if len(changed) < len(changes):
            raise InvalidArgument("a transaction changes an object only once")
        for change in changes:
            for operation in change.operations:
                if type(operation) is Put:
                    if not 0 < len(operation.key) <= _MAX_KEY_BYTES:
                        raise InvalidArgument("a key has 1 to 320 bytes")
                elif type(operation) is Share and operation.source not in changed:
                    raise VersionMismatch("blocks are shared with an object that is not here")
        return need

    def _check_room(self, need: Need, changes: Sequence[Change]) -> None:
        if self._upkeep.behind:
            raise WouldBlock("a checkpoint is being written, and too much has changed since")
        self._room.check_space(need.data_blocks, changes)
        try:
            self._room.check_log(need)
        except WouldBlock:
            self._upkeep.poke(self._log.blocks_of(need.nbytes))
            raise

    def _resolve_shares(self, shares: Sequence[tuple[int, bytes]]) -> list[Placed]:
        placed = []
        for block, identity in shares:
            cid = self._hints.find(identity)
            if cid is None:
                raise NoSuchChunk(f"no chunk {identity.hex()} for block {block}")
            placed.append(Placed(block, array("Q", [cid]), b""))
        return placed


def _solid(payload: Buffer) -> bytes:
    """Return the payload as bytes: cutting blocks from it is cheapest."""
    return payload if type(payload) is bytes else bytes(payload)


def _nobody_waits(_: BrickFailed | None) -> None:
    """Who waits until it is durable comes later."""


def _unresolved(prepared: Prepared) -> Transaction:
    """Return the transaction as its client sent it."""
    changes = tuple(
        Change(
            change.object_id,
            change.group,
            change.expected,
            change.version,
            tuple(_unresolved_operation(operation) for operation in change.operations),
        )
        for change in prepared.changes
    )
    return Transaction(prepared.client, prepared.sequence, prepared.epoch, changes)


def _unresolved_operation(operation: Resolved) -> Operation:
    if isinstance(operation, Placed):
        return Write(operation.first, len(operation.cids))
    if isinstance(operation, SharedPages):
        return Write(operation.first_page * MAP_BLOCKS, len(operation.numbers) * MAP_BLOCKS)
    if isinstance(operation, SharedMap):
        return Write(0, STRIPE_BLOCKS)
    return operation
