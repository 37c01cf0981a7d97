"""The store on a real directory."""

import os
import random
import threading
from pathlib import Path

import msgspec
import pytest
import trio

from clusterfs.errors import InvalidArgument, SetupError, VersionMismatch, WouldBlock
from clusterfs.store.disk import DirectoryDisk
from clusterfs.store.objects import (
    ABSENT,
    BLOCK_BYTES,
    MARK,
    Change,
    Delete,
    Discard,
    ObjectId,
    Operation,
    Put,
    Remove,
    Share,
    Transaction,
    Version,
    Write,
    inode_object,
    stripe_object,
)
from clusterfs.store.opening import Options, Tuning
from clusterfs.store.state import INCOMPLETE
from clusterfs.store.store import Store

KEY = bytes(32)
SMALL = Options(
    segment_bytes=1 << 20, log_bytes=1 << 17, buffers=4, size_limit_bytes=16 << 20, hints=1 << 12
)
INODE, STRIPE, OTHER = inode_object(7), stripe_object(7, 0), stripe_object(8, 0)
ONE, TWO, THREE = (Version(1, n) for n in (1, 2, 3))

pytestmark = pytest.mark.trio


async def opened(path: Path, **more: str) -> Store:
    disk = DirectoryDisk(path / "brick", reserve_bytes=0)
    return await Store.open(disk, KEY, options=SMALL, **more)  # type: ignore[arg-type]


def change(
    object_id: ObjectId, expected: Version, version: Version, *operations: Operation, group: int = 1
) -> Change:
    return Change(object_id, group, expected, version, operations)


def transaction(sequence: int, *changes: Change) -> Transaction:
    return Transaction(1, sequence, 1, changes)


