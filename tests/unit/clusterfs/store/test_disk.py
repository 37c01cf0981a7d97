import mmap
import os
import random
import struct
from pathlib import Path

import lmdb
import pytest

from clusterfs.errors import BrickDamaged, SetupError
from clusterfs.store.disk import DirectoryDisk
from clusterfs.store.format import seal_value
from clusterfs.store.table import TOTAL, LmdbTable, Total, damage_in

BLOCK = 4096


@pytest.fixture
def disk(tmp_path: Path) -> DirectoryDisk:
    found = DirectoryDisk(tmp_path / "brick")
    found.lock()
    found.create_segment(0, 64 * BLOCK)
    return found


def aligned(content: bytes) -> memoryview:
    memory = mmap.mmap(-1, len(content))
    memory.write(content)
    return memoryview(memory)


def test_reads_after_direct_writes_are_fresh(disk: DirectoryDisk) -> None:
    """The page cache may hold the old block; a direct write must drop it."""
    for turn in range(50):
        content = bytes([turn + 1]) * BLOCK
        for block in range(4):
            disk.write(0, block * BLOCK, aligned(content))
            assert disk.read(0, block * BLOCK, BLOCK) == content
            assert disk.read_direct(0, block * BLOCK, BLOCK) == content
            assert disk.read_nowait(0, block * BLOCK, BLOCK) in (content, None)
        disk.sync([0])
    disk.close()


def test_read_nowait_answers_from_the_page_cache_only(disk: DirectoryDisk) -> None:
    content = os.urandom(16 * BLOCK)
    disk.write(0, 0, aligned(content))
    disk.sync([0])
    cold = disk.read_nowait(0, 0, len(content))
    assert cold in (None, content)
    assert disk.read(0, 0, len(content)) == content
    assert disk.read_nowait(0, 0, len(content)) in (None, content)
    assert disk.read_nowait(0, 1 << 30, BLOCK) is None
    disk.close()


def test_one_process_a_brick(disk: DirectoryDisk) -> None:
    other = DirectoryDisk(disk.path)
    with pytest.raises(SetupError, match="in use by another process"):
        other.lock()
    disk.close()
    other.lock()
    other.close()


def test_a_brick_that_cannot_be_made_is_a_setup_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SetupError, match="give a directory"):
        DirectoryDisk(tmp_path / "file").lock()


def test_the_superblock_is_replaced_whole(disk: DirectoryDisk) -> None:
    assert disk.read_superblock() is None
    disk.write_superblock(b"one" * 100)
    disk.write_superblock(b"two")
    assert disk.read_superblock() == b"two"
    assert not (disk.path / "brick.json.new").exists()
    disk.close()


def test_a_segment_half_created_is_removed(disk: DirectoryDisk) -> None:
    (disk.path / "segments" / "00000005.new").write_bytes(b"half")
    disk.create_segment(12, 8 * BLOCK)
    assert disk.segments() == [0, 12]
    assert [entry.name for entry in sorted((disk.path / "segments").iterdir())] == [
        "00000000",
        "00000012",
    ]
    status = (disk.path / "segments" / "00000012").stat()
    assert status.st_blocks * 512 >= 8 * BLOCK, "preallocated"
    disk.close()


def test_what_is_free_leaves_the_reserve(disk: DirectoryDisk) -> None:
    all_of_it = DirectoryDisk(disk.path, reserve_bytes=0).free_bytes()
    assert disk.free_bytes() <= max(0, all_of_it - (1 << 30)) + (64 << 20)
    assert DirectoryDisk(disk.path, reserve_bytes=1 << 60).free_bytes() == 0
    disk.close()


def sealed(key: bytes, value: bytes) -> tuple[bytes, bytes]:
    return key, seal_value(key, value)


def test_a_table_shows_a_snapshot_until_it_is_refreshed(tmp_path: Path) -> None:
    table = LmdbTable(tmp_path / "checkpoint")
    a, b, c = sealed(b"a", b"1"), sealed(b"b", b"2"), sealed(b"c", b"3")
    table.commit([b, a, c])
    assert table.get(b"a") is None
    table.refresh()
    assert list(table.items(b"a", b"c")) == [a, b]
    assert list(table.items(b"d", b"e")) == []
    assert list(table.keys(b"b", b"c")) == [b"b"]
    assert list(table.keys(b"d", b"e")) == []
    other = sealed(b"b", b"22")
    table.commit([(b"a", None), (b"absent", None), other])
    assert (table.get(b"a"), table.get(b"b")) == (a[1], b[1])
    table.refresh()
    assert (table.get(b"a"), table.get(b"b")) == (None, other[1])
    assert table.damage() is None
    table.close()
    again = LmdbTable(tmp_path / "checkpoint")
    assert list(again.items(b"a", b"\xff")) == [other, c]
    again.close()


def test_a_commit_that_fails_changes_nothing(tmp_path: Path) -> None:
    table = LmdbTable(tmp_path / "checkpoint")
    with pytest.raises(OSError, match="checkpoint"):
        table.commit([sealed(b"good", b"1"), sealed(b"k" * 600, b"a key too long")])
    table.refresh()
    assert list(table.items(b"", b"\xff")) == []
    table.close()


