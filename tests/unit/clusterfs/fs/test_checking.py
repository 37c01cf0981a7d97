"""fsck of the filesystem's objects: each thing that can be wrong is named, and only that."""

import stat

import pytest

from clusterfs.fs import attributes, keys
from clusterfs.fs.checking import check_namespace
from clusterfs.sim.bricks import KEY, SMALL
from clusterfs.sim.disk import SimulatedDisk
from clusterfs.store.checking import check_brick
from clusterfs.store.objects import (
    ABSENT,
    BLOCK_BYTES,
    Change,
    ObjectId,
    Put,
    Remove,
    Transaction,
    Version,
    Write,
    inode_object,
    stripe_object,
)
from clusterfs.store.state import INCOMPLETE
from clusterfs.store.store import Store

pytestmark = pytest.mark.trio

FIRST = Version(1, 1)
FILE, FOLDER = 7, 8
AWAY = 3 << 52 | 9  # an inode of group 3


def put(key: bytes, value: bytes) -> Put:
    return Put(key, value)


def record(mode: int, nlink: int) -> Put:
    fresh = attributes.fresh(mode, 0, 0, 0)
    return put(keys.RECORD, attributes.encode(fresh.changed(nlink=nlink), 0))


def entry(name: bytes, inode: int, kind: int) -> Put:
    return put(keys.ENTRY + name, keys.encode_entry(keys.Entry(inode, kind)))


async def small_tree(*, whole: bool = False) -> tuple[SimulatedDisk, Store]:
    disk = SimulatedDisk()
    store = await Store.open(disk, KEY, options=SMALL)
    root, kind = inode_object(keys.ROOT), stat.S_IFREG >> 12
    store.replace(
        root,
        0,
        FIRST,
        (
            record(stat.S_IFDIR, 3),
            entry(b"file", FILE, kind),
            entry(b"folder", FOLDER, keys.DIRECTORY),
            *(() if whole else (entry(b"elsewhere", AWAY, kind),)),
        ),
    )
    store.replace(inode_object(FILE), 0, FIRST, (record(stat.S_IFREG, 1),))
    store.replace(inode_object(FOLDER), 0, FIRST, (record(stat.S_IFDIR, 2),))
    store.replace(stripe_object(FILE, 0), 0, FIRST, (Write(0, 1),), b"x" * BLOCK_BYTES)
    return disk, store


async def problems_after(object_id: ObjectId, group: int, *operations: Put | Remove) -> list[str]:
    disk, store = await small_tree()
    store.replace(object_id, group, FIRST, operations)
    await store.close()
    return check_brick(disk, also=check_namespace).problems


async def test_a_sound_tree_is_clean_also_where_other_groups_are_elsewhere() -> None:
    assert await problems_after(inode_object(FILE), 0) == []


@pytest.mark.parametrize(
    ("inode", "operation", "told"),
    [
        (FILE, put(keys.RECORD, b"\1short"), "inode 7 has no readable attributes"),
        (FILE, record(stat.S_IFREG, 0), "inode 7 has no name and nobody will delete it"),
        (FILE, record(stat.S_IFLNK, 1), "inode 7 is no file, but has data"),
        (FILE, entry(b"in", FOLDER, keys.DIRECTORY), "inode 7 is no directory, but has entries"),
        (FOLDER, record(stat.S_IFDIR, 5), "inode 8 has 0 subdirectories and 5 links"),
        (FOLDER, entry(b"no", 99, 8), "inode 8 b'no' leads to inode 63: there is none"),
        (FOLDER, entry(b"a/b", FILE, 8), "inode 8 has an entry that cannot be: b'a/b'"),
        (FOLDER, put(b"eshort", b"1"), "inode 8 has an entry that cannot be: b'short'"),
        (FOLDER, entry(b"odd", FILE, 1), "b'odd' has another type than inode 7"),
    ],
)
async def test_what_is_wrong_is_named(inode: int, operation: Put, told: str) -> None:
    problems = await problems_after(inode_object(inode), 0, operation)
    assert any(told in problem for problem in problems), problems


