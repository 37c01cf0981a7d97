"""The bytes of a log: one header block, payload blocks, and what of the records did not fit. PURE.

A **log** is written with one write and is valid or not as a whole:

    block 0            header (96 bytes), then the first 4000 bytes of the records
    blocks 1 .. n      n payload blocks of 4096 bytes
    blocks n+1 ..      the rest of the records, padded with zeros

So a payload block's place is known when it is appended, long before the log is sealed. The records
are a run of **fragments**. A fragment carries a piece of one transaction's body and some of its
payload blocks; a transaction's fragments follow one another through as many logs as it takes, BEGIN
on the first, COMMIT on the last. Integers are little endian.

Invariants:
  * the checksum is xxh3_64 over the whole written log with the checksum field zero: nothing is
    outside it, id and length included;
  * ids are contiguous, and `previous` is the checksum of the log with id - 1: what a former lap
    or a run that was cut off left behind cannot continue the chain;
  * `durable` is the highest id known synced when the log was sealed: a bad log above every
    `durable` seen is a torn tail, a bad log at or below one is media damage.

The same layout in prose, byte by byte: docs/formats/log.md.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

import xxhash

from clusterfs.store.objects import BLOCK_BYTES
from clusterfs.store.tail import STREAMS

MAGIC = b"CFSLOG\r\n"
FORMAT_VERSION = 4
_READABLE = (2, 3, 4)  # 2 knew no shared map pages, 3 no shared maps

_HEADER = struct.Struct("<8sHBBI16sQQQQIIIIIIQ")
HEADER_BYTES = _HEADER.size
INLINE_RECORD_BYTES = BLOCK_BYTES - HEADER_BYTES
_CHECKSUM = struct.Struct("<Q")
_CHECKSUM_AT = HEADER_BYTES - _CHECKSUM.size
_OWN_CHECKSUM = struct.Struct("<I")
_OWN_AT = _CHECKSUM_AT - _OWN_CHECKSUM.size

_FRAGMENT = struct.Struct("<B3xIIQQ")
FRAGMENT_BYTES = _FRAGMENT.size

BEGIN = 1
COMMIT = 2

KIND_DATA = 1
KIND_MARK = 2  # no records: it only tells which id is durable

ZERO_BLOCK = bytes(BLOCK_BYTES)


class Header(NamedTuple):
    """What a log says about itself."""

    kind: int
    stream: int  # see tail.py
    length_bytes: int  # of the whole log
    store_id: bytes
    epoch: int  # which opening of the brick wrote it
    id: int
    previous: int  # checksum of the log with id - 1
    durable: int
    segment: int
    block: int
    fragments: int
    record_bytes: int
    payload_blocks: int
    checksum: int


class Fragment(NamedTuple):
    """A piece of a transaction. Its payload blocks hold chunks first_cid, first_cid + 1, ..."""

    flags: int
    body: bytes
    blocks: int
    first_cid: int  # 0: the body names the chunks (relocation)
    serial: int  # the same in every fragment of a transaction


def pack_fragment(flags: int, body_bytes: int, blocks: int, first_cid: int, serial: int) -> bytes:
    """Return the head of a fragment; body_bytes bytes of body follow it."""
    return _FRAGMENT.pack(flags, body_bytes, blocks, first_cid, serial)


def blocks_needed(record_bytes: int, payload_blocks: int) -> int:
    """Return how many blocks a log with that content has."""
    overflow = record_bytes - INLINE_RECORD_BYTES
    return 1 + payload_blocks + (-(-overflow // BLOCK_BYTES) if overflow > 0 else 0)


def record_room(blocks: int, record_bytes: int, payload_blocks: int) -> int:
    """Return how many more bytes of records fit into a log of `blocks` blocks."""
    return INLINE_RECORD_BYTES + (blocks - 1 - payload_blocks) * BLOCK_BYTES - record_bytes


def finish_log(memory: memoryview, header: Header, records: bytes | bytearray) -> int:
    """Complete a log whose payload is already in `memory`; return its checksum.

    memory: the whole log; its length is header.length_bytes.
    """
    assert len(memory) == header.length_bytes
    assert blocks_needed(len(records), header.payload_blocks) * BLOCK_BYTES == len(memory)
    inline, tail = records[:INLINE_RECORD_BYTES], records[INLINE_RECORD_BYTES:]
    memory[:BLOCK_BYTES] = (_pack_header(header) + inline).ljust(BLOCK_BYTES, b"\0")
    if tail:
        at = (1 + header.payload_blocks) * BLOCK_BYTES
        memory[at:] = tail.ljust(len(memory) - at, b"\0")
    checksum = xxhash.xxh3_64_intdigest(memory)
    _CHECKSUM.pack_into(memory, _CHECKSUM_AT, checksum)
    return checksum


def _pack_header(header: Header) -> bytes:
    packed = _HEADER.pack(
        MAGIC,
        FORMAT_VERSION,
        header.kind,
        header.stream,
        header.length_bytes,
        header.store_id,
        header.epoch,
        header.id,
        header.previous,
        header.durable,
        header.segment,
        header.block,
        header.fragments,
        header.record_bytes,
        header.payload_blocks,
        0,
        header.checksum,
    )
    own = _OWN_CHECKSUM.pack(xxhash.xxh32_intdigest(packed[:_OWN_AT]))
    return packed[:_OWN_AT] + own + packed[_CHECKSUM_AT:]


def parse_header(block: bytes | memoryview, store_id: bytes) -> Header | None:
    """Return the header if the block starts with one of this store; the log is not verified yet."""
    if len(block) < BLOCK_BYTES or block[: len(MAGIC)] != MAGIC:
        return None
    fields = _HEADER.unpack_from(block)
    version, kind, stream = fields[1:4]
    header = Header._make((kind, stream, *fields[4:15], fields[16]))
    if (
        version not in _READABLE
        or header.store_id != store_id
        or kind not in (KIND_DATA, KIND_MARK)
    ):
        return None
    if stream >= STREAMS or fields[15] != xxhash.xxh32_intdigest(block[:_OWN_AT]):
        return None
    blocks = blocks_needed(header.record_bytes, header.payload_blocks)
    return header if header.length_bytes == blocks * BLOCK_BYTES else None


def parse_newer(block: bytes | memoryview, store_id: bytes) -> tuple[int, int, int] | None:
    """Return (version, length, checksum) if the block starts like a log of a newer version."""
    if len(block) < BLOCK_BYTES or block[: len(MAGIC)] != MAGIC:
        return None
    fields = _HEADER.unpack_from(block)
    version, length_bytes, store, checksum = fields[1], fields[4], fields[5], fields[16]
    if version <= FORMAT_VERSION or store != store_id or length_bytes % BLOCK_BYTES:
        return None
    return version, length_bytes, checksum


def has_checksum(log: bytes, checksum: int) -> bool:
    """Tell whether that is the checksum of these bytes, with the field itself zero."""
    state = xxhash.xxh3_64()
    state.update(log[:_CHECKSUM_AT])
    state.update(bytes(_CHECKSUM.size))
    state.update(memoryview(log)[HEADER_BYTES:])
    return state.intdigest() == checksum


def verify_log(log: bytes, header: Header) -> bool:
    """Tell whether the checksum covers exactly these bytes."""
    return len(log) == header.length_bytes and has_checksum(log, header.checksum)


def records_of(log: bytes, header: Header) -> bytes:
    """Return the records of a verified log."""
    inline = log[HEADER_BYTES : HEADER_BYTES + min(header.record_bytes, INLINE_RECORD_BYTES)]
    rest = header.record_bytes - len(inline)
    at = (1 + header.payload_blocks) * BLOCK_BYTES
    return inline + log[at : at + rest]


def fragments_of(records: bytes) -> Iterator[Fragment]:
    """Yield the fragments in the records of a verified log."""
    at = 0
    while at < len(records):
        flags, body_bytes, blocks, first_cid, serial = _FRAGMENT.unpack_from(records, at)
        at += FRAGMENT_BYTES
        yield Fragment(flags, records[at : at + body_bytes], blocks, first_cid, serial)
        at += body_bytes


def seal_value(key: bytes, value: bytes) -> bytes:
    """Return the value as the checkpoint keeps it: xxh3_64 over key and value, then the value."""
    return _CHECKSUM.pack(xxhash.xxh3_64_intdigest(key + value)) + value


def open_value(key: bytes, sealed: bytes) -> bytes | None:
    """Return the value, or None if its checksum is wrong."""
    value = sealed[_CHECKSUM.size :]
    if len(sealed) < _CHECKSUM.size:
        return None
    return value if sealed[: _CHECKSUM.size] == seal_value(key, value)[: _CHECKSUM.size] else None
