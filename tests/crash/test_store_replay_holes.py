"""The four replay holes of dm-writeboost, closed; and media damage, told apart from a torn tail."""

import pytest
import trio
from xxhash import xxh3_64_intdigest, xxh32_intdigest

from clusterfs.errors import BrickDamaged, BrickFailed, SetupError
from clusterfs.sim.bricks import KEY, SMALL, Trial, open_trial
from clusterfs.sim.disk import SimulatedDisk, Written, dropped
from clusterfs.store.format import FORMAT_VERSION, Header, parse_header
from clusterfs.store.objects import BLOCK_BYTES
from clusterfs.store.store import Store

pytestmark = pytest.mark.trio


def writes(disk: SimulatedDisk) -> list[Written]:
    return [event for event in disk.journal if isinstance(event, Written)]


def header_of(write: Written) -> Header:
    header = parse_header(write.content[:BLOCK_BYTES], write.content[16:32])
    assert header is not None
    return header


async def trial_with_logs(count: int, *, seed: int = 1) -> Trial:
    """Return a trial whose journal has `count` synced logs, one transaction each."""
    trial = await open_trial(seed)
    while len(writes(trial.disk)) < count:
        await trial.transact()
        await trial.sync()
    return trial


async def test_a_flipped_bit_in_an_old_log_does_not_drop_the_newer_ones() -> None:
    """Hole a: replay stopped at the bad log, and everything acknowledged after it was gone."""
    trial = await trial_with_logs(6)
    victim = writes(trial.disk)[2]
    await trial.store.close()
    for offset in (0, 20, 40, 88, 95, 300, len(victim.content) - 1):
        brick = trial.disk.crash(journal_before_close(trial), dropped)
        before = dict(brick.medium.segments)
        brick.rot(victim.segment, victim.offset + offset)
        with pytest.raises(BrickDamaged, match=f"log {header_of(victim).id} .* was durable"):
            await Store.open(brick, KEY, options=SMALL)
        assert brick.journal == [], "nothing may be truncated or written"
        assert before == brick.medium.segments


def journal_before_close(trial: Trial) -> int:
    """Return how many events there were before the last checkpoint."""
    return trial.acknowledged[-1][0]


async def test_a_former_laps_log_in_the_place_of_a_lost_one_is_not_applied() -> None:
    """Hole b: ids were not checked, so a valid log of the former lap put old blocks over new."""
    trial = await open_trial(3)
    while True:  # until a segment is used for the second time
        await trial.run(10)
        await trial.sync()
        places: dict[tuple[int, int], Written] = {}
        again = [w for w in writes(trial.disk) if was_there(places, w) and w.offset == 0]
        if again:
            break
    events = trial.disk.journal.index(again[0])  # the second lap's log is lost entirely
    assert places[again[0].segment, 0]
    await trial.check_crash(events + 1, dropped)
    await trial.store.close()


def was_there(places: dict[tuple[int, int], Written], write: Written) -> bool:
    key = (write.segment, write.offset)
    return places.setdefault(key, write) is not write


async def test_a_stale_log_behind_a_rewritten_one_is_not_applied() -> None:
    """Hole c: N was lost, N + 1 stayed; after N was written anew the stale N + 1 looked valid."""
    trial = await open_trial(1)
    store = trial.store
    store.set_fact("epoch", 1)
    await store.sync()
    for name, value in (("cluster", b"lost" * 2000), ("epoch", b"stale")):
        store.set_fact(name, value)
        store._log.seal()
    await until_written(trial)
    lost, stale = writes(trial.disk)[-2:]

    def only_the_second(write: Written, old: bytes) -> bytes:
        return write.content if write is stale else old

    brick = trial.disk.crash(len(trial.disk.journal), only_the_second)
    await store.close()
    second = await Store.open(brick, KEY, options=SMALL)
    assert second.fact("epoch") == 1
    second.set_fact("cluster", b"anew" * 2000)  # the same length: its end is where N + 1 begins
    await second.sync()
    rewritten = writes(brick)[-1]
    assert (rewritten.segment, rewritten.offset) == (lost.segment, lost.offset)
    assert header_of(rewritten).id == header_of(lost).id
    assert len(rewritten.content) == len(lost.content)
    there = brick.medium.segments[stale.segment][stale.offset :][: len(stale.content)]
    assert bytes(there) == stale.content, "the stale log must still be there"
    third = await Store.open(brick.crash(len(brick.journal), dropped), KEY, options=SMALL)
    assert third.fact("cluster") == b"anew" * 2000
    assert third.fact("epoch") == 1
    await third.close()
    await second.close()


async def until_written(trial: Trial) -> None:
    while trial.store._log.backlog:
        await trio.sleep(0)


@pytest.mark.parametrize("field", range(8, 96, 4))
async def test_ids_and_lengths_are_believed_only_under_the_checksum(field: int) -> None:
    """Hole d: id and length were outside the checksum, and the newest id came from any header."""
    trial = await trial_with_logs(4)
    events = journal_before_close(trial)
    steps = trial.acknowledged[-1][1]
    # The header of a log that was never synced claims anything: the tail ends before it.
    trial.store.set_fact("epoch", 5)
    trial.store._log.seal()
    await until_written(trial)
    last = writes(trial.disk)[-1]

    def one_field_flipped(write: Written, _: bytes) -> bytes:
        content = bytearray(write.content)
        content[field + 3] ^= 0x5A
        return bytes(content)

    brick = trial.disk.crash(len(trial.disk.journal), one_field_flipped)
    life = await trial.next_life(brick, events)
    assert life.steps[0].dump == trial.steps[steps].dump
    assert life.store.position == header_of(last).id - 1
    await life.store.close()
    await trial.store.close()


