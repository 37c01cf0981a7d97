"""Maps and map pages that clones share: what is counted, who gets a copy, what a crash leaves."""

import random
from collections.abc import AsyncIterator

import pytest

from clusterfs.sim.bricks import KEY, open_trial
from clusterfs.sim.disk import SimulatedDisk, dropped
from clusterfs.sim.older import as_older
from clusterfs.store.checking import check_brick
from clusterfs.store.maps import MAP_BLOCKS
from clusterfs.store.objects import (
    ABSENT,
    BLOCK_BYTES,
    STRIPE_BLOCKS,
    Change,
    Delete,
    Discard,
    ObjectId,
    Operation,
    Put,
    Share,
    Transaction,
    Version,
    Write,
    stripe_object,
)
from clusterfs.store.opening import Options
from clusterfs.store.records import SharedMap, SharedPages
from clusterfs.store.state import INCOMPLETE
from clusterfs.store.store import Store
from clusterfs.store.whole_maps import number_of

pytestmark = pytest.mark.trio

OPTIONS = Options(
    segment_bytes=1 << 20, log_bytes=1 << 17, buffers=4, size_limit_bytes=24 << 20, hints=1 << 12
)
PAGES = 3
BLOCKS = PAGES * MAP_BLOCKS
SOURCE, CLONE, AGAIN = (stripe_object(n, 0) for n in (7, 8, 9))
CONTENT = random.Random(5).randbytes(BLOCKS * BLOCK_BYTES)


class Brick:
    """A store, and the versions of its objects."""

    def __init__(self, disk: SimulatedDisk, store: Store) -> None:
        self.disk, self.store = disk, store
        self.sequence = 0
        self.shared = BLOCKS  # by a clone: as many as are written, or as there can be

    def change(self, object_id: ObjectId, *operations: Operation) -> Change:
        old = self.store.version(object_id)
        return Change(object_id, 1, old, Version(1, old.counter + 1), operations)

    def transaction(self, *changes: Change) -> Transaction:
        self.sequence += 1
        return Transaction(1, self.sequence, 1, changes)

    async def apply(self, *changes: Change, payload: bytes = b"") -> None:
        made = self.transaction(*changes)
        await self.store.admit_transaction(made)
        self.store.apply(made, payload)
        self.store.validate()

    def cloned(self, source: ObjectId, target: ObjectId) -> tuple[Change, Change]:
        return self.change(source), self.change(target, Share(0, self.shared, source, 0))

    async def fill(self) -> None:
        piece = 64
        for first in range(0, BLOCKS, piece):
            data = CONTENT[first * BLOCK_BYTES : (first + piece) * BLOCK_BYTES]
            await self.apply(self.change(SOURCE, Write(first, piece)), payload=data)

    async def content(self, object_id: ObjectId) -> bytes:
        pieces = [await self.store.read(object_id, first, 64) for first in range(0, BLOCKS, 64)]
        return b"".join(pieces)

    async def crash(self) -> None:
        """Lose what is not synced; open what is left."""
        await self.store.close()
        self.disk = self.disk.crash(len(self.disk.journal), dropped)
        self.store = await Store.open(self.disk, KEY, options=OPTIONS)
        self.store.validate()


@pytest.fixture(params=[BLOCKS, STRIPE_BLOCKS], ids=["pages", "maps"])
async def brick(request: pytest.FixtureRequest) -> AsyncIterator[Brick]:
    disk = SimulatedDisk()
    brick = Brick(disk, await Store.open(disk, KEY, options=OPTIONS))
    brick.shared = request.param
    await brick.fill()
    yield brick
    await brick.store.close()


def references(store: Store) -> int:
    return store._contents.state.chunks.references_total


