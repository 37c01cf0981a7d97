import struct

import pytest
import xxhash

from clusterfs.store import format as layout
from clusterfs.store.format import (
    BEGIN,
    COMMIT,
    FORMAT_VERSION,
    FRAGMENT_BYTES,
    HEADER_BYTES,
    INLINE_RECORD_BYTES,
    Header,
    blocks_needed,
    finish_log,
    fragments_of,
    open_value,
    pack_fragment,
    parse_header,
    record_room,
    records_of,
    seal_value,
    verify_log,
)
from clusterfs.store.objects import BLOCK_BYTES

STORE_ID = bytes(range(16))


def make_log(records: bytes, payload: bytes, *, log_id: int = 7) -> tuple[bytes, int]:
    blocks = blocks_needed(len(records), len(payload) // BLOCK_BYTES)
    memory = bytearray(b"\xee" * blocks * BLOCK_BYTES)  # a used RAM buffer
    memory[BLOCK_BYTES : BLOCK_BYTES + len(payload)] = payload
    header = Header(
        kind=layout.KIND_DATA,
        stream=1,
        length_bytes=len(memory),
        store_id=STORE_ID,
        epoch=3,
        id=log_id,
        previous=11,
        durable=5,
        segment=2,
        block=9,
        fragments=1,
        record_bytes=len(records),
        payload_blocks=len(payload) // BLOCK_BYTES,
        checksum=0,
    )
    checksum = finish_log(memoryview(memory), header, records)
    return bytes(memory), checksum


@pytest.mark.parametrize("record_bytes", [0, 1, 3999, 4000, 4001, 4000 + 4096, 12345])
@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_a_log_reads_back(record_bytes: int, blocks: int) -> None:
    records, payload = b"r" * record_bytes, b"p" * blocks * BLOCK_BYTES
    log, checksum = make_log(records, payload)
    header = parse_header(log[:BLOCK_BYTES], STORE_ID)
    assert header is not None
    assert (header.id, header.epoch, header.previous, header.durable) == (7, 3, 11, 5)
    assert (header.stream, header.kind) == (1, layout.KIND_DATA)
    assert (header.segment, header.block, header.checksum) == (2, 9, checksum)
    assert verify_log(log, header)
    assert records_of(log, header) == records
    assert log[BLOCK_BYTES : BLOCK_BYTES + len(payload)] == payload
    without_checksums = log[: HEADER_BYTES - 12] + log[HEADER_BYTES:]
    assert b"\xee" not in without_checksums, "what the RAM buffer held before must not be written"


def test_every_flipped_bit_is_noticed() -> None:
    log, _ = make_log(b"abc", b"p" * BLOCK_BYTES)
    for at in [*range(HEADER_BYTES), 100, 4095, 4096, len(log) - 1]:
        for bit in range(8):
            bad = bytearray(log)
            bad[at] ^= 1 << bit
            header = parse_header(bytes(bad[:BLOCK_BYTES]), STORE_ID)
            assert header is None or not verify_log(bytes(bad[: header.length_bytes]), header)


def test_a_log_of_another_store_or_of_zeros_is_no_log() -> None:
    log, _ = make_log(b"abc", b"")
    assert parse_header(log, bytes(16)) is None
    assert parse_header(bytes(BLOCK_BYTES), STORE_ID) is None
    assert parse_header(log[:100], STORE_ID) is None


def test_a_log_of_another_format_or_an_unknown_stream_is_no_log() -> None:
    log = bytearray(make_log(b"abc", b"")[0])
    for version in (1, FORMAT_VERSION + 1):
        log[8] = version
        assert parse_header(stamped(log), STORE_ID) is None
    log[8], log[11] = FORMAT_VERSION, 2
    assert parse_header(stamped(log), STORE_ID) is None


def stamped(log: bytearray) -> bytes:
    """Return the log with the right checksum of its header."""
    return bytes(log[:84]) + xxhash.xxh32_intdigest(log[:84]).to_bytes(4, "little") + log[88:]


@pytest.mark.parametrize("older", [2, 3])
def test_logs_of_older_formats_are_read(older: int) -> None:
    log = bytearray(make_log(b"abc", b"")[0])
    assert log[8] == FORMAT_VERSION == 4
    log[8] = older
    assert parse_header(stamped(log), STORE_ID) is not None


def test_a_shorter_or_longer_log_does_not_verify() -> None:
    log, _ = make_log(b"abc", b"p" * BLOCK_BYTES)
    header = parse_header(log, STORE_ID)
    assert header is not None
    assert not verify_log(log[:-1], header)
    assert not verify_log(log + bytes(BLOCK_BYTES), header)


def test_fragments_read_back() -> None:
    one = pack_fragment(BEGIN, 3, 2, 40, 1) + b"abc"
    two = pack_fragment(COMMIT, 0, 5, 42, 1)
    found = list(fragments_of(one + two))
    assert [(f.flags, f.body, f.blocks, f.first_cid, f.serial) for f in found] == [
        (BEGIN, b"abc", 2, 40, 1),
        (COMMIT, b"", 5, 42, 1),
    ]


def test_room_and_need_agree() -> None:
    for blocks in (1, 2, 8):
        for payload in range(blocks):
            room = record_room(blocks, 0, payload)
            assert blocks_needed(room, payload) == blocks
            assert blocks_needed(room + 1, payload) == blocks + 1
    assert record_room(1, 0, 0) == INLINE_RECORD_BYTES
    assert struct.calcsize("<B3xIIQQ") == FRAGMENT_BYTES


def test_a_value_is_bound_to_its_key() -> None:
    sealed = seal_value(b"key", b"value")
    assert open_value(b"key", sealed) == b"value"
    assert open_value(b"kez", sealed) is None
    assert open_value(b"key", sealed[:-1]) is None
    assert open_value(b"key", b"") is None
