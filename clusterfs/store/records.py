"""What a transaction's body says: the logical changes that replay repeats. PURE.

A body is one of the records below, packed with struct. Changes are **resolved**: where a
transaction says Write, the body says Placed, the chunk numbers of the blocks. Replay therefore
hashes nothing and decides nothing; it makes the same state from the same bytes.

Invariant: decode(encode(record)) == record.
"""

import struct
import sys
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from clusterfs.store.objects import (
    Delete,
    Discard,
    ObjectId,
    Put,
    Remove,
    Version,
)

assert sys.byteorder == "little", "chunk numbers are stored as this machine has them"

IDENTITY_BYTES = 16
HOLE = 0
LOST = (1 << 64) - 1  # in a map: the block was there, its chunk is not; reading it is an error

_TRANSACTION, _PREPARE, _REPLACE, _COMMIT, _ABORT = 1, 2, 3, 4, 5
_STABLE, _FORGET_CLIENT, _FORGET_OUTCOMES, _FACT = 6, 7, 8, 9
_RELOCATE = 10

_CHANGES = struct.Struct("<BQQQH")
_CHANGE = struct.Struct("<16sHQQQQI")
_PUT = struct.Struct("<BHI")
_REMOVE = struct.Struct("<BH")
_PLACED = struct.Struct("<BIII")
_ONE_WRITE = struct.Struct("<BQQQH16sHQQQQIBIII")  # the first three, one after the other
_DISCARD = struct.Struct("<BII")
_NUMBERS = struct.Struct("<BQQ")
_FACT_HEAD = struct.Struct("<BHBI")
_RELOCATE_HEAD = struct.Struct("<BI")
_SHARED = struct.Struct("<BII16sI")
_SHARED_MAP = struct.Struct("<BQ16s")
_TAG_PUT, _TAG_REMOVE, _TAG_PLACED, _TAG_DISCARD, _TAG_DELETE = 1, 2, 3, 4, 5
_TAG_SHARED, _TAG_SHARED_MAP = 6, 7


class Placed(msgspec.Struct, frozen=True, gc=False):
    """A resolved Write: the blocks from `first` hold these chunks; 0 is a hole."""

    first: int
    cids: "array[int]"
    identities: bytes  # 16 bytes for each chunk that is new in this record, in order


class SharedPages(msgspec.Struct, frozen=True, gc=False):
    """A resolved Share of whole map pages: page first_page + i becomes the one of that number.

    0 is a page of holes. A number that no page has yet is given to the source's page
    source_page + i, as it is before anything of the transaction is performed.
    """

    first_page: int
    numbers: "array[int]"
    source: ObjectId
    source_page: int


class SharedMap(msgspec.Struct, frozen=True, gc=False):
    """A resolved Share of all blocks: the object's map becomes the one of that number.

    It is the source's, as it is before anything of the transaction is performed. If that has no
    number yet, it gets this one.
    """

    number: int
    source: ObjectId


Resolved = Put | Remove | Placed | SharedPages | SharedMap | Discard | Delete


class ResolvedChange(msgspec.Struct, frozen=True, gc=False):
    """A Change whose data has its place."""

    object_id: ObjectId
    group: int
    expected: Version
    version: Version
    operations: Sequence[Resolved]


class Changes(msgspec.Struct, frozen=True, gc=False):
    """A transaction that applies at once."""

    client: int
    sequence: int
    epoch: int
    changes: Sequence[ResolvedChange]


class Prepared(Changes, frozen=True, gc=False):
    """A transaction that waits for its Commit or Abort."""


class Replaced(Changes, frozen=True, gc=False):
    """Changes made by resync: they apply whatever version the object has."""


class Commit(msgspec.Struct, frozen=True, gc=False):
    """The prepared transaction applies."""

    client: int
    sequence: int


class Abort(msgspec.Struct, frozen=True, gc=False):
    """The transaction, prepared or not, will never apply."""

    client: int
    sequence: int


class Stable(msgspec.Struct, frozen=True, gc=False):
    """Every sequence of the client up to this one is applied on all replicas."""

    client: int
    sequence: int


class ForgetClient(msgspec.Struct, frozen=True, gc=False):
    """The client is gone for good, with everything about it."""

    client: int


class ForgetOutcomes(msgspec.Struct, frozen=True, gc=False):
    """Nobody will ask any more for the client's outcomes below this sequence."""

    client: int
    below: int


class Fact(msgspec.Struct, frozen=True, gc=False):
    """A small durable value."""

    name: str
    value: int | bytes