async def test_the_last_synced_log_is_protected_once_the_store_was_idle() -> None:
    """After an idle moment an empty log tells that the last one was durable."""
    trial = await trial_with_logs(3)
    while trial.store._log.flusher.marked < trial.store._log.durable:
        await trio.sleep(0.01)
    real = [w for w in writes(trial.disk) if header_of(w).payload_blocks or header_of(w).fragments]
    brick = trial.disk.killed()
    brick.rot(real[-1].segment, real[-1].offset + 200)
    with pytest.raises(BrickDamaged):
        await Store.open(brick, KEY, options=SMALL)
    await trial.store.close()


async def test_damage_in_the_checkpoint_is_told_as_such() -> None:
    trial = await trial_with_logs(3)
    await trial.store.close()
    key = next(iter(sorted(trial.disk.medium.table)))
    trial.disk.medium.table[key] = trial.disk.medium.table[key][:-1] + b"\xff"
    with pytest.raises(BrickDamaged, match="checkpoint"):
        await Store.open(trial.disk, KEY, options=SMALL)


async def test_damage_in_the_checkpoint_found_later_makes_the_brick_read_only() -> None:
    trial = await trial_with_logs(6)
    await trial.store.close()
    failures: list[OSError] = []
    store = await Store.open(trial.disk, KEY, options=SMALL, on_failed=failures.append)
    object_id = next(iter(trial.model.objects))
    key = b"O" + object_id
    content = trial.disk.medium.table
    content[key] = content[key][:-1] + b"\xff"
    store._opening.table.refresh()
    with pytest.raises(BrickFailed, match="damaged"):
        store.version(object_id)
    assert len(failures) == 1
    with pytest.raises(BrickFailed):
        store.set_fact("epoch", 1)
    await store.close()


@pytest.mark.parametrize("place", ["tail", "head"])
async def test_a_log_of_a_newer_version_is_refused_and_is_no_torn_tail(
    place: str,
) -> None:
    trial = await trial_with_logs(3)
    last = writes(trial.disk)[-1]
    brick = trial.disk.crash(journal_before_close(trial), dropped)
    content = bytearray(last.content)
    content[8] = FORMAT_VERSION + 1
    content[88:96] = bytes(8)
    content[88:96] = xxh3_64_intdigest(content).to_bytes(8, "little")
    free = next(s for s, data in brick.medium.segments.items() if not any(data[:BLOCK_BYTES]))
    target = (last.segment, last.offset + len(content)) if place == "tail" else (free, 0)
    brick.medium.write(*target, bytes(content))
    version = FORMAT_VERSION + 1
    with pytest.raises(SetupError, match=f"format {version}, this clusterfs knows {version - 1}"):
        await Store.open(brick, KEY, options=SMALL)
    assert brick.journal == []
    brick.rot(target[0], target[1] + 500)  # garbage that only looks like it is no newer version
    again = await Store.open(brick, KEY, options=SMALL)
    await again.close()
    await trial.store.close()


async def test_a_flipped_bit_in_the_first_header_of_a_segment_is_no_torn_tail() -> None:
    """Replay looked for more logs only behind its last one, and in segments with a good header."""
    trial = await open_trial(7)
    while True:
        await trial.transact()
        await trial.sync()
        logs = writes(trial.disk)
        if len(logs) > 1 and logs[-1].offset == 0:
            last = logs[-1]
            break
    await trial.transact()
    await trial.sync()
    for offset in range(96):
        brick = trial.disk.killed()
        brick.rot(last.segment, offset)
        with pytest.raises(BrickDamaged, match="was durable"):
            await Store.open(brick, KEY, options=SMALL)
    await trial.store.close()


FORGED = {  # field -> offset and bytes
    "store": (16, 16),
    "epoch": (32, 8),
    "id": (40, 8),
    "previous": (48, 8),
    "segment": (64, 4),
    "block": (68, 4),
}


@pytest.mark.parametrize("field", ["nothing", *FORGED])
async def test_each_of_what_makes_a_log_the_next_one_is_asked_for(field: str) -> None:
    """The holes above are closed more than once; here each reason has to do alone.

    The last log, which no sync covered, gets one wrong field, and right checksums.
    """
    trial = await trial_with_logs(3)
    trial.store.set_fact("epoch", 1)
    await trial.store.sync()
    trial.store.set_fact("epoch", 2)
    trial.store._log.seal()
    await until_written(trial)

    def forged(write: Written, _: bytes) -> bytes:
        content = bytearray(write.content)
        if field in FORGED:
            offset, length = FORGED[field]
            value = int.from_bytes(content[offset : offset + length], "little")
            value += -1 if field == "epoch" else 1
            content[offset : offset + length] = value.to_bytes(length, "little")
        content[84:88] = xxh32_intdigest(content[:84]).to_bytes(4, "little")
        content[88:96] = bytes(8)
        content[88:96] = xxh3_64_intdigest(content).to_bytes(8, "little")
        return bytes(content)

    brick = trial.disk.crash(len(trial.disk.journal), forged)
    again = await Store.open(brick, KEY, options=SMALL)
    assert again.fact("epoch") == (2 if field == "nothing" else 1)
    await again.close()
    await trial.store.close()
