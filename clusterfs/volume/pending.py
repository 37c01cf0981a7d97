"""A transaction on its way: who must answer, who did, and what the answers amount to. PURE.

A replica that fails where another applied must leave the set; if no in-sync replica applied,
nothing has happened and the transaction fails.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from clusterfs.errors import (
    BrickFailed,
    ChunkCorrupted,
    FilesystemError,
    InvalidArgument,
    OutOfSpace,
    ReadOnly,
    VersionMismatch,
)
from clusterfs.store.objects import ObjectId, Transaction
from clusterfs.volume.messages import Code, Stage
from clusterfs.volume.ports import Buffer

ERRORS: dict[Code, type[FilesystemError]] = {
    Code.SPACE: OutOfSpace,
    Code.MISMATCH: VersionMismatch,
    Code.BRICK: BrickFailed,
    Code.CORRUPTED: ChunkCorrupted,
    Code.MALFORMED: InvalidArgument,
    Code.READ_ONLY: ReadOnly,
}


class Outcome(NamedTuple):
    """What a full set of answers means: done, an error for the caller, or replicas to drop."""

    error: Code = Code.OK
    drop: tuple[int, ...] = ()


class Pending:
    """One transaction from `commit` until it is acknowledged or has failed."""

    __slots__ = (
        "applied",
        "charged",
        "decided",
        "durable",
        "error",
        "everywhere",
        "failed",
        "finished",
        "groups",
        "issued",
        "objects",
        "participants",
        "payload",
        "since_s",
        "stage",
        "transaction",
        "waiting",
        "wake",
    )

    def __init__(self, transaction: Transaction, payload: Buffer, *, durable: bool = False) -> None:
        self.transaction = transaction
        self.durable = durable  # replicas shall answer from disk
        self.everywhere = False  # durable, and every replica of the volume was asked
        self.payload = payload
        self.groups = tuple(sorted({change.group for change in transaction.changes}))
        self.objects: tuple[ObjectId, ...] = tuple(c.object_id for c in transaction.changes)
        self.stage = Stage.APPLY
        self.decided = False  # to commit: it was prepared everywhere once
        self.issued = False
        self.waiting = 0
        self.applied = 0
        self.charged = 0
        self.participants = 0
        self.failed: dict[int, Code] = {}
        self.since_s = 0.0
        self.finished = False
        self.error: Exception | None = None
        self.wake: Any = None  # whom to wake when it is finished

    def expect(self, stage: Stage, mask: int, now_s: float) -> None:
        """Wait for answers of these nodes."""
        self.issued = True
        self.stage = stage
        self.waiting = mask
        self.applied = 0
        self.failed = {}
        self.since_s = now_s

    def answered(self, node: int, code: Code) -> bool:
        """Take an answer; tell whether it was the last one missing."""
        bit = 1 << node
        if not self.waiting & bit:
            return False
        self.waiting &= ~bit
        if code is Code.OK:
            self.applied |= bit
        else:
            self.failed[node] = code
        return not self.waiting


def judge(in_sync: Sequence[int], applied: int, failed: Mapping[int, Code]) -> Outcome:
    """Say what a full set of answers means.

    Args:
        in_sync: the in-sync masks of the transaction's groups.
        applied: mask of the replicas that applied, or prepared, or noted it.
        failed: what the others said.
    """
    if not failed:
        return Outcome()
    truth = 0
    for mask in in_sync:
        truth |= mask
    if all(applied & mask for mask in in_sync):
        return Outcome(drop=tuple(sorted(failed)))
    codes = [code for node, code in sorted(failed.items()) if truth >> node & 1]
    for code in (Code.READ_ONLY, Code.SPACE, Code.MISMATCH, Code.BRICK, Code.MALFORMED):
        if code in codes:
            return Outcome(error=code)
    return Outcome(error=Code.BRICK)
