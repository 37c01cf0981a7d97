"""fsck of the filesystem's objects: each thing that can be wrong is named, and only that."""

import stat

import pytest

from clusterfs.fs import attributes, keys
from clusterfs.fs.checking import check_namespace
from clusterfs.sim.bricks import KEY, SMALL
from clusterfs.sim.disk import SimulatedDisk
from clusterfs.store.checking import check_brick
from clusterfs.store.objects import (
    BLOCK_BYTES,
    ObjectId,
    Put,
    Remove,
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


async def small_tree() -> tuple[SimulatedDisk, Store]:
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
            entry(b"elsewhere", AWAY, kind),
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