RECORDS = dict(sealed(b"K%d" % n, b"v" * n) for n in range(20))


def table_of(records: dict[bytes, bytes]) -> dict[bytes, bytes]:
    total = Total(None)
    for value in records.values():
        total.change(None, value)
    return {TOTAL: total.record(), **records}


def without(key: bytes) -> dict[bytes, bytes]:
    return {k: v for k, v in table_of(RECORDS).items() if k != key}


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (table_of(RECORDS), None),
        ({}, None),
        (without(b"K7"), "19 records where 20"),
        (without(TOTAL), "total is missing"),
        ({**table_of(RECORDS), **dict([sealed(b"K7", b"other")])}, "or other ones"),
        ({**table_of(RECORDS), b"K7": RECORDS[b"K8"]}, "record b'K7' is damaged"),
    ],
)
def test_a_record_that_is_gone_or_changed_is_noticed(
    table: dict[bytes, bytes], told: str | None
) -> None:
    found = damage_in(sorted(table.items()), table.get)
    assert found is told or (found is not None and told is not None and told in found)


def newer() -> dict[bytes, bytes]:
    return {**table_of(RECORDS), TOTAL: seal_value(TOTAL, struct.pack("<IQQ", 9, 20, 0))}


def test_a_newer_checkpoint_is_refused_and_is_not_called_damaged(tmp_path: Path) -> None:
    told = "format 9, this clusterfs knows 4: upgrade"
    with pytest.raises(SetupError, match=told) as refused:
        damage_in(sorted(newer().items()), newer().get)
    assert not isinstance(refused.value, BrickDamaged)
    path = tmp_path / "checkpoint"
    LmdbTable(path).close()
    with lmdb.open(str(path)) as environment, environment.begin(write=True) as transaction:
        for key, value in newer().items():
            transaction.put(key, value)
    table = LmdbTable(path)
    with pytest.raises(SetupError, match=told) as refused:
        table.damage()
    assert not isinstance(refused.value, BrickDamaged)
    table.close()


def test_a_walk_that_somebody_ended_tells_nothing_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed for want of memory, perhaps: the brick must not be taken for a damaged one."""
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr("clusterfs.store.table._CHECK", killed)
    table = LmdbTable(tmp_path / "checkpoint")
    with pytest.raises(SetupError, match="could not be checked: ended with -9"):
        table.damage()
    table.close()


@pytest.mark.parametrize(
    ("failure", "is_damage"),
    [
        ("lmdb.BadValsizeError('a key of no length')", True),
        ("lmdb.PageNotFoundError('page 77')", True),
        ("SystemError('negative size')", True),
        ("lmdb.MemoryError('cannot allocate')", False),
        ("lmdb.Error('too many open files')", False),
        ("ImportError('no such module')", False),
    ],
)
def test_a_walk_that_fails_for_want_of_something_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str, *, is_damage: bool
) -> None:
    planted = f"""
import sys
sys.path[:] = sys.argv[2:]
import lmdb
from clusterfs.store import table
def fail(*_):
    raise {failure}
table.damage_in = fail
table.check_file(sys.argv[1])
"""
    monkeypatch.setattr("clusterfs.store.table._CHECK", planted)
    table = LmdbTable(tmp_path / "checkpoint")
    if is_damage:
        assert "cannot be walked" in (table.damage() or "")
    else:
        with pytest.raises(SetupError, match="could not be checked"):
            table.damage()
    table.close()


def test_a_record_that_a_wrong_turn_hides_is_noticed() -> None:
    table = table_of(RECORDS)
    hidden = dict(table)
    del hidden[b"K3"]
    assert damage_in(sorted(table.items()), hidden.get) == "record b'K3' is not found by its key"


def test_a_flipped_bit_anywhere_in_the_file_is_noticed_or_has_no_effect(tmp_path: Path) -> None:
    """Values, keys, tree pages, meta pages; a process may die of it, but not this one."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    table = LmdbTable(good)
    for commit in range(2):
        table.commit([sealed(b"K%03d" % n, b"%d" % commit * (n % 9) * 300) for n in range(60)])
    table.refresh()
    expected = list(table.items(b"", b"\xff"))
    table.close()
    content = (good / "data.mdb").read_bytes()
    bad.mkdir()
    chooser = random.Random(1)
    for at in [*range(0, 64, 8), *(chooser.randrange(len(content)) for _ in range(24))]:
        damaged = bytearray(content)
        damaged[at] ^= 1 << chooser.randrange(8)
        (bad / "data.mdb").write_bytes(damaged)
        try:
            table = LmdbTable(bad)
        except SetupError:
            continue
        if table.damage() is None:
            assert list(table.items(b"", b"\xff")) == expected
        table.close()


def test_rubbish_in_the_checkpoint_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    path.mkdir()
    (path / "data.mdb").write_bytes(b"rubbish" * 5000)
    with pytest.raises(BrickDamaged, match="is damaged"):
        LmdbTable(path)