async def test_a_clone_adds_no_reference_to_a_chunk(brick: Brick) -> None:
    store = brick.store
    before, usage = store.statistics(), store.usage()
    counted = references(store)
    for target in (CLONE, AGAIN):
        await brick.apply(*brick.cloned(SOURCE, target))
        assert await brick.content(target) == CONTENT
    after = store.statistics()
    assert references(store) == counted == BLOCKS
    assert after["logical_blocks"] == 3 * BLOCKS
    assert after["shared_blocks"] == before["shared_blocks"] + 2 * BLOCKS
    assert store.usage()["live_bytes"] == usage["live_bytes"]
    assert store.usage()["logical_bytes"] == 3 * usage["logical_bytes"]
    # What a clone logs: the number of the map, or one for each page, not one for each block.
    record = Transaction(1, 99, 1, brick.cloned(SOURCE, stripe_object(10, 0)))
    ingested = store._ingest.resolve(record.changes, memoryview(b""), 1)
    (shared,) = ingested.changes[1].operations
    if brick.shared == STRIPE_BLOCKS:
        assert isinstance(shared, SharedMap)
        assert not list(store._state.maps.all_shared()), "no page was looked at"
    else:
        assert isinstance(shared, SharedPages)
        assert len(shared.numbers) == PAGES


async def test_each_goes_its_own_way_and_the_last_one_takes_the_pages_over(brick: Brick) -> None:
    store = brick.store
    await brick.apply(*brick.cloned(SOURCE, CLONE))
    await brick.apply(*brick.cloned(CLONE, AGAIN))
    new = b"n" * BLOCK_BYTES
    await brick.apply(brick.change(CLONE, Write(MAP_BLOCKS + 1, 1)), payload=new)
    changed = bytearray(CONTENT)
    changed[(MAP_BLOCKS + 1) * BLOCK_BYTES : (MAP_BLOCKS + 2) * BLOCK_BYTES] = new
    assert references(store) == BLOCKS + MAP_BLOCKS  # one page was copied
    assert [await brick.content(o) for o in (SOURCE, CLONE, AGAIN)] == [CONTENT, changed, CONTENT]
    await brick.apply(brick.change(SOURCE, Delete()))
    await brick.apply(brick.change(AGAIN, Discard(0, BLOCKS)))
    assert await brick.content(AGAIN) == bytes(len(CONTENT))
    assert await brick.content(CLONE) == changed
    assert store.usage()["live_bytes"] == BLOCKS * BLOCK_BYTES
    await brick.apply(brick.change(CLONE, Write(0, 1)), payload=new)
    assert references(store) == BLOCKS
    await brick.apply(brick.change(CLONE, Delete()))
    assert store.usage()["live_bytes"] == store.usage()["logical_bytes"] == 0


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("checkpointed", [True, False])
async def test_a_prepared_clone_has_what_its_source_had(
    brick: Brick, *, commits: bool, checkpointed: bool
) -> None:
    """The source is replaced meanwhile, as by a resync: its clone must not follow."""
    prepared = brick.transaction(*brick.cloned(SOURCE, CLONE))
    await brick.store.admit_transaction(prepared)
    brick.store.prepare(prepared)
    brick.store.validate()
    operations = (Discard(0, BLOCKS), Write(0, 1))
    await brick.store.admit(BLOCK_BYTES)
    brick.store.replace(SOURCE, 1, INCOMPLETE, operations, b"x" * BLOCK_BYTES)
    brick.store.validate()
    if checkpointed:
        await brick.store.checkpoint()
    await brick.store.sync()
    await brick.crash()
    assert [len(t.changes) for t in brick.store.prepared()] == [2]
    if commits:
        brick.store.commit(1, prepared.sequence)
        assert await brick.content(CLONE) == CONTENT
    else:
        brick.store.abort(1, prepared.sequence)
        assert brick.store.version(CLONE) == ABSENT
    brick.store.validate()
    await brick.store.sync()
    await brick.crash()
    expected = CONTENT if commits else bytes(len(CONTENT))
    assert await brick.content(CLONE) == expected
    live = BLOCKS + 1 if commits else 1
    assert brick.store.usage()["live_bytes"] == live * BLOCK_BYTES


async def test_clones_survive_crashes_with_and_without_a_checkpoint(brick: Brick) -> None:
    await brick.apply(*brick.cloned(SOURCE, CLONE))
    await brick.store.sync()
    await brick.crash()
    await brick.store.checkpoint()
    await brick.apply(*brick.cloned(CLONE, AGAIN))
    await brick.apply(brick.change(SOURCE, Delete()))
    await brick.store.sync()
    await brick.crash()
    assert [await brick.content(name) for name in (CLONE, AGAIN)] == [CONTENT, CONTENT]
    assert references(brick.store) == BLOCKS
    await brick.apply(brick.change(CLONE, Delete()), brick.change(AGAIN, Delete()))
    assert brick.store.usage()["live_bytes"] == 0