async def test_data_without_an_inode_is_named_once_the_group_is_here() -> None:
    disk, store = await small_tree()
    store.replace(stripe_object(77, 2), 0, FIRST, (Write(0, 1),), b"y" * BLOCK_BYTES)
    await store.close()
    told = "namespace: inode 4d does not exist, but its stripe 2 does"
    assert check_brick(disk, also=check_namespace).problems == [told]


async def test_a_brick_that_was_being_synchronised_misses_nothing() -> None:
    disk, store = await small_tree()
    store.replace(stripe_object(77, 2), 0, FIRST, (Write(0, 1),), b"y" * BLOCK_BYTES)
    store.replace(inode_object(5), 0, INCOMPLETE, (put(b"k", b"v"),))
    await store.close()
    assert check_brick(disk, also=check_namespace).problems == []


REGULAR = stat.S_IFREG >> 12


def names_in(store: Store, directory: int) -> dict[bytes, int]:
    found = store.scan(inode_object(directory), keys.ENTRY)
    return {key[1:]: keys.decode_entry(value).inode for key, value in found}


def record_of(store: Store, inode: int) -> attributes.Record:
    stored = store.get(inode_object(inode), keys.RECORD)
    assert stored is not None
    return attributes.decode(stored)


async def repaired(disk: SimulatedDisk, store: Store, *told: str) -> Store:
    """Check, repair, check again: clean; return the store."""
    await store.close()
    report = check_brick(disk, also=check_namespace)
    assert report.problems == [f"namespace: {text}" for text in told]
    assert report.exit_code == 4
    report = check_brick(disk, repair=True, also=check_namespace)
    assert report.problems == [f"namespace: {text} (repaired)" for text in told]
    assert report.exit_code == 1
    report = check_brick(disk, also=check_namespace)
    assert (report.problems, report.exit_code) == ([], 0)
    store = await Store.open(disk, KEY, options=SMALL)
    store.validate()
    return store


@pytest.mark.parametrize(
    ("inode", "operation", "told"),
    [
        (FILE, record(stat.S_IFREG, 3), "inode 7 has 1 names and 3 links"),
        (FILE, record(stat.S_IFREG, 0), "inode 7 has 1 names and 0 links"),
        (FILE, entry(b"in", FOLDER, keys.DIRECTORY), "inode 7 is no directory, but has entries"),
        (FOLDER, record(stat.S_IFDIR, 5), "inode 8 has 0 subdirectories and 5 links"),
        (FOLDER, entry(b"no", 99, 8), "inode 8 b'no' leads to inode 63: there is none"),
        (FOLDER, entry(b"no", 99, 4), "inode 8 b'no' leads to inode 63: there is none"),
        (FOLDER, put(b"eshort", b"1"), "inode 8 has an entry that cannot be: b'short'"),
    ],
)
async def test_what_can_be_derived_is_repaired(inode: int, operation: Put, told: str) -> None:
    disk, store = await small_tree(whole=True)
    store.replace(inode_object(inode), 0, FIRST, (operation,))
    store = await repaired(disk, store, told)
    assert names_in(store, keys.ROOT) == {b"file": FILE, b"folder": FOLDER}
    assert names_in(store, FOLDER) == names_in(store, FILE) == {}
    assert (record_of(store, FILE).nlink, record_of(store, FOLDER).nlink) == (1, 2)
    await store.close()


async def test_a_name_gets_the_type_of_its_inode() -> None:
    disk, store = await small_tree(whole=True)
    store.replace(inode_object(keys.ROOT), 0, FIRST, (entry(b"folder", FOLDER, REGULAR),))
    store = await repaired(disk, store, "inode 1 b'folder' has another type than inode 8")
    found = store.get(inode_object(keys.ROOT), keys.ENTRY + b"folder")
    assert found == keys.encode_entry(keys.Entry(FOLDER, keys.DIRECTORY))
    await store.close()


