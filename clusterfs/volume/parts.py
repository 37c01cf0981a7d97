"""A part of a transaction, with the part of the payload that belongs to it. PURE."""

from collections.abc import Callable, Collection

import msgspec

from clusterfs.store.objects import BLOCK_BYTES, Change, Transaction, Write
from clusterfs.volume.ports import Buffer


def payload_bytes(change: Change) -> int:
    """Return how much of the payload a change consumes."""
    return BLOCK_BYTES * sum([op.count for op in change.operations if isinstance(op, Write)])


def part(
    transaction: Transaction, payload: Buffer, wanted: Callable[[Change], bool]
) -> tuple[Transaction, Buffer]:
    """Return the transaction with only the wanted changes, and their data."""
    kept: list[Change] = []
    pieces: list[Buffer] = []
    position = 0
    for change in transaction.changes:
        size = payload_bytes(change)
        if wanted(change):
            kept.append(change)
            pieces.append(memoryview(payload)[position : position + size])
        position += size
    if len(kept) == len(transaction.changes):
        return transaction, payload
    return msgspec.structs.replace(transaction, changes=tuple(kept)), b"".join(pieces)


def of_groups(
    transaction: Transaction, payload: Buffer, groups: Collection[int]
) -> tuple[Transaction, Buffer]:
    """Return the part that concerns these groups."""
    return part(transaction, payload, lambda change: change.group in groups)
