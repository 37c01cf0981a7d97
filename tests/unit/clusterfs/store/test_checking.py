"""fsck finds what is planted, names it, and repairs what the brick itself can tell."""

import struct
from collections.abc import Callable

import pytest

from clusterfs.errors import BrickDamaged, SetupError
from clusterfs.sim.bricks import KEY, SMALL, TIGHT, Trial, dump, open_trial
from clusterfs.sim.disk import SimulatedDisk
from clusterfs.store import checking
from clusterfs.store.checking import Report, check_brick
from clusterfs.store.chunks import ChunkPage
from clusterfs.store.format import open_value, seal_value
from clusterfs.store.location import place_of
from clusterfs.store.objects import MARK, Put, Transaction, stripe_object
from clusterfs.store.store import Store

pytestmark = pytest.mark.trio


async def closed_trial(seed: int = 3) -> Trial:
    trial = await open_trial(seed)
    await trial.run(60)
    state = trial.store._state
    while not (
        any(p.references > 1 for _, p in state.maps.all_shared())
        and any(counts.references > 1 for _, counts in state.whole_maps.all_shared())
    ):
        await trial.random.choice([trial.share, trial.transact, trial.decide])()
    await trial.store.close()
    return trial


def edit(disk: SimulatedDisk, key: bytes, change: Callable[[bytes], bytes | None]) -> None:
    """Change one record as a bug would: all checksums are right."""
    table = disk.open_table()
    sealed = table.get(key)
    value = change(b"" if sealed is None else open_value(key, sealed) or b"")
    table.commit([(key, None if value is None else seal_value(key, value))])


def first_key(disk: SimulatedDisk, prefix: bytes) -> bytes:
    return min(key for key in disk.medium.table if key.startswith(prefix))


def one_more_reference(value: bytes) -> bytes:
    page = ChunkPage.decode(value)
    page.references[next(i for i, n in enumerate(page.references) if n)] += 1
    return page.encode()


def one_more_map(value: bytes) -> bytes:
    return struct.pack("<I", struct.unpack_from("<I", value)[0] + 1) + value[4:]


def same_place(value: bytes) -> bytes:
    page = ChunkPage.decode(value)
    one, other = [i for i, n in enumerate(page.references) if n][:2]
    page.locations[one] = page.locations[other]
    return page.encode()


async def test_a_sound_brick_is_clean_and_is_not_written_to() -> None:
    trial = await closed_trial()
    events = len(trial.disk.journal)
    told: list[tuple[str, int, int]] = []
    report = check_brick(trial.disk, repair=True, progress=lambda *what: told.append(what))
    assert (report.exit_code, report.problems) == (0, [])
    blocks = sum(len(found.blocks) for found in trial.model.objects.values())
    assert report.facts["objects"] == len(trial.model.objects)
    assert report.facts["references"] + trial.store._state.maps.repeated >= blocks
    assert {what for what, _, _ in told} >= {"checkpoint", "references", "log", "data"}
    assert len(trial.disk.journal) == events


@pytest.mark.parametrize(
    ("prefix", "change", "told"),
    [
        (b"C", one_more_reference, "references: chunk"),
        (b"L", lambda value: bytes([value[0] ^ 1]) + value[1:], "in all"),
        (b"L", lambda value: value[:24] + bytes([value[24] ^ 1]) + value[25:], "sharing saves"),
        (b"L", lambda value: value[:16] + bytes(8) + value[24:], "the next one would be 0"),
        (b"L", lambda value: value[:32] + bytes(8) + value[40:], "the next one would be 0"),
        (b"N", one_more_map, "shared map page"),
        (b"T", one_more_map, "shared map: "),
        (b"T", lambda _: None, "its count says 1"),
        (
            b"T",
            lambda value: value[:4] + bytes([value[4] + 1]) + value[5:],
            "blocks, its count says",
        ),
        (b"O", lambda value: value[:26] + bytes([value[26] ^ 1]) + value[27:], "its head says"),
        (b"G", lambda _: None, "group index: object"),
        (b"S", lambda value: struct.pack("<I", 1) + value[4:], "live counts"),
    ],
)
async def test_what_can_be_derived_is_repaired_on_request(
    prefix: bytes, change: Callable[[bytes], bytes | None], told: str
) -> None:
    trial = await closed_trial()
    edit(trial.disk, first_key(trial.disk, prefix), change)
    await repairable(trial, told)


async def repairable(trial: Trial, told: str) -> None:
    found = check_brick(trial.disk)
    assert found.exit_code == 4
    assert any(told in problem for problem in found.problems), found.problems
    repaired = check_brick(trial.disk, repair=True)
    assert (repaired.exit_code, repaired.left) == (1, 0), repaired.problems
    assert all(problem.endswith("(repaired)") for problem in repaired.problems)
    again = check_brick(trial.disk)
    assert again.exit_code == 0, again.problems
    store = await Store.open(trial.disk, KEY, options=SMALL)
    store.validate()
    assert await dump(store, trial._sequence) == trial.model.dump()
    await store.close()


