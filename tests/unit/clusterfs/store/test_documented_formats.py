"""A real brick read by docs/formats alone: another reader, written from those pages.

The offsets of a log's header are taken from the table in log.md itself; the rest is here as it is
there. None of the store's own parsers is used, so what the pages say is what the bytes are.
"""

import json
import re
import struct
import uuid
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import lmdb
import lz4.block
import pytest
import xxhash
import zstandard
from blake3 import blake3

from clusterfs.sim.cleaning import clean_all
from clusterfs.store.disk import DirectoryDisk
from clusterfs.store.objects import (
    ABSENT,
    BLOCK_BYTES,
    STRIPE_BLOCKS,
    Change,
    Discard,
    Put,
    Share,
    Transaction,
    Version,
    Write,
    stripe_object,
)
from clusterfs.store.opening import Options
from clusterfs.store.packing import Codec
from clusterfs.store.store import Store

pytestmark = pytest.mark.trio

DOCS = Path(__file__).parents[4] / "docs" / "formats"
KEY = bytes(range(32))
NAME, PAGES, CLONE, TWIN = (stripe_object(7, n) for n in range(4))
CODE = {1: "B", 2: "H", 4: "I", 8: "Q"}


def block(number: int) -> bytes:
    """Return one that compresses, by half."""
    noise = blake3(number.to_bytes(8, "little")).digest(BLOCK_BYTES // 2)
    return noise + bytes([number % 255 + 1]) * (BLOCK_BYTES // 2)


def documented_header() -> dict[str, tuple[int, int]]:
    """Return field -> (offset, bytes), from the table in log.md."""
    text = (DOCS / "log.md").read_text().partition("### Header")[2].partition("###")[0]
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \|", text, re.MULTILINE)
    fields = {name: (int(offset), int(length)) for offset, length, name in rows}
    at = 0
    for offset, length in fields.values():
        assert offset == at, "the rows follow each other without a gap"
        at += length
    assert at == 96
    return fields


def documented_version(page: str) -> int:
    """Return the format that the title of a page names."""
    title = (DOCS / page).read_text().partition("\n")[0]
    return int(title.rpartition("format ")[2])


HEADER = documented_header()


def field(log: bytes, name: str) -> int:
    offset, length = HEADER[name]
    return int(struct.unpack_from(f"<{CODE[length]}", log, offset)[0])


def zeroed(content: bytes, name: str) -> bytes:
    offset, length = HEADER[name]
    return content[:offset] + bytes(length) + content[offset + length :]


def logs_of(brick: Path) -> list[bytes]:
    """Return all valid logs, in the order of their ids."""
    store = uuid.UUID(json.loads((brick / "brick.json").read_text())["store_id"]).bytes
    found = []
    for path in sorted((brick / "segments").iterdir()):
        data, at = path.read_bytes(), 0
        while data[at : at + 8] == b"CFSLOG\r\n":
            log = data[at : at + field(data[at : at + BLOCK_BYTES], "length")]
            assert field(log, "version") == documented_version("log.md")
            assert log[16:32] == store
            assert (field(log, "segment"), field(log, "block")) == (int(path.name), at // 4096)
            assert field(log, "checksum") == xxhash.xxh3_64_intdigest(zeroed(log, "checksum"))
            assert field(log, "header") == xxhash.xxh32_intdigest(log[: HEADER["header"][0]])
            found.append(log)
            at += len(log)
    return sorted(found, key=lambda log: field(log, "id"))


def records(log: bytes) -> bytes:
    """Return what lies behind the header, and behind the payload."""
    rest = (1 + field(log, "payload")) * BLOCK_BYTES
    return (log[96:BLOCK_BYTES] + log[rest:])[: field(log, "records")]


def transactions(logs: list[bytes]) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield (body, first cid, payload) of each."""
    for stream in (0, 1):
        body, payload, first_cid = b"", b"", 0
        for log in (log for log in logs if field(log, "stream") == stream):
            rows, at, block_at = records(log), 0, BLOCK_BYTES
            for _ in range(field(log, "fragments")):
                flags, size, blocks, cid, _ = struct.unpack_from("<B3xIIQQ", rows, at)
                at += 28
                if flags & 1:
                    body, payload, first_cid = b"", b"", cid
                body += rows[at : at + size]
                first_cid = first_cid or cid
                payload += log[block_at : block_at + blocks * BLOCK_BYTES]
                at, block_at = at + size, block_at + blocks * BLOCK_BYTES
                if flags & 2:
                    yield body, first_cid, payload
            assert at == len(rows)


Operation = tuple[int, tuple[Any, ...]]


def operations_of(body: bytes) -> Iterator[tuple[bytes, Operation]]:
    """Yield (object, (tag, what it says)) of the operations on blocks in a transaction's body."""
    changes = struct.unpack_from("<H", body, 25)[0]
    at = 27
    for _ in range(changes):
        name, operations = body[at : at + 16], struct.unpack_from("<I", body, at + 50)[0]
        at += 54
        for _ in range(operations):
            tag = body[at]
            at += 1
            if tag == 1:
                key, value = struct.unpack_from("<HI", body, at)
                at += 6 + key + value
            elif tag == 3:
                first, count, new = struct.unpack_from("<III", body, at)
                cids = list(struct.unpack_from(f"<{count}Q", body, at + 12))
                at += 12 + 8 * count
                yield name, (tag, (first, cids, body[at : at + 16 * new]))
                at += 16 * new
            elif tag == 4:
                yield name, (tag, struct.unpack_from("<II", body, at))
                at += 8
            elif tag == 6:
                first, count, source, page = struct.unpack_from("<II16sI", body, at)
                numbers = struct.unpack_from(f"<{count}Q", body, at + 28)
                yield name, (tag, (first, numbers, source, page))
                at += 28 + 8 * count
            else:
                assert tag == 7
                yield name, (tag, struct.unpack_from("<Q16s", body, at))
                at += 24
    assert at == len(body)


async def make_brick(path: Path, codec: Codec) -> dict[bytes, dict[int, bytes]]:
    """Write transactions of all sizes to a brick, clean it if a codec is given; return all blocks.

    PAGES has map pages of NAME, CLONE and TWIN all of it; then CLONE is written to.
    """
    options = Options(
        segment_bytes=1 << 20, log_bytes=1 << 17, size_limit_bytes=64 << 20, compression=codec
    )
    store = await Store.open(DirectoryDisk(path, reserve_bytes=0), KEY, options=options)
    expected: dict[int, bytes] = {}
    version = ABSENT
    for number, count in enumerate((1, 3, 90, 600), 1):  # the last one is longer than a log
        writes = (Put(b"k", b"v" * 5000 * number), Write(number * 7, count))
        changes = [Change(NAME, 3, version, version.after(1), writes)]
        payload = b"".join(block(number * 1000 + n) for n in range(count))
        expected |= {
            number * 7 + n: payload[n * BLOCK_BYTES : (n + 1) * BLOCK_BYTES] for n in range(count)
        }
        await store.admit(len(payload))
        store.apply(Transaction(5, number, 1, tuple(changes)), payload)
        version = version.after(1)
    discard = Change(NAME, 3, version, version.after(1), (Discard(100, 50),))
    await store.admit(BLOCK_BYTES)
    store.apply(Transaction(5, 9, 1, (discard,)))
    for at in range(100, 150):
        del expected[at]
    for number, (target, count) in enumerate(
        [(PAGES, 512), (CLONE, STRIPE_BLOCKS), (TWIN, STRIPE_BLOCKS)], 10
    ):
        version = version.after(1)
        source = Change(NAME, 3, version, version.after(1), ())
        shares = (Share(0, count, NAME, 0),)
        clone = Change(target, 3, ABSENT, Version(1, 1), shares)
        await store.admit(BLOCK_BYTES)
        store.apply(Transaction(5, number, 1, (source, clone)))
    new = Change(CLONE, 3, Version(1, 1), Version(1, 2), (Write(9, 1),))
    await store.admit(BLOCK_BYTES)
    store.apply(Transaction(5, 13, 1, (new,)), block(99999))
    everything = {name: dict(expected) for name in (NAME, CLONE, TWIN)}
    everything[CLONE][9] = block(99999)
    everything[PAGES] = {at: data for at, data in expected.items() if at < 512}
    store.set_fact("answer", 42)
    await store.sync()
    if codec != "off":
        await store.checkpoint()
        await clean_all(store)
    await store.close()
    return everything


def replay(
    body: bytes, first_cid: int, payload: bytes, found: dict[bytes, dict[int, bytes]]
) -> None:
    """Repeat a transaction on the blocks of objects."""
    for name, (tag, said) in operations_of(body):
        blocks = found.setdefault(name, {})
        if tag == 3:
            blocks |= written(said, first_cid, payload)
        elif tag == 4:
            first, count = said
            for at in range(first, first + count):
                blocks.pop(at, None)
        elif tag == 6:
            first, numbers, source, page = said
            assert (first, source, page, len(set(numbers))) == (0, NAME, 0, len(numbers))
            blocks |= {at: d for at, d in found[source].items() if at < 256 * len(numbers)}
        else:
            assert said == (1, NAME), "the first map there is"
            blocks |= found[NAME]


async def test_the_log_is_as_documented(tmp_path: Path) -> None:
    expected = await make_brick(tmp_path, "off")
    logs = logs_of(tmp_path)
    assert [field(log, "id") for log in logs] == list(range(1, len(logs) + 1))
    assert field(logs[0], "previous") == 0
    for one, other in pairwise(logs):
        assert field(other, "previous") == field(one, "checksum")
        assert field(other, "epoch") >= field(one, "epoch")
        assert field(other, "durable") < field(other, "id")
    found: dict[bytes, dict[int, bytes]] = {NAME: {}}
    facts = {}
    for body, first_cid, payload in transactions(logs):
        if body[0] == 9:
            name, is_number, value = struct.unpack_from("<HBI", body, 1)
            assert len(body) == 8 + name + value
            if is_number:
                facts[body[8 : 8 + name]] = int.from_bytes(body[8 + name :], "little")
            continue
        assert body[0] == 1
        client, _, epoch = struct.unpack_from("<QQQ", body, 1)
        assert (client, epoch) == (5, 1)
        replay(body, first_cid, payload, found)
    assert found == expected
    assert facts[b"answer"] == 42


def written(said: tuple[Any, ...], first_cid: int, payload: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (block, data) of a placed operation whose chunks are all new."""
    first, cids, identities = said
    for order, cid in enumerate(sorted(set(cids))):
        data = payload[(cid - first_cid) * BLOCK_BYTES :][:BLOCK_BYTES]
        assert identities[order * 16 : order * 16 + 16] == blake3(data, key=KEY).digest(16)
    for index, cid in enumerate(cids):
        yield first + index, payload[(cid - first_cid) * BLOCK_BYTES :][:BLOCK_BYTES]


def opened(key: bytes, value: bytes) -> bytes:
    """Return a checkpoint's value without its seal."""
    assert value[:8] == xxhash.xxh3_64_digest(key + value[8:])[::-1]
    return value[8:]


def unpacked(stored: bytes) -> bytes:
    codec, length = struct.unpack_from("<BH", stored)
    packed = stored[3 : 3 + length]
    assert not any(stored[3 + length :])
    if codec == 1:
        return bytes(lz4.block.decompress(packed, uncompressed_size=BLOCK_BYTES))
    assert codec == 2
    return bytes(zstandard.ZstdDecompressor().decompress(packed, max_output_size=BLOCK_BYTES))


def chunk_at(brick: Path, location: int) -> bytes:
    in_segment, segment = location & 0xFFFFF, location >> 20 & 0xFFFFFFFF
    unit, units = location >> 52 & 63, location >> 58 & 63
    at = in_segment * BLOCK_BYTES + unit * 64
    with (brick / "segments" / f"{segment:08d}").open("rb") as file:
        file.seek(at)
        stored = file.read((units or 64) * 64)
    return unpacked(stored) if units else stored


def blocks_of(
    values: dict[bytes, bytes], pages: dict[int, bytes], name: bytes, number: int
) -> dict[int, int]:
    """Return block -> cid of an object with that map."""
    blocks = {}
    owner = b"\xff" * 8 + number.to_bytes(8, "big") if number else name
    for key, value in values.items():
        if key[:17] == b"M" + owner:
            cids = value if len(value) == 2048 else pages[int.from_bytes(value, "little")]
            for slot, cid in enumerate(struct.unpack("<256Q", cids)):
                if cid:
                    blocks[int.from_bytes(key[17:], "big") * 256 + slot] = cid
    return blocks


def references_of(values: dict[bytes, bytes], pages: dict[int, bytes]) -> Counter[int]:
    """Count how often each chunk is in a map page, shared ones once."""
    used = Counter[int]()
    for key, value in values.items():
        if key[:1] == b"M" and len(value) == 2048:
            used.update(struct.unpack("<256Q", value))
    for page in pages.values():
        used.update(struct.unpack("<256Q", page))
    del used[0]
    return used


def chunks_of(
    brick: Path, values: dict[bytes, bytes], pages: dict[int, bytes]
) -> tuple[dict[int, bytes], dict[int, int]]:
    """Return the data of each chunk, and the units that live in each segment."""
    live: dict[int, int] = {}
    content_of = {}
    for cid, times in references_of(values, pages).items():
        page = values[b"C" + struct.pack(">Q", cid // 64)]
        at = cid % 64
        location = struct.unpack_from("<Q", page, 8 * at)[0]
        data = content_of[cid] = chunk_at(brick, location)
        assert struct.unpack_from("<Q", page, 512 + 8 * at)[0] == xxhash.xxh3_64_intdigest(data)
        assert struct.unpack_from("<I", page, 1024 + 4 * at)[0] == times
        assert page[1280 + 16 * at : 1296 + 16 * at] == blake3(data, key=KEY).digest(16)
        segment = location >> 20 & 0xFFFFFFFF
        live[segment] = live.get(segment, 0) + (location >> 58 & 63 or 64)
    return content_of, live


def maps_of(values: dict[bytes, bytes], next_map: int) -> dict[bytes, int]:
    """Return the number of each object's map."""
    found = {k[1:]: struct.unpack_from("<Q", v, 18)[0] for k, v in values.items() if k[:1] == b"O"}
    assert max(found.values()) < next_map
    return found


def shared_pages(values: dict[bytes, bytes], next_page: int) -> dict[int, bytes]:
    """Return the map pages that several maps have, by number; each is counted right."""
    named = Counter(v for k, v in values.items() if k[:1] == b"M" and len(v) == 8)
    pages = {}
    for key, value in values.items():
        if key[:1] == b"N":
            number = int.from_bytes(key[1:], "big")
            assert struct.unpack_from("<I", value)[0] == named[number.to_bytes(8, "little")]
            assert number < next_page
            pages[number] = value[4:]
    assert len(pages) == len(named) > 0
    return pages


@pytest.mark.parametrize("codec", ["off", "lz4", "zstd"])
async def test_the_checkpoint_is_as_documented(tmp_path: Path, codec: Codec) -> None:
    expected = await make_brick(tmp_path, codec)
    with lmdb.open(str(tmp_path / "checkpoint"), readonly=True) as table, table.begin() as view:
        content = {bytes(key): bytes(value) for key, value in view.cursor()}
    values = {key: opened(key, value) for key, value in content.items()}
    form, count, total = struct.unpack("<IQQ", values.pop(b"#"))
    seals = sum(int.from_bytes(content[key][:8], "little") for key in values)
    assert form == documented_version("checkpoint.md")
    assert (count, total) == (len(values), seals % 2**64)
    references, chunks, next_page, by_sharing, next_map = struct.unpack("<QQQQQ", values[b"L"])
    assert references + by_sharing == sum(len(blocks) for blocks in expected.values())
    assert chunks == len(expected[NAME]) + 1
    next_id, previous, _, epoch = struct.unpack_from("<QQQQ", values[b"@"])
    logs = logs_of(tmp_path)
    assert next_id > field(logs[-1], "id") - 2
    if field(logs[-1], "id") == next_id - 1:
        assert previous == field(logs[-1], "checksum")
    assert epoch == field(logs[-1], "epoch")
    assert len(values[b"@"]) == 32 + 2 * 24
    count = len(expected[NAME])
    assert struct.unpack("<HQQQI", values[b"O" + NAME]) == (3, 1, 8, 1, count)
    assert struct.unpack("<HQQQI", values[b"O" + TWIN]) == (3, 1, 1, 1, count)
    assert struct.unpack("<HQQQI", values[b"O" + CLONE])[:3] == (3, 1, 2)
    assert {k: struct.unpack("<II", v) for k, v in values.items() if k[:1] == b"T"} == {
        b"T" + (1).to_bytes(8, "big"): (2, count)
    }
    pages = shared_pages(values, next_page)
    assert values[b"G" + struct.pack(">H", 3) + NAME] == b""
    assert values[b"K" + NAME + b"k"] == b"v" * 20000
    assert values[b"Fanswer"] == b"n" + (42).to_bytes(8, "little")
    content_of, live = chunks_of(tmp_path, values, pages)
    assert len(content_of) == chunks
    assert sum(value for value in references_of(values, pages).values()) == references
    found = {
        name: {at: content_of[cid] for at, cid in blocks_of(values, pages, name, number).items()}
        for name, number in maps_of(values, next_map).items()
    }
    assert found == expected
    kept = {
        int.from_bytes(key[1:], "big"): struct.unpack("<IQQQB", value)
        for key, value in values.items()
        if key[:1] == b"S"
    }
    assert {segment: row[0] for segment, row in kept.items() if row[0]} == live
    assert any(row[4] for row in kept.values()) == (codec != "off"), "filled by the cleaner"
    assert (sum(live.values()) < 64 * chunks) == (codec != "off")


async def test_the_superblock_is_as_documented(tmp_path: Path) -> None:
    await make_brick(tmp_path, "off")
    text = (tmp_path / "brick.json").read_text()
    found = json.loads(text)
    said = (DOCS / "log.md").read_text().partition("`brick.json`: ")[2].partition("\n## ")[0]
    named = [word for word in re.findall(r"`(\w+)`", said) if word in found]
    assert named == list(found), "in this order"
    assert (found["magic"], found["format"]) == ("clusterfs brick", 2)
    empty = json.dumps(found | {"checksum": ""}, separators=(",", ":"))
    assert found["checksum"] == f"{xxhash.xxh3_64_intdigest(empty.encode()):016x}"