class Relocate(msgspec.Struct, frozen=True, gc=False):
    """Chunks move: the payload holds them in this order. One counts only if still at its source.

    units: how many units of the payload each takes, a byte each; they lie one behind the other.
    """

    cids: "array[int]"
    sources: "array[int]"
    units: bytes


Record = (
    Changes
    | Prepared
    | Replaced
    | Commit
    | Abort
    | Stable
    | ForgetClient
    | ForgetOutcomes
    | Fact
    | Relocate
)

_CHANGES_KINDS: dict[type, int] = {
    Changes: _TRANSACTION,
    Prepared: _PREPARE,
    Replaced: _REPLACE,
}
_CHANGES_TYPES: dict[int, type[Changes]] = {kind: cls for cls, kind in _CHANGES_KINDS.items()}


def encode(record: Record) -> bytes:
    """Return the body of a record."""
    return _ENCODERS[type(record)](record)


def _encode_changes(record: Changes) -> bytes:
    changes = record.changes
    if len(changes) == 1 and len(changes[0].operations) == 1:
        operation = changes[0].operations[0]
        if type(operation) is Placed:
            return _encode_one_write(record, changes[0], operation)
    parts = [
        _CHANGES.pack(
            _CHANGES_KINDS[type(record)],
            record.client,
            record.sequence,
            record.epoch,
            len(record.changes),
        )
    ]
    for change in record.changes:
        expected, version = change.expected, change.version
        operations = change.operations
        parts.append(
            _CHANGE.pack(
                change.object_id,
                change.group,
                expected.epoch,
                expected.counter,
                version.epoch,
                version.counter,
                len(operations),
            )
        )
        for operation in operations:
            if isinstance(operation, Put):  # most of them
                key, value = operation.key, operation.value
                parts += (_PUT.pack(_TAG_PUT, len(key), len(value)), key, value)
            else:
                _encode_operation(operation, parts)
    return b"".join(parts)


def _encode_one_write(record: Changes, change: ResolvedChange, write: Placed) -> bytes:
    """Do the same in one step for what most transactions are."""
    expected, version = change.expected, change.version
    head = _ONE_WRITE.pack(
        _CHANGES_KINDS[type(record)],
        record.client,
        record.sequence,
        record.epoch,
        1,
        change.object_id,
        change.group,
        expected.epoch,
        expected.counter,
        version.epoch,
        version.counter,
        1,
        _TAG_PLACED,
        write.first,
        len(write.cids),
        len(write.identities) // IDENTITY_BYTES,
    )
    return head + write.cids.tobytes() + write.identities


def _encode_operation(
    operation: Remove | Placed | SharedPages | SharedMap | Discard | Delete, parts: list[bytes]
) -> None:
    if isinstance(operation, Placed):
        cids, identities = operation.cids, operation.identities
        fresh = len(identities) // IDENTITY_BYTES
        parts.append(_PLACED.pack(_TAG_PLACED, operation.first, len(cids), fresh))
        parts.append(cids.tobytes())
        parts.append(identities)
        return
    match operation:
        case Remove(key=key):
            parts.append(_REMOVE.pack(_TAG_REMOVE, len(key)))
            parts.append(key)
        case Discard(first=first, count=count):
            parts.append(_DISCARD.pack(_TAG_DISCARD, first, count))
        case SharedPages(first_page=first, numbers=numbers, source=source, source_page=page):
            parts.append(_SHARED.pack(_TAG_SHARED, first, len(numbers), source, page))
            parts.append(numbers.tobytes())
        case SharedMap(number=number, source=source):
            parts.append(_SHARED_MAP.pack(_TAG_SHARED_MAP, number, source))
        case Delete():
            parts.append(bytes((_TAG_DELETE,)))


def _encode_fact(record: Fact) -> bytes:
    name = record.name.encode()
    is_number = isinstance(record.value, int)
    value = record.value.to_bytes(8, "little") if isinstance(record.value, int) else record.value
    return _FACT_HEAD.pack(_FACT, len(name), is_number, len(value)) + name + value


def _encode_relocate(record: Relocate) -> bytes:
    head = _RELOCATE_HEAD.pack(_RELOCATE, len(record.cids))
    return head + record.cids.tobytes() + record.sources.tobytes() + record.units