async def test_within_one_transaction_blocks_are_shared_as_they_were_before(brick: Brick) -> None:
    """Whatever the order of its changes: the source is overwritten, moved within, or deleted."""
    half = MAP_BLOCKS * BLOCK_BYTES
    new = b"n" * BLOCK_BYTES
    source = brick.change(
        SOURCE, Write(0, 1), Share(2 * MAP_BLOCKS, MAP_BLOCKS, SOURCE, 0), Discard(MAP_BLOCKS, 9)
    )
    _, clone = brick.cloned(SOURCE, CLONE)
    await brick.apply(source, clone, payload=new)
    assert await brick.content(CLONE) == CONTENT
    moved = new + CONTENT[BLOCK_BYTES:half] + bytes(9 * BLOCK_BYTES)
    moved += CONTENT[len(moved) : 2 * half] + CONTENT[:half]
    assert await brick.content(SOURCE) == moved
    _, again = brick.cloned(CLONE, AGAIN)
    await brick.apply(brick.change(CLONE, Delete()), again)
    assert await brick.content(AGAIN) == CONTENT
    assert await brick.content(SOURCE) == moved


async def test_a_full_brick_is_not_said_to_gain_room_by_what_clones_still_have() -> None:
    """Discarding what another object has, too, frees nothing that new data could take."""
    disk = SimulatedDisk()
    brick = Brick(disk, await Store.open(disk, KEY, options=OPTIONS))
    await brick.fill()
    _, clone = brick.cloned(SOURCE, CLONE)
    room = brick.store._room
    assert room._freed_units((brick.change(SOURCE, Delete()),))
    await brick.apply(brick.change(SOURCE), clone)
    for operation in (Delete(), Discard(0, BLOCKS), Write(0, BLOCKS)):
        assert not room._freed_units((brick.change(SOURCE, operation),))
    await brick.apply(brick.change(CLONE, Delete()))
    assert room._freed_units((brick.change(SOURCE, Delete()),))
    await brick.store.close()


async def test_a_map_is_copied_by_the_first_who_writes_and_kept_by_the_last(brick: Brick) -> None:
    """A write to a map that nobody else has any more makes no copy of it, nor of its pages."""
    brick.shared, store = STRIPE_BLOCKS, brick.store
    state = store._state
    for target in (CLONE, AGAIN):
        await brick.apply(*brick.cloned(SOURCE, target))
    number = number_of(state.owner(SOURCE))
    assert [number_of(state.owner(o)) for o in (CLONE, AGAIN)] == [number, number]
    assert state.whole_maps.find(number) == (3, BLOCKS)
    new = b"n" * BLOCK_BYTES
    await brick.apply(brick.change(SOURCE, Write(0, 1)), payload=new)
    assert number_of(state.owner(SOURCE)) != number
    assert state.whole_maps.find(number) == (2, BLOCKS)
    assert references(store) == BLOCKS + MAP_BLOCKS
    await brick.apply(brick.change(SOURCE, Delete()))
    assert references(store) == BLOCKS
    assert await brick.content(CLONE) == CONTENT
    await brick.apply(brick.change(AGAIN, Delete()))
    await brick.apply(brick.change(CLONE, Write(1, 1)), payload=new)
    assert number_of(state.owner(CLONE)) == number, "the last one has it for itself"
    assert state.whole_maps.find(number) is None
    assert references(store) == BLOCKS
    assert store.statistics()["logical_blocks"] == BLOCKS


