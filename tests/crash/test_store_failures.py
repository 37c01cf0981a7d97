"""Failed writes, failed syncs, a full disk, rotten chunks, a brick that is nearly full."""

import random

import pytest
import trio

from clusterfs.errors import (
    BrickFailed,
    ChunkCorrupted,
    NoSuchChunk,
    OutOfSpace,
    SetupError,
    WouldBlock,
)
from clusterfs.sim.bricks import KEY, SMALL, TIGHT, Trial, dump, open_trial
from clusterfs.sim.disk import Created, SimulatedDisk, dropped
from clusterfs.store.location import place_of, segment_of
from clusterfs.store.objects import (
    ABSENT,
    BLOCK_BYTES,
    Change,
    Delete,
    ObjectId,
    Operation,
    Transaction,
    Version,
    Write,
    stripe_object,
)
from clusterfs.store.state import INCOMPLETE
from clusterfs.store.store import Store

pytestmark = pytest.mark.trio


def block(number: int) -> bytes:
    return number.to_bytes(8, "little") * (BLOCK_BYTES // 8)


class Writer:
    """Writes to one object, version after version."""

    def __init__(self, store: Store, object_id: ObjectId) -> None:
        self.store = store
        self.object_id = object_id
        self.sequence = 0

    async def do(self, *operations: Operation, payload: bytes = b"") -> int:
        version = self.store.version(self.object_id)
        self.sequence += 1
        change = Change(self.object_id, 1, version, version.after(1), operations)
        transaction = Transaction(self.object_id[7], self.sequence, 1, (change,))
        await self.store.admit_transaction(transaction)
        return self.store.apply(transaction, payload)

    async def put(self, first: int, *numbers: int) -> int:
        return await self.do(
            Write(first, len(numbers)), payload=b"".join(block(n) for n in numbers)
        )


@pytest.mark.parametrize("what", ["fail_writes", "fail_syncs"])
async def test_a_failure_reaches_every_waiter_once_and_makes_the_brick_read_only(what: str) -> None:
    disk = SimulatedDisk()
    failures: list[OSError] = []
    store = await Store.open(disk, KEY, options=SMALL, on_failed=failures.append)
    writer = Writer(store, stripe_object(1, 0))
    await writer.put(0, 1, 2)
    await store.sync()
    await store.checkpoint()
    good = len(disk.journal)
    setattr(disk, what, True)
    await writer.put(0, 3, 4)
    errors = []

    async def wait() -> None:
        try:
            await store.sync()
        except BrickFailed as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(wait)
    assert len(errors) == 5
    assert len(failures) == 1
    assert "read-only: [Errno 5] simulated" in store.health()[0]
    setattr(disk, what, False)
    for attempt in (store.sync, store.checkpoint):
        with pytest.raises(BrickFailed):
            await attempt()
    with pytest.raises(BrickFailed):
        await writer.put(0, 5)
    with pytest.raises(BrickFailed):
        store.set_fact("x", 1)
    assert await store.read(writer.object_id, 0, 1) == block(3), "reads go on"
    later = [event for event in disk.journal[good:] if not isinstance(event, Created)]
    assert len(later) == (what == "fail_syncs"), "nothing may be retried"
    await store.close()
    again = await Store.open(disk.crash(good, dropped), KEY, options=SMALL)
    assert await again.read(writer.object_id, 0, 2) == block(1) + block(2)
    await again.close()


async def test_a_rotten_chunk_is_refused_and_never_shared() -> None:
    disk = SimulatedDisk()
    store = await Store.open(disk, KEY, options=SMALL)
    writer = Writer(store, stripe_object(1, 0))
    await writer.put(0, 1, 2)
    await store.sync()
    cid = store._state.cids(writer.object_id, 1, 1)[0]
    found = store._state.chunks.find(cid)
    assert found is not None
    location = found[0]
    while store._log.backlog:
        await trio.sleep(0)
    segment, offset, _ = place_of(location)
    disk.rot(segment, offset + 77)
    with pytest.raises(WouldBlock):
        store.read_nowait(writer.object_id, 1, 1)
    with pytest.raises(ChunkCorrupted):
        await store.read(writer.object_id, 0, 2)
    assert store.read_nowait(writer.object_id, 0, 1) == block(1)
    identity = store.blocks(writer.object_id)[1][1]
    assert not store.has_chunk(identity)
    await writer.put(9, 2)
    assert store._state.cids(writer.object_id, 9, 1)[0] != cid
    assert await store.read(writer.object_id, 9, 1) == block(2)
    await store.close()


async def test_only_verified_chunks_are_offered_after_a_restart() -> None:
    disk = SimulatedDisk()
    store = await Store.open(disk, KEY, options=SMALL)
    writer = Writer(store, stripe_object(1, 0))
    await writer.put(0, 1, 2)
    identities = [identity for _, identity in store.blocks(writer.object_id)]
    assert all(map(store.has_chunk, identities))
    await store.close()
    store = await Store.open(disk, KEY, options=SMALL)
    assert not any(map(store.has_chunk, identities))
    location = store._state.chunks.find(store._state.cids(writer.object_id, 0, 1)[0])
    assert location is not None
    disk.rot(*place_of(location[0])[:2])
    assert not await store.find_chunk(identities[0])
    assert await store.find_chunk(identities[1])
    assert store.has_chunk(identities[1])
    with pytest.raises(NoSuchChunk):
        store.replace(stripe_object(2, 0), 1, INCOMPLETE, (), shares=[(0, identities[0])])
    assert store.version(stripe_object(2, 0)) == ABSENT
    store.replace(stripe_object(2, 0), 1, Version(4, 4), (), shares=[(3, identities[1])])
    assert await store.read(stripe_object(2, 0), 2, 2) == bytes(BLOCK_BYTES) + block(2)
    store.validate()
    await store.close()


async def test_out_of_space_comes_before_acceptance_and_deleting_helps() -> None:
    disk = SimulatedDisk()
    store = await Store.open(disk, KEY, options=TIGHT)
    writers = [Writer(store, stripe_object(n, 0)) for n in range(1, 9)]
    number = 0
    with pytest.raises(OutOfSpace):  # noqa: PT012  which of them is refused is not the point
        while True:
            for writer in writers:
                await writer.put(number, *range(number * 100, number * 100 + 5))
                number += 6
    assert store.space().free < 6 * BLOCK_BYTES
    held = store.space().live
    sequence = writers[0].sequence
    with pytest.raises(OutOfSpace):
        await writers[0].put(9000, *range(10**6, 10**6 + 50))
    writers[0].sequence = sequence
    assert store.space().live == held
    store.validate()
    for writer in writers[:6]:
        await writer.do(Delete())
    assert store.space().free > held // 2
    await writers[7].put(9000, *range(10**6, 10**6 + 50))
    assert await store.read(writers[7].object_id, 9049, 1) == block(10**6 + 49)
    store.validate()
    await store.close()


async def test_a_long_overwrite_load_on_a_small_brick_goes_on_for_ever() -> None:
    disk = SimulatedDisk()
    store = await Store.open(disk, KEY, options=TIGHT)
    usable = store.space().total // BLOCK_BYTES
    live = usable * 9 // 10
    chooser = random.Random(1)
    writer = Writer(store, stripe_object(1, 0))
    newest = {}
    for number in range(usable * 12):
        at = chooser.randrange(live)
        newest[at] = number
        await writer.put(at, number)
        if number % 400 == 0:
            await store.sync()
    assert store.statistics()["relocated_blocks"] > live
    store.validate()
    for at, number in newest.items():
        assert await store.read(writer.object_id, at, 1) == block(number)
    await store.close()
    store = await Store.open(disk, KEY, options=TIGHT)
    for at, number in newest.items():
        assert await store.read(writer.object_id, at, 1) == block(number)
    await store.close()


async def test_a_filesystem_that_others_filled_limits_the_brick() -> None:
    disk = SimulatedDisk()
    store = await Store.open(disk, KEY, options=SMALL)
    disk.full = True
    writer = Writer(store, stripe_object(1, 0))
    with pytest.raises(OutOfSpace):  # noqa: PT012  which of them is refused is not the point
        for number in range(10000):
            await writer.put(number, number)
    assert store.failed is None
    await store.close()


async def test_a_checkpoint_that_fails_makes_the_brick_read_only() -> None:
    trial = await open_trial(1)
    await trial.run(10)
    await trial.sync()
    trial.disk.fail_commits = True
    trial.store.set_fact("epoch", 7)
    with pytest.raises(BrickFailed):
        await trial.store.checkpoint()
    with pytest.raises(BrickFailed):
        await trial.store.sync()
    await compare(trial)
    await trial.store.close()


async def compare(trial: Trial) -> None:
    trial.model.facts["epoch"] = 7
    assert await dump(trial.store, trial._sequence) == trial.model.dump(), "reads go on"


async def test_a_brick_opens_once_and_too_small_a_one_not_at_all() -> None:
    disk = SimulatedDisk(size_bytes=300_000)
    with pytest.raises(SetupError, match="at least"):
        await Store.open(disk, KEY, options=TIGHT.__class__(segment_bytes=128 << 10))
    disk = SimulatedDisk()
    store = await Store.open(disk, KEY, options=SMALL)
    with pytest.raises(SetupError, match="in use"):
        disk.lock()
    await store.close()


async def at_once(_: int) -> None:
    """No pace."""


async def test_the_cleaner_leaves_a_rotten_chunk_where_it_is_and_moves_the_others() -> None:
    disk = SimulatedDisk()
    store = await Store.open(disk, KEY, options=SMALL)
    writer = Writer(store, stripe_object(1, 0))
    for number in range(60):
        await writer.put(number, number + 1)
    await store.checkpoint()
    chunks = store._state.chunks
    cids = store._state.cids(writer.object_id, 0, 60)
    before = {cid: found[0] for cid in cids if (found := chunks.find(cid)) is not None}
    rotten = cids[3]
    victim = segment_of(before[rotten])
    assert victim in store._segments.used
    disk.rot(victim, place_of(before[rotten])[1] + 5)
    # The log that holds it is damaged as a whole: nothing of this segment can be listed from there.
    await store._cleaner.clean(victim, at_once)
    assert victim in store._segments.damaged
    after = chunks.find(rotten)
    assert after is not None
    assert after[0] == before[rotten]
    with pytest.raises(ChunkCorrupted):
        await store.read(writer.object_id, 3, 1)
    for number in (0, 1, 2, *range(4, 60)):
        assert await store.read(writer.object_id, number, 1) == block(number + 1)
    store.validate()
    await store.close()