_ENCODERS: dict[type, Callable[[Any], bytes]] = {
    Changes: _encode_changes,
    Prepared: _encode_changes,
    Replaced: _encode_changes,
    Commit: lambda r: _NUMBERS.pack(_COMMIT, r.client, r.sequence),
    Abort: lambda r: _NUMBERS.pack(_ABORT, r.client, r.sequence),
    Stable: lambda r: _NUMBERS.pack(_STABLE, r.client, r.sequence),
    ForgetClient: lambda r: _NUMBERS.pack(_FORGET_CLIENT, r.client, 0),
    ForgetOutcomes: lambda r: _NUMBERS.pack(_FORGET_OUTCOMES, r.client, r.below),
    Fact: _encode_fact,
    Relocate: _encode_relocate,
}


def decode(body: bytes) -> Record:
    """Return the record. The body comes from a verified log: it is whole."""
    kind = body[0]
    if kind in _CHANGES_TYPES:
        return _decode_changes(body)
    if kind == _FACT:
        return _decode_fact(body)
    if kind == _RELOCATE:
        return _decode_relocate(body)
    _, client, number = _NUMBERS.unpack(body)
    return _NUMBERS_TYPES[kind](client, number)


_NUMBERS_TYPES: dict[int, Callable[[int, int], Record]] = {
    _COMMIT: Commit,
    _ABORT: Abort,
    _STABLE: Stable,
    _FORGET_CLIENT: lambda client, _: ForgetClient(client),
    _FORGET_OUTCOMES: ForgetOutcomes,
}


def _decode_changes(body: bytes) -> Changes:
    kind, client, sequence, epoch, count = _CHANGES.unpack_from(body)
    at = _CHANGES.size
    changes = []
    for _ in range(count):
        object_id, group, *versions, operation_count = _CHANGE.unpack_from(body, at)
        at += _CHANGE.size
        operations = []
        for _ in range(operation_count):
            operation, at = _decode_operation(body, at)
            operations.append(operation)
        expected, version = Version(*versions[:2]), Version(*versions[2:])
        changes.append(ResolvedChange(object_id, group, expected, version, operations))
    assert at == len(body)
    return _CHANGES_TYPES[kind](client, sequence, epoch, changes)


def _decode_operation(body: bytes, at: int) -> tuple[Resolved, int]:
    if body[at] in {_TAG_SHARED, _TAG_SHARED_MAP}:
        return _decode_shared(body, at)
    match body[at]:
        case 1:
            _, key_bytes, value_bytes = _PUT.unpack_from(body, at)
            at += _PUT.size
            middle, end = at + key_bytes, at + key_bytes + value_bytes
            return Put(body[at:middle], body[middle:end]), end
        case 2:
            _, key_bytes = _REMOVE.unpack_from(body, at)
            at += _REMOVE.size
            return Remove(body[at : at + key_bytes]), at + key_bytes
        case 3:
            _, first, count, fresh = _PLACED.unpack_from(body, at)
            at += _PLACED.size
            middle, end = at + count * 8, at + count * 8 + fresh * IDENTITY_BYTES
            return Placed(first, array("Q", body[at:middle]), body[middle:end]), end
        case 4:
            _, first, count = _DISCARD.unpack_from(body, at)
            return Discard(first, count), at + _DISCARD.size
        case tag:
            assert tag == _TAG_DELETE, f"operation tag {tag}"
            return Delete(), at + 1


def _decode_shared(body: bytes, at: int) -> tuple[SharedPages | SharedMap, int]:
    if body[at] == _TAG_SHARED_MAP:
        _, number, source = _SHARED_MAP.unpack_from(body, at)
        return SharedMap(number, ObjectId(source)), at + _SHARED_MAP.size
    _, first, count, source, page = _SHARED.unpack_from(body, at)
    at += _SHARED.size
    numbers = array("Q", body[at : at + count * 8])
    return SharedPages(first, numbers, ObjectId(source), page), at + count * 8


def _decode_fact(body: bytes) -> Fact:
    _, name_bytes, is_number, value_bytes = _FACT_HEAD.unpack_from(body)
    middle = _FACT_HEAD.size + name_bytes
    name = body[_FACT_HEAD.size : middle].decode()
    value = body[middle : middle + value_bytes]
    return Fact(name, int.from_bytes(value, "little") if is_number else value)


def _decode_relocate(body: bytes) -> Relocate:
    _, count = _RELOCATE_HEAD.unpack_from(body)
    end = _RELOCATE_HEAD.size + 16 * count
    numbers = array("Q", body[_RELOCATE_HEAD.size : end])
    return Relocate(numbers[:count], numbers[count:], body[end:])