async def test_records_of_an_object_that_does_not_exist_are_removed() -> None:
    trial = await closed_trial()
    ghost = stripe_object(99, 0)
    for key in (b"K" + ghost + b"k", b"G" + b"\0\1" + ghost):
        edit(trial.disk, key, lambda _: b"")
    edit(trial.disk, b"X" + ghost, lambda _: b"")
    await repairable(trial, f"leftover: records of object {ghost.hex()}")


async def test_a_map_that_nobody_has_is_removed() -> None:
    trial = await closed_trial()
    ghost = b"\xff" * 8 + (1 << 40).to_bytes(8, "big")
    edit(trial.disk, b"M" + ghost + bytes(4), lambda _: struct.pack("<256Q", 1, *[0] * 255))
    edit(trial.disk, b"T" + ghost[8:], lambda _: struct.pack("<II", 2, 1))
    await repairable(trial, f"leftover: records of map {1 << 40}, which nobody has")


async def test_a_wrong_index_of_marks_is_repaired() -> None:
    trial = await open_trial(1)
    await trial.run(20)
    object_id = next(iter(trial.model.objects))
    await trial.store.admit_transaction(Transaction(0, 0, 0, ()))
    found = trial.model.objects[object_id]
    trial.store.replace(object_id, found.group, found.version, (Put(MARK, b"work"),))
    found.keys[MARK] = b"work"
    await trial.store.close()
    edit(trial.disk, b"X" + object_id, lambda _: None)
    await repairable(trial, "marks")


async def test_what_only_a_replica_knows_is_named_and_left() -> None:
    trial = await closed_trial()
    store = await Store.open(trial.disk, KEY, options=SMALL)
    object_id = next(o for o, found in trial.model.objects.items() if found.blocks)
    block = store.blocks(object_id)[0][0]
    cid = store._state.cids(object_id, block, 1)[0]
    found = store._state.chunks.find(cid)
    assert found is not None
    segment, offset, _ = place_of(found[0])
    await store.close()
    trial.disk.rot(segment, offset + 9)
    for repair in (False, True):
        report = check_brick(trial.disk, repair=repair)
        assert report.exit_code == 4
        named = f"data: block {block} of object {object_id.hex()} (chunk {cid}) rotted"
        assert named in report.problems
        assert report.counts["log"] == 1
    assert check_brick(trial.disk, data=False).exit_code == 0, "a quick check reads no data"


@pytest.mark.parametrize(
    ("change", "told"),
    [(lambda _: None, "lost chunk: block"), (same_place, "lies where another one is")],
)
async def test_a_chunk_that_is_gone_or_misplaced_is_named(
    change: Callable[[bytes], bytes | None], told: str
) -> None:
    trial = await closed_trial()
    edit(trial.disk, first_key(trial.disk, b"C"), change)
    report = check_brick(trial.disk, repair=True)
    assert report.exit_code == 4
    assert any(told in problem for problem in report.problems), report.problems


@pytest.mark.parametrize("window", [1, 64, 128])
async def test_few_counters_at_a_time_find_the_same(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "WINDOW_CHUNKS", window)
    monkeypatch.setattr(checking, "_WINDOW_SEGMENTS", 2)
    trial = await open_trial(5)
    await trial.run(200)
    await trial.store.close()
    assert len([k for k in trial.disk.medium.table if k.startswith(b"C")]) > 2
    assert check_brick(trial.disk).exit_code == 0
    for key in [k for k in trial.disk.medium.table if k.startswith(b"C")]:
        edit(trial.disk, key, one_more_reference)
    report = check_brick(trial.disk, repair=True)
    assert report.exit_code == 1
    assert report.counts["references"] > 2
    assert check_brick(trial.disk).exit_code == 0


async def test_a_damaged_checkpoint_and_a_broken_log_are_told() -> None:
    trial = await closed_trial()
    key = first_key(trial.disk, b"O")
    good = trial.disk.medium.table[key]
    trial.disk.medium.table[key] = good[:-1] + b"\xff"
    report: Report = check_brick(trial.disk, repair=True)
    assert report.exit_code == 4
    assert f"record {key!r} is damaged" in report.problems[0]
    del trial.disk.medium.table[key]
    assert "records where" in check_brick(trial.disk).problems[0]
    trial.disk.medium.table.clear()
    assert check_brick(trial.disk).exit_code == 0, "all logs are there: replay makes it anew"


async def test_a_lost_checkpoint_is_noticed_once_a_segment_was_used_again() -> None:
    trial = await open_trial(2, TIGHT)
    while trial.store.statistics()["relocated_blocks"] < 20:
        await trial.run(50)
    await trial.store.close()
    trial.disk.medium.table.clear()
    assert "log 1 " in check_brick(trial.disk).problems[0]
    with pytest.raises(BrickDamaged, match="fsck --set-aside"):
        await Store.open(trial.disk, KEY, options=TIGHT)


async def test_what_is_no_brick_or_in_use_is_refused() -> None:
    with pytest.raises(SetupError, match=r"no brick\.json"):
        check_brick(SimulatedDisk())
    trial = await open_trial(1)
    with pytest.raises(SetupError, match="in use"):
        check_brick(trial.disk)
    await trial.store.close()