async def test_everything_survives_a_restart(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    data = os.urandom(300 * BLOCK_BYTES)
    store.apply(
        transaction(
            1,
            change(INODE, ABSENT, ONE, Put(b"b", b"2"), Put(MARK, b""), Put(b"a", b"1"), group=9),
            change(STRIPE, ABSENT, ONE, Write(10, 300)),
        ),
        data,
    )
    store.set_fact("epoch", 12)
    store.set_fact("cluster", b"abc")
    digests = (await store.digest(INODE), await store.digest(STRIPE))
    store.validate()
    await store.close()
    store = await opened(tmp_path)
    assert await store.read(STRIPE, 0, 320) == bytes(10 * BLOCK_BYTES) + data + bytes(
        10 * BLOCK_BYTES
    )
    assert store.scan(INODE) == [(MARK, b""), (b"a", b"1"), (b"b", b"2")]
    assert (store.get(INODE, b"a"), store.get(INODE, b"z")) == (b"1", None)
    assert (store.version(INODE), store.group(INODE), store.group(OTHER)) == (ONE, 9, None)
    assert store.marked() == [INODE]
    assert store.objects() == [(INODE, ONE), (STRIPE, ONE)]
    assert store.objects(9) == [(INODE, ONE)]
    assert store.objects(None, INODE, 5) == [(STRIPE, ONE)]
    assert (await store.digest(INODE), await store.digest(STRIPE)) == digests
    assert (store.fact("epoch"), store.fact("cluster"), store.fact("x")) == (12, b"abc", None)
    assert store.applied(1, 1)
    assert not store.applied(1, 2)
    store.validate()
    await store.close()


async def test_a_change_applies_to_its_version_only_and_wholly_or_not(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    store.apply(transaction(1, change(INODE, ABSENT, ONE, Put(b"k", b"1"))))
    with pytest.raises(VersionMismatch):
        store.apply(
            transaction(
                2,
                change(STRIPE, ABSENT, ONE, Write(0, 1)),
                change(INODE, ABSENT, TWO, Put(b"k", b"2")),
            ),
            bytes(BLOCK_BYTES),
        )
    assert (store.version(STRIPE), store.get(INODE, b"k")) == (ABSENT, b"1")
    assert not store.applied(1, 2)
    position = store.apply(transaction(3, change(INODE, ONE, TWO, Put(b"k", b"3"))))
    assert store.apply(transaction(3, change(INODE, ONE, TWO, Put(b"k", b"3")))) == position
    assert store.version(INODE) == TWO
    store.apply(transaction(4, change(INODE, TWO, THREE, Delete())))
    assert store.version(INODE) == ABSENT
    assert store.scan(INODE) == []
    await store.close()


async def test_a_malformed_transaction_is_refused(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    block = bytes(BLOCK_BYTES)
    for bad, payload in (
        ((change(STRIPE, ABSENT, ONE, Write(0, 2)),), block),
        ((change(STRIPE, ABSENT, ONE, Discard(0, 2)),), block),
        ((change(STRIPE, ABSENT, ONE), change(STRIPE, ABSENT, ONE)), b""),
        ((change(INODE, ABSENT, ONE, Put(b"", b"")),), b""),
        ((change(INODE, ABSENT, ONE, Put(b"k" * 321, b"")),), b""),
    ):
        with pytest.raises(InvalidArgument):
            store.apply(transaction(1, *bad), payload)
    assert store.objects() == []
    await store.close()


async def test_equal_blocks_are_stored_once_and_zeros_not_at_all(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    block, zero = os.urandom(BLOCK_BYTES), bytes(BLOCK_BYTES)
    payload = block + zero + block + block
    store.apply(transaction(1, change(STRIPE, ABSENT, ONE, Write(0, 4))), payload)
    store.apply(transaction(2, change(OTHER, ABSENT, ONE, Write(5, 1))), block)
    assert store.space().live == BLOCK_BYTES
    assert [number for number, _ in store.blocks(STRIPE)] == [0, 2, 3]
    assert store.blocks(STRIPE, 3, 9)[0][1] == store.blocks(OTHER)[0][1]
    assert await store.read(STRIPE, 0, 4) == payload
    store.apply(transaction(3, change(STRIPE, ONE, TWO, Discard(0, 4))))
    assert store.space().live == BLOCK_BYTES, "the other object still has it"
    assert store.blocks(STRIPE) == []
    store.apply(transaction(4, change(OTHER, ONE, TWO, Write(5, 1))), zero)
    assert store.space().live == 0
    store.validate()
    await store.close()


async def test_two_phases(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    block = os.urandom(BLOCK_BYTES)
    wanted = transaction(5, change(STRIPE, ABSENT, ONE, Write(0, 1), Put(b"k", b"v")))
    await store.sync(store.prepare(wanted, block))
    assert store.prepared() == [wanted]
    assert store.version(STRIPE) == ABSENT
    with pytest.raises(VersionMismatch, match="prepared"):
        store.apply(transaction(6, change(STRIPE, ABSENT, ONE, Put(b"k", b"w"))))
    store.validate()
    await store.close()
    store = await opened(tmp_path)
    assert store.prepared() == [wanted]
    store.commit(1, 5)
    store.commit(1, 5)
    assert (store.outcome(1, 5), store.prepared()) == ("committed", [])
    assert await store.read(STRIPE, 0, 1) == block
    store.prepare(transaction(7, change(STRIPE, ONE, TWO, Delete())))
    store.abort(1, 7)
    store.abort(1, 8)
    assert (store.outcome(1, 7), store.outcome(1, 8)) == ("aborted", "aborted")
    with pytest.raises(VersionMismatch, match="aborted"):
        store.prepare(transaction(8, change(STRIPE, ONE, TWO, Delete())))
    store.forget_outcomes(1, 8)
    assert (store.outcome(1, 5), store.outcome(1, 8)) == (None, "aborted")
    store.forget_client(1)
    assert not store.applied(1, 5)
    assert store.version(STRIPE) == ONE
    store.validate()
    await store.close()


async def test_an_object_is_replaced_in_pieces_and_visible_by_its_last(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    old = os.urandom(2 * BLOCK_BYTES)
    store.apply(
        transaction(1, change(STRIPE, ABSENT, ONE, Write(0, 2), Put(b"x", b"1"), group=3)), old
    )
    new = os.urandom(BLOCK_BYTES)
    store.replace(STRIPE, 4, INCOMPLETE, [Write(1, 1)], new)
    assert store.version(STRIPE) == INCOMPLETE
    with pytest.raises(VersionMismatch):
        store.apply(transaction(2, change(STRIPE, ONE, TWO, Put(b"k", b""))))
    share = store.blocks(STRIPE, 0, 1)[0][1]
    store.replace(STRIPE, 4, THREE, [Remove(b"x"), Put(b"y", b"2")], shares=[(9, share)])
    assert (store.version(STRIPE), store.group(STRIPE)) == (THREE, 4)
    assert store.objects(3) == []
    assert store.objects(4) == [(STRIPE, THREE)]
    block = old[:BLOCK_BYTES]
    assert await store.read(STRIPE, 0, 10) == block + new + bytes(7 * BLOCK_BYTES) + block
    assert store.scan(STRIPE) == [(b"y", b"2")]
    store.replace(STRIPE, 4, ABSENT, [Delete()])
    assert store.objects() == []
    store.validate()
    await store.close()


async def test_equal_objects_have_equal_digests(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    block = os.urandom(BLOCK_BYTES)
    for number, target in enumerate((STRIPE, OTHER), 1):
        store.apply(
            transaction(number, change(target, ABSENT, ONE, Write(3, 1), Put(b"k", b"v"))), block
        )
    assert await store.digest(STRIPE) == await store.digest(OTHER)
    seen = {await store.digest(OTHER)}
    operations: list[Operation] = [Put(b"kv", b""), Remove(b"k"), Discard(3, 1)]
    for number, operation in enumerate(operations, 3):
        version = store.version(OTHER)
        store.apply(transaction(number, change(OTHER, version, version.after(1), operation)))
        seen.add(await store.digest(OTHER))
    assert len(seen) == 4
    await store.close()


async def test_scan_pages_through_prefixes(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    names = [b"d" + bytes((n,)) for n in range(0, 250, 3)]
    puts = [Put(name, name) for name in (*names, b"c", b"e", b"d", b"d\xff\xff")]
    store.apply(transaction(1, change(INODE, ABSENT, ONE, *puts[::2])))
    await store.checkpoint()
    store.apply(transaction(2, change(INODE, ONE, TWO, *puts[1::2], Remove(names[4]))))
    found: list[bytes] = []
    while page := store.scan(INODE, b"d", found[-1] if found else b"", 7):
        found += [key for key, _ in page]
    assert found == sorted({*names, b"d", b"d\xff\xff"} - {names[4]})
    assert store.scan(INODE, b"q") == []
    assert store.scan(INODE, b"d", b"", 1) == [(b"d", b"d")]
    await store.close()


async def test_written_data_is_read_back_at_once_without_the_disk(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    version = ABSENT
    for number in range(200):
        block = number.to_bytes(2, "big") * (BLOCK_BYTES // 2)
        wanted = transaction(number + 1, change(STRIPE, version, version.after(1), Write(0, 1)))
        await store.admit_transaction(wanted)
        store.apply(wanted, block)
        assert store.read_nowait(STRIPE, 0, 1) == block
        version = version.after(1)
        if number % 9 == 0:
            await store.sync()
            assert await store.read(STRIPE, 0, 1) == block
    await store.close()


async def test_admission_waits_for_the_ring_and_apply_does_not(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    version, sequence = ABSENT, 0
    with pytest.raises(WouldBlock):  # noqa: PT012  some write of these finds the ring full
        while True:
            sequence += 1
            wanted = transaction(
                sequence, change(STRIPE, version, version.after(1), Write(sequence * 16, 16))
            )
            store.apply(wanted, os.urandom(16 * BLOCK_BYTES))
            version = version.after(1)
    before = store.version(STRIPE)
    await store.admit_transaction(wanted)
    store.apply(wanted, os.urandom(16 * BLOCK_BYTES))
    assert store.version(STRIPE) == before.after(1)
    await store.close()


async def test_many_writers_and_readers_at_once(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await store.checkpoint()

    async def write_and_read(client: int) -> None:
        target, version = stripe_object(client, 1), ABSENT
        for sequence in range(1, 40):
            data = os.urandom(3 * BLOCK_BYTES)
            wanted = Transaction(
                client, sequence, 1, (change(target, version, version.after(1), Write(1, 3)),)
            )
            await store.admit_transaction(wanted)
            position = store.apply(wanted, data)
            version = version.after(1)
            if sequence % 5 == 0:
                await store.sync(position)
            if sequence % 13 == 0:
                await store.checkpoint()
            assert await store.read(target, 1, 3) == data

    async with trio.open_nursery() as nursery:
        for client in range(1, 9):
            nursery.start_soon(write_and_read, client)
    store.validate()
    await store.close()


async def test_a_brick_has_one_cluster_and_one_daemon(tmp_path: Path) -> None:
    store = await opened(tmp_path, cluster_id="one")
    with pytest.raises(SetupError, match="in use"):
        await opened(tmp_path, cluster_id="one")
    await store.close()
    await store.close()
    with pytest.raises(SetupError, match=r"cluster one, not to cluster two"):
        await opened(tmp_path, cluster_id="two")
    store = await opened(tmp_path, cluster_id="one")
    await store.close()


async def test_executors_are_tuned_within_bounds(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    assert store.tune(Tuning()) == {"flush_executors": 2, "compression": "off"}
    now = store.tune(Tuning(flush_executors=5))
    assert now["flush_executors"] == 5
    for wrong in (0, 65):
        with pytest.raises(InvalidArgument, match="1 to 64"):
            store.tune(Tuning(flush_executors=wrong))
    await store.sync(store.set_fact("x", 1))
    assert store.tune(Tuning(compression="zstd")) == {**now, "compression": "zstd"}
    assert store.health() == []
    await store.close()


async def test_usage_adds_up(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    block = os.urandom(BLOCK_BYTES)
    payload = block * 3 + os.urandom(BLOCK_BYTES)
    store.apply(transaction(1, change(STRIPE, ABSENT, ONE, Write(0, 4))), payload)
    store.apply(transaction(2, change(OTHER, ABSENT, ONE, Write(0, 1))), os.urandom(BLOCK_BYTES))
    store.apply(transaction(3, change(OTHER, ONE, TWO, Delete())))
    await store.sync()
    usage = store.usage()
    assert usage["logical_bytes"] == 4 * BLOCK_BYTES
    assert usage["shared_bytes"] == 2 * BLOCK_BYTES
    assert usage["packed_bytes"] == 0
    assert usage["live_bytes"] == 2 * BLOCK_BYTES
    assert usage["live_bytes"] + usage["free_bytes"] == usage["total_bytes"] == store.space().total
    assert usage["total_bytes"] + usage["reserve_bytes"] == usage["capacity_bytes"] == 16 << 20
    assert usage["dead_bytes"] >= BLOCK_BYTES
    await store.close()


async def test_statistics_count(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    before = store.statistics()
    await store.sync(store.set_fact("x", 1))
    await store.checkpoint()
    after = store.statistics()
    assert after["syncs"] > before["syncs"]
    assert after["checkpoints"] == before["checkpoints"] + 1
    assert after["durable"] == after["position"]
    await store.close()


@pytest.mark.parametrize("prepared", [False, True])
async def test_shared_blocks_are_one_chunk_until_either_is_written(
    tmp_path: Path, *, prepared: bool
) -> None:
    store = await opened(tmp_path)
    data = os.urandom(300 * BLOCK_BYTES)
    store.apply(transaction(1, change(STRIPE, ABSENT, ONE, Write(10, 300))), data)
    live = store.usage()["live_bytes"]
    shares = transaction(
        2,
        change(OTHER, ABSENT, ONE, Share(0, 900, STRIPE, 0)),
        change(STRIPE, ONE, TWO),
    )
    await store.admit_transaction(shares)
    if prepared:
        store.prepare(shares)
        store.validate()
        store.commit(1, 2)
    else:
        store.apply(shares)
    store.validate()
    assert store.usage()["live_bytes"] == live
    everything = bytes(10 * BLOCK_BYTES) + data
    store.apply(transaction(3, change(STRIPE, TWO, THREE, Discard(0, 400))))
    assert await store.read(OTHER, 0, 310) == everything
    assert store.extents(OTHER, 0, 1000) == [(10, 300)]
    await store.admit(BLOCK_BYTES)
    store.apply(transaction(4, change(OTHER, ONE, TWO, Write(11, 1))), b"n" * BLOCK_BYTES)
    await store.close()
    store = await opened(tmp_path)
    changed = bytearray(everything)
    changed[11 * BLOCK_BYTES : 12 * BLOCK_BYTES] = b"n" * BLOCK_BYTES
    assert await store.read(OTHER, 0, 310) == changed
    store.validate()
    store.apply(transaction(5, change(OTHER, TWO, THREE, Delete())))
    assert store.usage()["live_bytes"] == 0
    store.validate()
    await store.close()


async def test_blocks_are_shared_only_with_what_the_transaction_changes(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    store.apply(transaction(1, change(STRIPE, ABSENT, ONE, Write(0, 1))), b"x" * BLOCK_BYTES)
    with pytest.raises(VersionMismatch):
        store.apply(transaction(2, change(OTHER, ABSENT, ONE, Share(0, 1, STRIPE, 0))))
    assert store.version(OTHER) == ABSENT
    store.apply(transaction(3, change(STRIPE, ONE, TWO, Share(5, 1, STRIPE, 0))))
    assert await store.read(STRIPE, 4, 2) == bytes(BLOCK_BYTES) + b"x" * BLOCK_BYTES
    store.validate()
    await store.close()


class SlowDisk(DirectoryDisk):
    """Nothing is in the page cache, and the first reads wait for each other."""

    def __init__(self, path: Path, readers: int) -> None:
        super().__init__(path, reserve_bytes=0)
        self.together = threading.Barrier(readers)
        self.waiting = threading.local()
        self.reads = 0

    def read_nowait(self, segment: int, offset: int, length: int) -> bytes | None:
        del segment, offset, length
        return None

    def read(self, segment: int, offset: int, length: int) -> bytes:
        self.reads += 1
        if self.together.parties > 1 and not getattr(self.waiting, "done", False):
            self.waiting.done = True
            self.together.wait(300)
        return super().read(segment, offset, length)


@pytest.mark.parametrize(("scattered", "readers"), [(True, 4), (False, 1)])
async def test_scattered_blocks_are_read_by_several_threads(
    tmp_path: Path, *, scattered: bool, readers: int
) -> None:
    """After random writes a sequential read is many small ones: they do not wait in a row."""
    disk = SlowDisk(tmp_path / "brick", 1)
    options = msgspec.structs.replace(SMALL, cache_bytes=0)
    store = await Store.open(disk, KEY, options=options)
    numbers = list(range(64))
    if scattered:
        random.Random(1).shuffle(numbers)
    content = {number: os.urandom(BLOCK_BYTES) for number in numbers}
    writes = [Write(number, 1) for number in numbers]
    store.apply(transaction(1, change(STRIPE, ABSENT, ONE, *writes)), b"".join(content.values()))
    await store.close()  # what is in memory is not read from the disk
    disk = SlowDisk(tmp_path / "brick", 1)
    store = await Store.open(disk, KEY, options=options)
    disk.together, disk.reads = threading.Barrier(readers), 0
    assert await store.read(STRIPE, 0, 64) == b"".join(content[number] for number in range(64))
    assert disk.reads > 8 * readers if scattered else disk.reads <= 4  # logs that it is in
    await store.close()


async def test_what_is_hastened_is_on_its_way_to_the_disk_when_apply_returns(
    tmp_path: Path,
) -> None:
    store = await opened(tmp_path)
    store.apply(transaction(1, change(INODE, ABSENT, ONE, Put(b"k", b"1"))))
    written = store.statistics()["logs_written"]
    position = store.apply(
        transaction(2, change(STRIPE, ABSENT, ONE, Write(0, 1))), b"x" * BLOCK_BYTES, hasten=True
    )
    assert store.statistics()["logs_written"] == written + 1
    with trio.fail_after(300):
        while store.statistics()["durable"] < position:
            await trio.sleep(0.001)
    store.validate()
    await store.close()