async def test_what_one_overwrites_is_free_when_the_other_is_gone(brick: Brick) -> None:
    """In whatever order: only what somebody can read takes room."""
    chance = random.Random(brick.shared)
    for _ in range(6):
        await brick.apply(*brick.cloned(SOURCE, CLONE))
        await brick.apply(*brick.cloned(CLONE, AGAIN))
        readable = {name: dict.fromkeys(range(BLOCKS), "old") for name in (SOURCE, CLONE, AGAIN)}
        for _ in range(5):
            name, first = chance.choice(list(readable)), chance.randrange(BLOCKS - 9)
            if chance.random() < 0.5:
                new = b"".join(chance.randbytes(BLOCK_BYTES) for _ in range(3))
                await brick.apply(brick.change(name, Write(first, 3)), payload=new)
                readable[name] |= dict.fromkeys(range(first, first + 3), "new")
            else:
                await brick.apply(brick.change(name, Discard(first, 9)))
                for block in range(first, first + 9):
                    readable[name].pop(block, None)
            old = set().union(*({b for b, v in r.items() if v == "old"} for r in readable.values()))
            fresh = sum(list(found.values()).count("new") for found in readable.values())
            assert brick.store.usage()["live_bytes"] == (len(old) + fresh) * BLOCK_BYTES
        order = [SOURCE, CLONE, AGAIN]
        chance.shuffle(order)
        for name in order:
            await brick.apply(
                brick.change(name, *chance.choice([(Delete(),), (Discard(0, 1 << 14),)]))
            )
        assert brick.store.usage()["live_bytes"] == brick.store.usage()["logical_bytes"] == 0
        await brick.fill()


async def test_a_clone_of_all_replaces_what_the_target_had(brick: Brick) -> None:
    brick.shared, store = STRIPE_BLOCKS, brick.store
    new = b"n" * BLOCK_BYTES
    await brick.apply(brick.change(CLONE, Write(9, 1)), payload=new)
    await brick.apply(*brick.cloned(SOURCE, CLONE))
    assert await brick.content(CLONE) == CONTENT
    await brick.apply(*brick.cloned(SOURCE, CLONE))  # it is that already
    await brick.apply(brick.change(SOURCE, Share(0, STRIPE_BLOCKS, SOURCE, 0)))
    assert store.usage()["live_bytes"] == BLOCKS * BLOCK_BYTES
    assert store._state.whole_maps.find(number_of(store._state.owner(CLONE))) == (2, BLOCKS)
    await brick.apply(brick.change(AGAIN, Put(b"k", b"v")))  # a source without a block
    await brick.apply(*brick.cloned(AGAIN, CLONE))
    assert await brick.content(CLONE) == bytes(len(CONTENT))
    assert await brick.content(SOURCE) == CONTENT


@pytest.mark.parametrize("version", [2, 3])
async def test_a_checkpoint_of_an_older_format_goes_on(brick: Brick, version: int) -> None:
    """Maps lie under their objects' ids there, and nobody counted their blocks."""
    await brick.store.checkpoint()
    await brick.store.close()
    as_older(brick.disk, version)
    assert not check_brick(brick.disk).problems
    brick.store = await Store.open(brick.disk, KEY, options=OPTIONS)
    brick.store.validate()
    new = b"n" * BLOCK_BYTES
    await brick.apply(brick.change(SOURCE, Write(3, 1)), payload=new)
    assert number_of(brick.store._state.owner(SOURCE)) == 0
    changed = CONTENT[: 3 * BLOCK_BYTES] + new + CONTENT[4 * BLOCK_BYTES :]
    await brick.apply(*brick.cloned(SOURCE, CLONE))
    await brick.apply(brick.change(SOURCE, Write(4, 1)), payload=new)
    await brick.store.sync()
    await brick.crash()
    assert await brick.content(CLONE) == changed
    await brick.store.checkpoint()
    assert brick.store.statistics()["logical_blocks"] == 2 * BLOCKS
    await brick.apply(brick.change(SOURCE, Discard(0, STRIPE_BLOCKS)))
    await brick.apply(brick.change(SOURCE, Write(4, 1)), payload=new)
    assert number_of(brick.store._state.owner(SOURCE)), "an empty object is as a new one"
    await brick.apply(brick.change(CLONE, Delete()), brick.change(SOURCE, Delete()))
    assert brick.store.usage()["live_bytes"] == brick.store.usage()["logical_bytes"] == 0


async def test_random_clones_equal_the_model() -> None:
    trial = await open_trial(11)
    for _ in range(60):
        await trial.random.choice([trial.share, trial.share, trial.transact, trial.decide])()
    shared = dict(trial.store._contents.state.maps.all_shared())
    assert any(page.references > 1 for page in shared.values())
    assert list(trial.store._state.whole_maps.all_shared())
    await trial.check_live()
    await trial.store.close()
