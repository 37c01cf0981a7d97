"""A full brick, and a full filesystem below it: refused before acceptance, and it all goes on."""

import random
import threading
from collections.abc import Iterable

import msgspec
import pytest
import trio
import trio.testing

from clusterfs.errors import OutOfSpace, WouldBlock
from clusterfs.sim.bricks import KEY, TIGHT
from clusterfs.sim.disk import SimulatedDisk, SimulatedTable, dropped
from clusterfs.store import upkeep
from clusterfs.store.objects import (
    BLOCK_BYTES,
    Change,
    Delete,
    Discard,
    ObjectId,
    Operation,
    Put,
    Transaction,
    Write,
    stripe_object,
)
from clusterfs.store.opening import Options
from clusterfs.store.store import Store

pytestmark = pytest.mark.trio

ROOMY = msgspec.structs.replace(TIGHT, size_limit_bytes=20 * TIGHT.segment_bytes)


def block(number: int) -> bytes:
    return number.to_bytes(8, "little") * (BLOCK_BYTES // 8)


class Writer:
    """Writes to one object, version after version; remembers what it wrote."""

    def __init__(self, store: Store, object_id: ObjectId = stripe_object(1, 0)) -> None:  # noqa: B008
        self.store = store
        self.object_id = object_id
        self.sequence = 0
        self.number = 0
        self.expected: dict[int, int] = {}

    async def do(self, *operations: Operation, payload: bytes = b"") -> None:
        version = self.store.version(self.object_id)
        change = Change(self.object_id, 1, version, version.after(1), operations)
        transaction = Transaction(self.object_id[7], self.sequence + 1, 1, (change,))
        await self.store.admit_transaction(transaction)
        self.store.apply(transaction, payload)
        self.sequence += 1

    async def put(self, *firsts: int) -> None:
        numbers = range(self.number + 1, self.number + len(firsts) + 1)
        payload = b"".join(map(block, numbers))
        await self.do(*(Write(first, 1) for first in firsts), payload=payload)
        self.number += len(firsts)
        self.expected.update(zip(firsts, numbers, strict=True))

    async def fill(self) -> None:
        """Write new blocks until there is no room for one more."""
        with pytest.raises(OutOfSpace):  # noqa: PT012  which of them is refused is not the point
            while True:
                await self.put(len(self.expected))

    async def check(self) -> None:
        for first, number in self.expected.items():
            assert await self.store.read(self.object_id, first, 1) == block(number)


async def opened(disk: SimulatedDisk, options: Options = TIGHT) -> Store:
    return await Store.open(disk, KEY, options=options)


async def test_a_brick_takes_what_it_says_is_free_and_then_nothing() -> None:
    store = await opened(SimulatedDisk())
    writer, free = Writer(store), store.space().free
    await writer.fill()
    assert len(writer.expected) * BLOCK_BYTES == free
    assert store.space().free == 0
    await writer.check()
    await store.close()


@pytest.mark.parametrize("options", [TIGHT, ROOMY], ids=["tight", "roomy"])
async def test_a_full_brick_is_overwritten_for_ever(options: Options) -> None:
    disk, source = SimulatedDisk(), random.Random(1)
    store = await opened(disk, options)
    writer = Writer(store)
    await writer.fill()
    count = len(writer.expected)
    for _ in range(count):
        await writer.put(*source.sample(range(count), source.choice((1, 4, 12))))
    assert store.space().free == 0
    with pytest.raises(OutOfSpace):
        await writer.put(count, *range(3))
    store.validate()
    await writer.check()
    await store.close()
    again = await opened(disk.crash(len(disk.journal), dropped), options)
    writer.store = again
    await writer.check()
    await writer.put(0)
    await again.close()


async def test_what_is_shared_is_not_counted_as_freed() -> None:
    store = await opened(SimulatedDisk())
    twin, writer = Writer(store, stripe_object(2, 0)), Writer(store)
    await writer.put(0, 1)
    await twin.put(0, 1)  # the same blocks
    assert store.space().live == 2 * BLOCK_BYTES
    await writer.fill()
    with pytest.raises(OutOfSpace):
        await writer.put(0)
    await twin.do(Delete())
    await writer.put(0)
    await store.close()


async def test_discards_and_deletes_give_a_full_brick_room() -> None:
    store = await opened(SimulatedDisk())
    writer, other = Writer(store), Writer(store, stripe_object(2, 0))
    await other.put(*range(50, 60))
    writer.number = 10**6
    await writer.fill()
    with pytest.raises(OutOfSpace):
        await other.put(70)
    await writer.do(Discard(0, 3), Put(b"key", b"value" * 100))
    for first in range(3):
        del writer.expected[first]
    await other.put(70, 71, 72)
    with pytest.raises(OutOfSpace):
        await other.put(73)
    await writer.do(Delete())
    assert store.space().live == 13 * BLOCK_BYTES
    await other.check()
    await store.close()


async def test_a_checkpoint_without_room_is_tried_again_and_loses_nothing() -> None:
    """Others filled the filesystem so far that not even the table can grow."""
    disk = SimulatedDisk()
    store = await opened(disk)
    writer = Writer(store)
    await writer.put(*range(20))
    disk.table_full = disk.full = True
    disk.ballast = False
    for _ in range(2):
        with pytest.raises(OutOfSpace, match="checkpoint"):
            await store.checkpoint()
    assert store.failed is None
    assert "full" in store.health()[0]
    await writer.put(3, 4, 5)
    await writer.do(Discard(7, 1))
    del writer.expected[7]
    await store.sync()
    await writer.check()
    taken = store.statistics()["checkpoints"]
    disk.table_full = disk.full = False
    with trio.fail_after(300):
        while store.statistics()["checkpoints"] == taken:
            await trio.sleep(0.01)
    assert store.health() == []
    await store.checkpoint()
    store.validate()
    await writer.check()
    await store.close()


async def test_the_ballast_gives_the_table_its_last_room() -> None:
    disk = SimulatedDisk()
    store = await opened(disk)
    await Writer(store).put(1)
    assert disk.ballast
    disk.table_full = True
    with pytest.raises(OutOfSpace):
        await store.checkpoint()
    assert not disk.ballast
    with trio.fail_after(300):
        while not store.statistics()["checkpoints"]:
            await trio.sleep(0.01)  # it is tried again by itself
    assert store.failed is None
    disk.table_full = False
    await Writer(store, stripe_object(3, 0)).put(9)
    await store.checkpoint()
    with trio.fail_after(300):
        while not disk.ballast:
            await trio.sleep(0.01)
    await store.close()


async def test_what_others_take_is_not_promised_and_comes_back_when_they_give_it_back() -> None:
    segment = TIGHT.segment_bytes
    disk = SimulatedDisk(size_bytes=20 * segment)
    store = await opened(disk, msgspec.structs.replace(TIGHT, size_limit_bytes=None))
    total = store.space().total
    disk.others_bytes = 8 * segment
    with trio.fail_after(300):
        while store.space().total == total:
            await trio.sleep(0.01)
    less = store.space().total
    writer = Writer(store)
    await writer.fill()
    assert len(writer.expected) * BLOCK_BYTES == less
    disk.others_bytes = 0
    with trio.fail_after(300):
        while store.space().total != total:
            await trio.sleep(0.01)
    await writer.put(10**4)
    await writer.check()
    await store.close()


async def test_what_changes_while_a_checkpoint_is_written_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a slow medium memory would grow as fast as others write."""
    monkeypatch.setattr(upkeep, "_MOST_DIRTY_RECORDS", 30)
    disk = SimulatedDisk()
    store = await opened(disk)
    writer, go = Writer(store), threading.Event()
    await writer.put(0)
    commit = SimulatedTable.commit

    def slowly(table: SimulatedTable, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        assert go.wait(300)
        commit(table, changes)

    monkeypatch.setattr(SimulatedTable, "commit", slowly)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.checkpoint)
        while not store._upkeep._writing:
            await trio.sleep(0.001)
        for _ in range(100):
            if store._upkeep.behind:
                break
            await writer.put(1)
        assert store._upkeep.behind
        version = store.version(writer.object_id)
        change = Change(writer.object_id, 1, version, version.after(1), (Write(2, 1),))
        transaction = Transaction(1, 10_000, 1, (change,))
        with pytest.raises(WouldBlock, match="checkpoint"):
            store.apply(transaction, block(7))
        assert store.version(writer.object_id) == version
        nursery.start_soon(writer.put, 2)
        await trio.testing.wait_all_tasks_blocked()
        assert store.version(writer.object_id) == version, "it waits"
        go.set()
    await writer.check()
    assert 2 in writer.expected
    store.validate()
    await store.close()
