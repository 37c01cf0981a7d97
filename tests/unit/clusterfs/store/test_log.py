"""The log's writing end and its reading end, against each other."""

import itertools
import random
from collections.abc import Callable, Iterator

import pytest
import trio

from clusterfs.errors import BrickFailed
from clusterfs.sim.disk import SimulatedDisk
from clusterfs.store.contents import locations
from clusterfs.store.flush import Flusher
from clusterfs.store.format import (
    BEGIN,
    COMMIT,
    Fragment,
    fragments_of,
    records_of,
)
from clusterfs.store.location import locate, place_of
from clusterfs.store.log import Log
from clusterfs.store.objects import BLOCK_BYTES
from clusterfs.store.recovery import LogReader, ValidLog
from clusterfs.store.segments import Segments
from clusterfs.store.tail import CLEANER, USER, Tail

STORE_ID = bytes(range(16))
SEGMENT_BLOCKS = 32

pytestmark = pytest.mark.trio


class Rig:
    def __init__(self) -> None:
        self.disk = SimulatedDisk()
        self.segments = Segments(SEGMENT_BLOCKS, 64, 8)
        for number in range(64):
            self.disk.create_segment(number, SEGMENT_BLOCKS * BLOCK_BYTES)
            self.segments.add(number)
        flusher = Flusher(self.disk, STORE_ID, 1, 0, 0)
        tail = Tail(1, 0)
        self.log = Log(self.segments, flusher, tail, log_bytes=8 * BLOCK_BYTES, buffers=4)
        self.log.start(lambda _: None)

    def logs(self) -> Iterator[ValidLog]:
        reader = LogReader(self.disk, STORE_ID, SEGMENT_BLOCKS)
        for number in range(64):
            yield from reader.anywhere(number, 0)


async def test_transactions_of_any_size_read_back_whole() -> None:
    rig, chooser = Rig(), random.Random(5)
    wanted = []
    for serial in range(1, 60):
        body = chooser.randbytes(chooser.choice((0, 5, 300, 5000, 40000)))
        blocks = chooser.choice((0, 1, 2, 9, 30))
        payload = chooser.randbytes((blocks + 2) * BLOCK_BYTES)
        ranges = [(0, 0)][:0]
        if blocks:
            half = blocks // 2 * BLOCK_BYTES
            ends = (blocks + 1) * BLOCK_BYTES
            ranges = [(0, half), (half + BLOCK_BYTES, ends)] if half else [(BLOCK_BYTES, ends)]
        data = b"".join(payload[first:end] for first, end in ranges)
        await rig.log.wait_ring_room(len(body) + len(data))
        runs = rig.log.append(body, memoryview(payload), ranges, 100 * serial if blocks else 0)
        wanted.append((serial, body, data, runs))
        for index, location in enumerate(locations(runs)):
            memory = rig.log.in_memory(location)
            if memory is not None:
                assert memory == data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
        if chooser.random() < 0.2:
            await rig.log.sync(rig.log.position)
    await rig.log.sync(rig.log.position)
    logs = sorted(rig.logs(), key=lambda log: log.header.id)
    assert [log.header.id for log in logs] == list(range(1, len(logs) + 1))
    assert all(
        later.header.previous == log.header.checksum for log, later in itertools.pairwise(logs)
    )
    assert sorted(transactions(logs)) == [(s, b) for s, b, _, _ in wanted]
    for _, _, data, runs in wanted:
        assert b"".join(stored(rig.disk, location) for location in locations(runs)) == data
    await rig.log.stop()


def stored(disk: SimulatedDisk, location: int) -> bytes:
    return disk.read(*place_of(location))


def transactions(logs: list[ValidLog]) -> Iterator[tuple[int, bytes]]:
    pieces: list[Fragment] = []
    for log in logs:
        for fragment in fragments_of(records_of(log.content, log.header)):
            assert bool(fragment.flags & BEGIN) == (not pieces), "fragments are contiguous"
            pieces.append(fragment)
            if fragment.flags & COMMIT:
                yield fragment.serial, b"".join(piece.body for piece in pieces)
                pieces = []
    assert not pieces


async def test_one_sync_serves_all_who_wait() -> None:
    rig = Rig()
    durable: list[int] = []

    async def append_and_sync(number: int) -> None:
        rig.log.append(b"x" * number, memoryview(b""))
        position = rig.log.position
        await rig.log.sync(position)
        assert rig.log.durable >= position
        durable.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(append_and_sync, number)
    assert len(durable) == 50
    assert rig.log.flusher.syncs <= 2
    await rig.log.sync(rig.log.position)
    assert rig.log.flusher.syncs <= 2, "nothing new: no sync"
    await rig.log.stop()