async def test_what_has_no_name_is_found_again_in_lost_and_found() -> None:
    disk, store = await small_tree(whole=True)
    gone = (Remove(keys.ENTRY + b"file"), Remove(keys.ENTRY + b"folder"), record(stat.S_IFDIR, 2))
    store.replace(inode_object(keys.ROOT), 0, FIRST, gone)
    store = await repaired(
        disk, store, "inode 7 has 1 links, but no name", "inode 8 has 2 links, but no name"
    )
    assert names_in(store, keys.ROOT) == {b"lost+found": 2}
    assert names_in(store, 2) == {b"#7": FILE, b"#8": FOLDER}
    assert record_of(store, FOLDER).parent == 2
    assert record_of(store, keys.ROOT).nlink == record_of(store, 2).nlink == 3
    assert await store.read(stripe_object(FILE, 0), 0, 1) == b"x" * BLOCK_BYTES
    store.replace(inode_object(2), 0, FIRST, (Remove(keys.ENTRY + b"#7"),))
    store = await repaired(disk, store, "inode 7 has 1 links, but no name")
    assert names_in(store, 2) == {b"#7": FILE, b"#8": FOLDER}, "the one that is there is used"
    await store.close()


async def test_there_is_no_lost_and_found_where_a_file_has_its_name() -> None:
    disk, store = await small_tree(whole=True)
    moved = (Remove(keys.ENTRY + b"file"), entry(b"lost+found", FILE, REGULAR))
    store.replace(inode_object(keys.ROOT), 0, FIRST, moved)
    store.replace(inode_object(5), 0, FIRST, (record(stat.S_IFREG, 1),))
    await store.close()
    report = check_brick(disk, repair=True, also=check_namespace)
    assert (report.problems, report.exit_code) == (
        ["namespace: inode 5 has 1 links, but no name"],
        4,
    )


async def test_what_nobody_deletes_is_marked_and_data_without_a_file_goes() -> None:
    disk, store = await small_tree(whole=True)
    store.replace(inode_object(5), 0, FIRST, (record(stat.S_IFREG, 0),))
    store.replace(stripe_object(77, 2), 0, FIRST, (Write(0, 1),), b"y" * BLOCK_BYTES)
    store.replace(stripe_object(FOLDER, 0), 0, FIRST, (Write(0, 1),), b"z" * BLOCK_BYTES)
    store = await repaired(
        disk,
        store,
        "inode 8 is no file, but has data (stripe 0)",
        "inode 4d does not exist, but its stripe 2 does",
        "inode 5 has no name and nobody will delete it",
    )
    assert store.marked() == [inode_object(5)]
    assert store.version(stripe_object(77, 2)) == store.version(stripe_object(FOLDER, 0)) == ABSENT
    await store.close()


async def test_bricks_of_one_content_are_equal_after_their_repair() -> None:
    """And differ by version from one that was not repaired: nobody takes them for the same."""
    found = []
    for _ in range(2):
        disk, store = await small_tree(whole=True)
        store.replace(inode_object(keys.ROOT), 0, FIRST, (Remove(keys.ENTRY + b"file"),))
        before = store.version(inode_object(FILE))
        store = await repaired(disk, store, "inode 7 has 1 links, but no name")
        found.append([(o, v, await store.digest(o)) for o, v in store.objects()])
        assert store.version(inode_object(keys.ROOT)).counter > before.counter + 2**31
        await store.close()
    assert found[0] == found[1]


async def test_nothing_is_repaired_where_a_part_is_elsewhere_or_undecided() -> None:
    disk, store = await small_tree()
    store.replace(inode_object(FOLDER), 0, FIRST, (entry(b"no", 99, 8),))
    await store.close()
    assert check_brick(disk, repair=True, also=check_namespace).exit_code == 4
    disk, store = await small_tree(whole=True)
    store.replace(inode_object(FOLDER), 0, FIRST, (entry(b"no", 99, 8),))
    change = Change(inode_object(FILE), 0, FIRST, FIRST.after(1), (Put(b"x", b"y"),))
    store.prepare(Transaction(1, 1, 1, (change,)))
    await store.close()
    assert check_brick(disk, repair=True, also=check_namespace).exit_code == 4
