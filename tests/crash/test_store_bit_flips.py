"""A flipped bit anywhere in a brick: never wrong data; it is noticed, or it has no effect.

Each byte that the brick's owner wrote is flipped in turn: the superblock, every record of the
checkpoint (key and value), and every log in the segments. After each flip the brick is opened as at
a start, and everything is read: what is there must be what was written, or an error. Of the data
blocks every byte counts alike, so most runs try every 16th; all with CLUSTERFS_EXHAUSTIVE=1.
"""

import os
from collections.abc import Iterator

import pytest
import trio

from clusterfs.errors import ChunkCorrupted, SetupError
from clusterfs.sim.bricks import KEY, SMALL, dump, open_trial
from clusterfs.sim.disk import SimulatedDisk, Written
from clusterfs.sim.recovered import recovered
from clusterfs.store.format import parse_header
from clusterfs.store.objects import BLOCK_BYTES
from clusterfs.store.store import Store

pytestmark = pytest.mark.trio

EXHAUSTIVE = bool(os.environ.get("CLUSTERFS_EXHAUSTIVE"))
SEED = int(os.environ.get("CLUSTERFS_SEED", "0"))
CLIENTS, SEQUENCES = range(1, 4), range(1, 60)


async def small_brick() -> SimulatedDisk:
    """Return a brick with some logs behind its checkpoint, and some after it; all are synced."""
    trial = await open_trial(11)
    for _ in range(5):
        await trial.transact()
    await trial.prepare()
    await trial.note()
    await trial.sync()
    await trial.checkpoint()
    for _ in range(3):
        await trial.transact()
        await trial.sync()
    await trial.decide()
    await trial.sync()
    while trial.store._log.flusher.marked < trial.store._log.durable:
        await trio.sleep(0.01)  # a mark tells that the last log was synced
    brick = trial.disk.killed()
    await trial.store.close()
    return brick


def written(disk: SimulatedDisk) -> Iterator[tuple[int, int]]:
    """Yield (segment, offset) of each byte to flip."""
    for event in disk.journal:
        if isinstance(event, Written):
            header = parse_header(event.content[:BLOCK_BYTES], event.content[16:32])
            assert header is not None
            data = range(BLOCK_BYTES, (1 + header.payload_blocks) * BLOCK_BYTES)
            for at in range(len(event.content)):
                if at not in data or EXHAUSTIVE or (at + SEED) % 64 == 0:
                    yield event.segment, event.offset + at


def look(disk: SimulatedDisk, expected: dict[str, object]) -> bool:
    """Open and read; tell whether the damage was noticed. Wrong content is a failure."""
    try:
        report, found = recovered(disk, CLIENTS, SEQUENCES)
    except (SetupError, ChunkCorrupted):
        return True
    if report.problems:
        return True
    assert found == expected
    return False


@pytest.mark.timeout(3600)
async def test_each_byte_of_the_logs() -> None:
    brick = await small_brick()
    report, expected = recovered(brick, CLIENTS, SEQUENCES)
    assert not report.problems
    noticed = missed = 0
    for number, (segment, offset) in enumerate(written(brick)):
        if not EXHAUSTIVE and number % 11 != SEED % 11:
            continue
        content = brick.medium.segments[segment]
        content[offset] ^= 1 << number % 8
        if look(brick, expected):
            noticed += 1
        else:
            missed += 1
        content[offset] ^= 1 << number % 8
    assert noticed > 500
    assert missed <= BLOCK_BYTES, "only the last log, a mark, has no witness"


@pytest.mark.timeout(3600)
async def test_each_byte_of_the_checkpoint_and_the_superblock() -> None:
    brick = await small_brick()
    _, expected = recovered(brick, CLIENTS, SEQUENCES)
    table = brick.medium.table
    for key, value in list(table.items()):
        step = 1 if EXHAUSTIVE or len(value) < 100 else 23
        for at in range(0, len(value), step):
            table[key] = value[:at] + bytes([value[at] ^ 1 << at % 8]) + value[at + 1 :]
            assert look(brick, expected), (key, at)
        del table[key]
        assert look(brick, expected), (key, "gone")
        for at in range(len(key)):
            other = key[:at] + bytes([key[at] ^ 1 << at % 8]) + key[at + 1 :]
            if other not in table:
                table[other] = value
                assert look(brick, expected), (key, other)
                del table[other]
        table[key] = value
    content = brick.medium.superblock
    assert content is not None
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        brick.medium.superblock = bytes(flipped)
        assert look(brick, expected), at
    brick.medium.superblock = content
    assert not look(brick, expected)


async def test_a_running_store_returns_right_data_or_an_error() -> None:
    """The same for reads of a store that serves: every byte of one data block, every 97th else."""
    brick = await small_brick()
    store = await Store.open(brick, KEY, options=SMALL)
    await store.checkpoint()
    sequences = len(SEQUENCES)
    expected = await dump(store, sequences)
    errors: list[str] = []
    for segment, offset in list(written(brick))[::97]:
        content = brick.medium.segments[segment]
        content[offset] ^= 4
        store._cache._blocks.clear()
        try:
            assert await dump(store, sequences) == expected
        except ChunkCorrupted as error:
            errors.append(str(error))
        content[offset] ^= 4
        store._damage.cids.clear()
    assert len(errors) > 5
    assert all("object" in error and "chunks" in error for error in errors)
    await store.close()