async def test_who_asked_to_be_called_is_called_in_order_when_it_is_durable() -> None:
    rig = Rig()
    called: list[tuple[int, BrickFailed | None]] = []
    last = trio.Event()

    def done(number: int) -> Callable[[BrickFailed | None], None]:
        position = rig.log.position

        def call(failure: BrickFailed | None) -> None:
            assert rig.log.durable >= position
            called.append((number, failure))
            if number == 19:
                last.set()

        return call

    rig.log.when_durable(rig.log.position, done(-1))
    assert called == [(-1, None)], "there is nothing to wait for"
    for number in range(20):
        rig.log.append(b"x" * 100, memoryview(bytes(BLOCK_BYTES)), [(0, BLOCK_BYTES)])
        rig.log.when_durable(rig.log.position, done(number))
    await last.wait()
    assert called == [(number, None) for number in range(-1, 20)]
    assert rig.log.flusher.syncs < 20
    await rig.log.stop()


async def test_who_asked_to_be_called_hears_of_a_failure_before_and_after_it() -> None:
    rig = Rig()
    failures: list[BrickFailed | None] = []
    rig.log.append(b"x", memoryview(b""))
    rig.disk.write = _fail  # type: ignore[method-assign]
    rig.log.when_durable(rig.log.position, failures.append)
    with pytest.raises(BrickFailed):
        await rig.log.sync(rig.log.position)
    rig.log.when_durable(rig.log.position, failures.append)
    assert [type(failure) for failure in failures] == [BrickFailed, BrickFailed]
    await rig.log.stop()


def _fail(*_: object) -> None:
    raise OSError(5, "no disk")


async def test_a_cancelled_waiter_harms_nobody() -> None:
    rig = Rig()
    for _ in range(5):
        rig.log.append(b"x", memoryview(b""))
        with trio.move_on_after(0):
            await rig.log.sync(rig.log.position)
        rig.log.append(b"y", memoryview(b""))
        await rig.log.sync(rig.log.position)
    assert rig.log.durable == rig.log.position
    await rig.log.stop()


async def test_the_cleaners_log_has_its_own_segments_and_its_turn_in_the_chain() -> None:
    rig, chooser = Rig(), random.Random(1)
    wanted: list[tuple[bytes, int, int]] = []
    position = 0
    for number in range(120):
        payload = chooser.randbytes(chooser.randrange(1, 5 * BLOCK_BYTES))
        body = bytes(chooser.randrange(5, 2000))
        if not rig.log.fits_cold(len(body), -(-len(payload) // BLOCK_BYTES)):
            rig.log.seal_cold()
            continue
        segment, block = rig.log.relocate(body, memoryview(payload))
        wanted.append((payload, segment, block))
        if number % 3:
            rig.log.append(b"user", memoryview(b""))
            position = rig.log.position
        if number % 7 == 0:
            rig.log.seal()
            assert rig.log.position == position, "positions are not given twice"
        found = rig.log.in_memory(locate(segment, block))
        assert found is None or bytes(found).startswith(payload[:100])
        await rig.log.wait_ring_room(BLOCK_BYTES)
    rig.log.seal_all()
    await rig.log.sync(rig.log.last_id)
    logs = sorted(rig.logs(), key=lambda log: log.header.id)
    assert [log.header.id for log in logs] == list(range(1, rig.log.last_id + 1))
    assert all(
        later.header.previous == log.header.checksum for log, later in itertools.pairwise(logs)
    )
    by_stream = [{log.header.segment for log in logs if log.header.stream == n} for n in (0, 1)]
    assert all(by_stream)
    assert not by_stream[USER] & by_stream[CLEANER]
    for payload, segment, block in wanted:
        assert rig.disk.read(segment, block * BLOCK_BYTES, len(payload)) == payload
    reader = LogReader(rig.disk, STORE_ID, SEGMENT_BLOCKS)
    for segment, (first, last) in rig.segments.used.items():
        ids = [log.header.id for log in reader.chain(segment, first, last)]
        assert (ids[0], ids[-1]) == (first, last)
        assert ids == sorted(log.header.id for log in logs if log.header.segment == segment)
    await rig.log.stop()


async def test_the_idle_mark_tells_what_is_durable_once() -> None:
    rig = Rig()
    rig.log.append(b"x", memoryview(b""))
    await rig.log.sync(rig.log.position)
    for _ in range(3):
        rig.log.mark_durable()
        while rig.log.backlog:
            await trio.lowlevel.checkpoint()
    headers = sorted((log.header for log in rig.logs()), key=lambda header: header.id)
    assert [(h.id, h.durable, h.fragments) for h in headers] == [(1, 0, 1), (2, 1, 0)]
    rig.log.append(b"y", memoryview(b""))
    assert rig.log.position == 3
    await rig.log.sync(3)
    await rig.log.stop()
