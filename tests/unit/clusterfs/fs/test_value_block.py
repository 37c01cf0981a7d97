"""What locks carry from holder to holder."""

import os

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from clusterfs.fs.attributes import fresh
from clusterfs.fs.inodes import Inode
from clusterfs.fs.keys import ORPHAN, ORPHAN_TRUNCATING, ROOT, TRUNCATING
from clusterfs.fs.locks import CachedLock
from clusterfs.fs.ports import Lock, Mode
from clusterfs.fs.results import Changes
from clusterfs.fs.value_block import VALUE_BYTES, Value, pack, unpack
from clusterfs.sim.mounts import Node, World
from clusterfs.store.objects import Version

U32 = st.integers(0, 2**32 - 1)
U63 = st.integers(0, 2**63 - 1)


@given(
    U32,
    U32,
    U63,
    st.builds(Version, U63, U63),
    st.sampled_from([None, ORPHAN, TRUNCATING, ORPHAN_TRUNCATING]),
)
def test_it_is_unpacked_as_it_was_packed(
    mode: int, uid: int, size: int, version: Version, mark: bytes | None
) -> None:
    value = Value(fresh(mode, uid, 0, 10**18, size=size, seed=size, blocks=size), version, mark)
    block = pack(value)
    assert block is not None
    assert len(block) == VALUE_BYTES
    assert unpack(block) == value


def test_what_has_no_room_or_no_code_is_not_packed() -> None:
    record = fresh(0o100644, 0, 0, 0)
    assert pack(Value(record, Version(1, 1), b"a mark of a later time")) is None


async def make(node: Node, data: bytes) -> tuple[int, int]:
    created = await node.fs.create(ROOT, b"f", 0o644, os.O_RDWR)
    await node.fs.write(created.opened.handle, 0, data)
    assert created.entry.attributes is not None
    return created.entry.attributes.inode, created.opened.handle


def no_reads(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every read of an inode object fail from now on."""

    def fail(*_: object) -> None:
        raise AssertionError("read an inode object")

    monkeypatch.setattr(node.volume, "fetch_nowait", fail)
    monkeypatch.setattr(node.volume, "fetch", fail)


def inode_of(node: Node, number: int) -> Inode:
    [inode] = [inode for inode in node.fs._inodes if inode.number == number]
    return inode


async def test_stat_after_another_nodes_write_needs_the_lock_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1], world.nodes[2]
        number, handle = await make(one, b"12345")
        await two.fs.lookup(ROOT, b"f")
        no_reads(two, monkeypatch)
        for size in (6, 7):
            await one.fs.write(handle, size - 1, b"x")
            assert (await two.fs.getattr(number)).attributes.size == size
        assert two.fs.statistics()["lock_values"] >= 2


async def test_the_next_writer_goes_on_from_what_the_lock_brought(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shelf refuses a transaction that expects another version than it has."""
    async with World(2).running() as world:
        one, two = world.nodes[1], world.nodes[2]
        number, _ = await make(one, b"12345")
        await two.fs.lookup(ROOT, b"f")
        no_reads(two, monkeypatch)
        no_reads(one, monkeypatch)
        for n in range(4):
            node = (two, one)[n % 2]
            await node.fs.setattr(number, Changes(mode=0o600 + n))
        assert (await two.fs.getattr(number)).attributes.mode & 0o777 == 0o603


async def test_nobody_believes_what_a_dead_writer_left() -> None:
    async with World(3).running() as world:
        one, two, three = (world.nodes[n] for n in (1, 2, 3))
        number, _ = await make(one, b"12345")
        await three.fs.lookup(ROOT, b"f")
        await two.fs.setattr(number, Changes(mode=0o640))
        before = three.fs.statistics()["lock_values"]
        world.crash(2)
        attributes = (await three.fs.getattr(number)).attributes
        assert attributes.mode & 0o777 == 0o640
        assert three.fs.statistics()["lock_values"] == before


async def test_a_writer_that_knows_nothing_for_sure_leaves_doubt() -> None:
    async with World(3).running() as world:
        one, two, three = (world.nodes[n] for n in (1, 2, 3))
        number, _ = await make(one, b"12345")
        await three.fs.lookup(ROOT, b"f")
        await two.fs.setattr(number, Changes(mode=0o640))
        inode_of(two, number).void()  # as after a commit that failed
        before = three.fs.statistics()["lock_values"]
        attributes = (await three.fs.getattr(number)).attributes
        assert attributes.mode & 0o777 == 0o640
        assert three.fs.statistics()["lock_values"] == before


async def test_a_writer_that_is_evicted_before_it_hears_who_waits_leaves_doubt(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    deaf: list[CachedLock] = []
    hear = CachedLock.blocked

    def blocked(self: CachedLock, lock: Lock, mode: Mode) -> None:
        if self not in deaf:
            hear(self, lock, mode)

    monkeypatch.setattr(CachedLock, "blocked", blocked)
    async with World(2).running() as world:
        one, two = world.nodes[1], world.nodes[2]
        number, handle = await make(one, b"12345")
        await one.fs.fsync(handle)
        await one.fs.release(handle)
        await two.fs.lookup(ROOT, b"f")
        deaf.append(inode_of(one, number).lock)
        await one.fs.setattr(number, Changes(mode=0o600))
        before = two.fs.statistics()["lock_values"]
        modes = []

        async def stat() -> None:
            modes.append((await two.fs.getattr(number)).attributes.mode & 0o777)

        nursery.start_soon(stat)
        await world.settle()
        assert modes == []
        inode = inode_of(one, number)
        inode.lookups = 0
        assert inode.removable
        inode.void()
        inode.lock.drop_idle()
        await world.settle()
        assert modes == [0o600]
        assert two.fs.statistics()["lock_values"] == before
