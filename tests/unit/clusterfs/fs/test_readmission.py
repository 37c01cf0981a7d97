"""A node that was removed and comes back: nothing happens twice, nothing is overwritten."""

# ruff: noqa: ARG001  a clock that is asked for is the clock of the test

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

import dlm.errors
from clusterfs.errors import (
    BrickFailed,
    ChunkCorrupted,
    EntryExists,
    NoSuchAttribute,
    NoSuchEntry,
    StaleHandle,
    Unavailable,
    WouldBlock,
)
from clusterfs.fs.file_locks import EXCLUSIVE, NOTHING, SHARED
from clusterfs.fs.filesystem import Filesystem, Settings
from clusterfs.fs.keys import ROOT
from clusterfs.fs.results import Changes
from clusterfs.sim.mounts import World
from clusterfs.store.objects import BLOCK_BYTES, inode_object
from dlm.ranges import Span

Clock = trio.testing.MockClock


async def make(fs: Filesystem, name: bytes = b"f", data: bytes = b"") -> tuple[int, int]:
    created = await fs.create(ROOT, name, 0o644, os.O_RDWR)
    if data:
        await fs.write(created.opened.handle, 0, data)
        await fs.fsync(created.opened.handle)
    assert created.entry.attributes is not None
    return created.entry.attributes.inode, created.opened.handle


async def names(fs: Filesystem, inode: int = ROOT) -> set[bytes]:
    opened = await fs.opendir(inode)
    return {listed.name for listed in await fs.readdir(opened.handle, 2, 100)}


async def test_operations_stall_while_the_node_is_out(autojump_clock: Clock) -> None:
    async with World(2).running() as world:
        inode, _ = await make(world.nodes[1].fs)
        world.remove(1)
        answered = []

        async def stat() -> None:
            answered.append(await world.nodes[1].fs.getattr(inode))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stat)
            await trio.sleep(30)
            assert not answered
            await world.nodes[2].fs.setattr(inode, Changes(size=77))
            await world.readmit(1)
        assert answered[0].attributes.size == 77


async def test_operations_stall_while_the_lease_is_over(
    autojump_clock: Clock,
) -> None:
    async with World(1).running() as world:
        node = world.nodes[1]
        _, handle = await make(node.fs, data=b"x")
        node.lease_left_s = 0
        with trio.move_on_after(10) as scope:
            await node.fs.read(handle, 0, 1)
        assert scope.cancelled_caught
        node.lease_left_s = 5
        assert await node.fs.read(handle, 0, 1) == b"x"


async def test_errors_instead_of_stalling_if_asked_for(autojump_clock: Clock) -> None:
    async with World(2, settings=Settings(fail_when_lost=True)).running() as world:
        inode, handle = await make(world.nodes[1].fs)
        world.remove(1)
        with pytest.raises(Unavailable):
            await world.nodes[1].fs.getattr(inode)
        with pytest.raises(Unavailable):
            await world.nodes[1].fs.write(handle, 0, b"x")
        await world.readmit(1)
        await world.nodes[1].fs.write(handle, 0, b"x")


async def test_what_no_program_waits_for_never_fails_while_the_node_is_out(
    autojump_clock: Clock,
) -> None:
    async with World(2, settings=Settings(fail_when_lost=True)).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        inode, handle = await make(one, data=b"x")
        await one.release(handle)
        elsewhere = await two.open(inode, os.O_RDONLY)
        await one.unlink(ROOT, b"f")  # node 1 is to reclaim it when node 2 has closed it
        await trio.sleep(1)
        world.remove(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.reclaim_marked, [inode & 0xFF])
            await trio.sleep(1)
            await world.readmit(1)
        await two.release(elsewhere.handle)
        await trio.sleep(1)
        assert one.statistics()["orphans_reclaimed"] == 1


async def test_an_inode_that_cannot_be_read_does_not_keep_a_node_out(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with World(2).running() as world:
        node = world.nodes[1]
        number, bad = await make(node.fs, b"bad", b"x")
        _, good = await make(node.fs, b"good", b"x")
        world.remove(1)
        fetch = node.volume.fetch

        async def damaged(object_id: bytes, group: int, keys: Any) -> Any:
            if object_id == inode_object(number):
                raise ChunkCorrupted
            return await fetch(object_id, group, keys)

        monkeypatch.setattr(node.volume, "fetch", damaged)
        monkeypatch.setattr(node.volume, "fetch_nowait", refuse)
        await world.readmit(1)
        await node.fs.write(good, 0, b"y")
        with pytest.raises(StaleHandle):
            await node.fs.write(bad, 0, b"y")


def refuse(*_: object) -> None:
    raise WouldBlock


async def test_what_cannot_be_written_back_does_not_keep_the_rest_from_it(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with World(1).running() as world:
        node = world.nodes[1]
        number, first = await make(node.fs, b"first")
        _, second = await make(node.fs, b"second")
        for handle in (first, second):
            await node.fs.write(handle, 0, b"data")
        commit = node.volume.commit

        async def refused(changes: Any, payload: bytes = b"", **how: Any) -> Any:
            if any(change.object_id[:8] == inode_object(number)[:8] for change in changes):
                raise BrickFailed
            return await commit(changes, payload, **how)

        monkeypatch.setattr(node.volume, "commit", refused)
        await node.fs.close()
        written = [shelved.blocks for shelved in world.shelf.objects.values() if shelved.blocks]
        assert len(written) == 1


async def test_dirty_data_is_kept_if_nobody_changed_the_file(autojump_clock: Clock) -> None:
    async with World(2).running() as world:
        one = world.nodes[1].fs
        inode, handle = await make(one, data=b"old data")
        await one.write(handle, 4, b"DIRTY!")
        world.remove(1)
        await world.readmit(1)
        assert await one.read(handle, 0, 100) == b"old DIRTY!"
        await one.fsync(handle)
        entry = await world.nodes[2].fs.getattr(inode)
        assert entry.attributes.size == 10
        world.validate()


@pytest.mark.parametrize("dirty", [True, False])
async def test_a_writer_whose_file_was_changed_elsewhere_is_dead(
    autojump_clock: Clock, *, dirty: bool
) -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        inode, handle = await make(one, data=b"old data")
        reading = (await one.open(inode, os.O_RDONLY)).handle
        if dirty:
            await one.write(handle, 0, b"lost")
        world.remove(1)
        other = (await two.open(inode, os.O_RDWR)).handle
        await two.write(other, 0, b"THEIRS")
        await two.fsync(other)
        await world.readmit(1)
        with pytest.raises(StaleHandle):
            await one.write(handle, 0, b"mine")
        with pytest.raises(StaleHandle):
            await one.fsync(handle)
        assert await one.read(reading, 0, 100) == b"THEIRSta"
        await one.release(handle)
        again = (await one.open(inode, os.O_RDWR)).handle
        await one.write(again, 0, b"mine")
        assert await two.read(other, 0, 100) == b"mineRSta"
        assert not world.nodes[1].volume.reserved or await fsynced(one, again)


async def test_a_change_of_attributes_alone_makes_a_writer_dead(autojump_clock: Clock) -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        inode, handle = await make(one, data=b"old data")
        await one.write(handle, 0, b"lost")
        world.remove(1)
        await two.setattr(inode, Changes(mode=0o400))
        await world.readmit(1)
        with pytest.raises(StaleHandle):
            await one.fsync(handle)
        assert await one.read(handle, 0, 100) == b"old data"


async def fsynced(fs: Filesystem, handle: int) -> bool:
    await fs.fsync(handle)
    return True


async def test_a_handle_on_a_file_that_was_deleted_meanwhile_is_dead(autojump_clock: Clock) -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        _, handle = await make(one, data=b"x")
        world.remove(1)
        await two.unlink(ROOT, b"f")
        await trio.sleep(1)
        await world.readmit(1)
        with pytest.raises(StaleHandle):
            await one.write(handle, 0, b"mine")
        with pytest.raises(NoSuchEntry):
            await one.read(handle, 0, 1)
        await one.release(handle)


@pytest.mark.parametrize("applied", [True, False])
async def test_dirty_data_whose_commit_had_an_unknown_outcome(
    autojump_clock: Clock, *, applied: bool
) -> None:
    async with World(2).running() as world:
        node = world.nodes[1]
        inode, handle = await make(node.fs, data=b"old data")
        await node.fs.write(handle, 0, b"new")
        node.volume.applies_when_out = applied
        node.volume.before_commit = lambda: world.remove(1) if not node.volume.out else None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.fs.fsync, handle)
            await trio.sleep(5)
            node.volume.before_commit = None
            await world.readmit(1)
        assert await node.fs.read(handle, 0, 100) == b"new data"
        await node.fs.write(handle, 3, b"!")
        reading = (await world.nodes[2].fs.open(inode, os.O_RDONLY)).handle
        assert await world.nodes[2].fs.read(reading, 0, 100) == b"new!data"
        world.validate()


Operation = Callable[[Filesystem, int], Awaitable[Any]]


@pytest.mark.parametrize(
    ("applied", "remembered"), [(True, True), (False, True), (True, False), (False, False)]
)
@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (lambda fs, _: fs.create(ROOT, b"new", 0o644, os.O_RDWR | os.O_EXCL), {b"f", b"new"}),
        (lambda fs, _: fs.mkdir(ROOT, b"new", 0o755), {b"f", b"new"}),
        (lambda fs, _: fs.symlink(ROOT, b"new", b"target"), {b"f", b"new"}),
        (lambda fs, inode: fs.link(inode, ROOT, b"new"), {b"f", b"new"}),
        (lambda fs, _: fs.unlink(ROOT, b"f"), set()),
        (lambda fs, _: fs.rename(ROOT, b"f", ROOT, b"g"), {b"g"}),
        (lambda fs, _: fs.rename(ROOT, b"f", ROOT, b"g", 1), {b"g"}),
        (lambda fs, inode: fs.setxattr(inode, b"user.a", b"1", 1), {b"f"}),
        (lambda fs, inode: fs.setattr(inode, Changes(size=123)), {b"f"}),
    ],
)
async def test_what_was_under_way_happens_exactly_once(
    autojump_clock: Clock,
    operation: Operation,
    expected: set[bytes],
    *,
    applied: bool,
    remembered: bool,
) -> None:
    """Whether the replicas remember what they were sent, or names have to tell."""
    async with World(2).running() as world:
        node = world.nodes[1]
        inode, handle = await make(node.fs)
        await node.fs.release(handle)
        node.volume.applies_when_out = applied
        node.volume.remembers = remembered
        node.volume.before_commit = lambda: world.remove(1) if not node.volume.out else None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(operation, node.fs, inode)
            await trio.sleep(5)
            node.volume.before_commit = None
            await world.readmit(1)
        assert await names(node.fs) == expected
        assert await names(world.nodes[2].fs) == expected
        if b"new" in expected:
            with pytest.raises(EntryExists):
                await node.fs.mkdir(ROOT, b"new", 0o755)
        world.validate()


@pytest.mark.parametrize("remembered", [True, False])
async def test_a_rename_that_was_done_before_the_node_was_lost_is_no_failure(
    autojump_clock: Clock, *, remembered: bool
) -> None:
    async with World(2).running() as world:
        node, two = world.nodes[1], world.nodes[2]
        node.volume.remembers = remembered
        await make(node.fs)
        node.volume.applies_when_out = True
        node.volume.before_commit = lambda: world.remove(1) if not node.volume.out else None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.fs.rename, ROOT, b"f", ROOT, b"g")
            await trio.sleep(5)
            await two.fs.rename(ROOT, b"g", ROOT, b"h")  # it is elsewhere now
            node.volume.before_commit = None
            await world.readmit(1)
        assert await names(two.fs) == {b"h"}
        with pytest.raises(NoSuchEntry):
            await node.fs.rename(ROOT, b"f", ROOT, b"g")


@pytest.mark.parametrize(
    "operation",
    [
        lambda fs, _: fs.create(ROOT, b"new", 0o644, os.O_RDWR),
        lambda fs, _: fs.mkdir(ROOT, b"new", 0o755),
        lambda fs, inode: fs.link(inode, ROOT, b"new"),
        lambda fs, _: fs.rename(ROOT, b"f", ROOT, b"new"),
        lambda fs, inode: fs.setxattr(inode, b"user.a", b"1"),
        lambda fs, inode: fs.setattr(inode, Changes(mode=0o600)),
        lambda fs, inode: fs.setattr(inode, Changes(size=5)),
    ],
)
async def test_what_was_acknowledged_when_the_node_was_lost_is_not_taken_for_cached(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch, operation: Operation
) -> None:
    async with World(2).running() as world:
        node, two = world.nodes[1], world.nodes[2].fs
        inode, _ = await make(node.fs)
        commit = node.volume.commit

        async def commit_and_lose(*arguments: Any, **more: Any) -> None:
            await commit(*arguments, **more)
            monkeypatch.setattr(node.volume, "commit", commit)
            world.remove(1)

        monkeypatch.setattr(node.volume, "commit", commit_and_lose)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(operation, node.fs, inode)
            await trio.sleep(5)
            if (await two.lookup(ROOT, b"new")).attributes is None:
                with suppress(NoSuchAttribute):
                    await two.removexattr(inode, b"user.a")
            else:
                await two.rename(ROOT, b"new", ROOT, b"moved")
            await world.readmit(1)
        assert (await node.fs.lookup(ROOT, b"new")).attributes is None
        assert b"user.a" not in await node.fs.listxattr(inode)
        with pytest.raises(NoSuchAttribute):
            await node.fs.getxattr(inode, b"user.a")
        world.validate()


async def test_the_kernel_has_nothing_cached_once_the_node_is_out(autojump_clock: Clock) -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1], world.nodes[2]
        inode, handle = await make(one.fs, data=bytes(3 * BLOCK_BYTES))
        await trio.sleep(3)
        reading = (await one.fs.open(inode, os.O_RDONLY)).handle
        await one.kernel.read_page(inode, reading, 0)
        await one.kernel.stat(inode)
        await one.kernel.look(ROOT, b"f")
        await one.kernel.store(inode, handle, 1, 7)  # dirty in the kernel when the node is lost
        world.remove(1)
        await one.fs.wait_dropped()
        assert not one.kernel.pages
        assert inode not in one.kernel.attributes
        assert not one.kernel.names
        assert (await two.fs.getattr(inode)).attributes.size == 3 * BLOCK_BYTES
        await world.readmit(1)
        assert await one.fs.read(reading, BLOCK_BYTES, 1) == bytes([7])
        world.validate()


async def test_a_stalled_cached_read_does_not_keep_pages_from_being_dropped(
    autojump_clock: Clock,
) -> None:
    async with World(2).running() as world:
        one = world.nodes[1]
        inode, handle = await make(one.fs, data=bytes(2 * BLOCK_BYTES))
        reading = (await one.fs.open(inode, os.O_RDONLY)).handle
        await one.kernel.read_page(inode, reading, 0)
        one.lease_left_s = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.kernel.read_page, inode, reading, 1)
            await trio.sleep(1)
            world.remove(1)
            with trio.fail_after(10):
                await one.fs.wait_dropped()
            assert (inode, 0) not in one.kernel.pages
            one.lease_left_s = 5
            await world.readmit(1)
        assert (inode, 1) in one.kernel.pages
        await one.fs.release(handle)


@pytest.mark.parametrize("meanwhile", [False, True])
async def test_a_writer_without_the_lock_dies_only_if_others_write_in_a_later_view(
    meanwhile: bool,  # noqa: FBT001
) -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        created = await one.create(ROOT, b"f", 0o644, os.O_RDWR)
        assert created.entry.attributes is not None
        handle = created.opened.handle
        await one.write(handle, 0, b"one")
        other = (await two.open(created.entry.attributes.inode, os.O_RDWR)).handle
        await two.write(other, 0, b"two")  # takes the lock from node 1
        await two.fsync(other)
        world.remove(1)
        if meanwhile:
            await two.write(other, 3, b"later")
            await two.fsync(other)
        await world.readmit(1)
        if meanwhile:
            with pytest.raises(StaleHandle):
                await one.write(handle, 0, b"ONE")
        else:
            await one.write(handle, 0, b"ONE")
            assert await two.read(other, 0, 10) == b"ONE"


WHOLE = Span(0, 9, EXCLUSIVE)


async def lock(fs: Filesystem, handle: int, owner: int, span: Span = WHOLE) -> None:
    await fs.file_locks.set(handle, owner, owner, span, wait=False)


async def test_a_file_lock_that_nobody_else_took_is_still_held_after_a_readmission(
    autojump_clock: Clock,
) -> None:
    async with World(3).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        inode, handle = await make(one, data=b"data")
        elsewhere = (await two.open(inode, os.O_RDWR)).handle
        await lock(one, handle, 7)
        await lock(two, elsewhere, 8, Span(10, 19, EXCLUSIVE))
        await one.file_locks.flock(handle, 7, 7, EXCLUSIVE, wait=False)
        for _ in range(2):
            world.remove(1)
            await lock(two, elsewhere, 8, Span(20, 29, SHARED))  # beside it
            await world.readmit(1)
        await one.write(handle, 0, b"more")
        await one.fsync(handle)
        with pytest.raises(dlm.errors.WouldBlock):
            await lock(two, elsewhere, 8, Span(9, 9, SHARED))
        with pytest.raises(dlm.errors.WouldBlock):
            await two.file_locks.flock(elsewhere, 8, 8, SHARED, wait=False)
        one.file_locks.closed(handle, 7)
        one.file_locks.released(handle)
        await lock(two, elsewhere, 8)
        assert not len(one.file_locks)


@pytest.mark.parametrize("keeps", [True, False])
async def test_a_handle_whose_lock_others_had_meanwhile_is_dead(
    autojump_clock: Clock, *, keeps: bool
) -> None:
    async with World(3).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        inode, handle = await make(one, data=b"data")
        elsewhere = (await two.open(inode, os.O_RDWR)).handle
        await lock(one, handle, 7)
        world.remove(1)
        await lock(two, elsewhere, 8, Span(5, 5, SHARED))
        if not keeps:
            await lock(two, elsewhere, 8, Span(0, 99, NOTHING))
        await world.readmit(1)
        with pytest.raises(StaleHandle):
            await one.write(handle, 0, b"mine")
        with pytest.raises(StaleHandle):
            await lock(one, handle, 7)
        assert not len(one.file_locks)
        await lock(two, elsewhere, 8)


async def test_nobody_can_tell_if_a_node_that_could_have_had_the_lock_is_gone(
    autojump_clock: Clock,
) -> None:
    async with World(3).running() as world:
        one, three = world.nodes[1].fs, world.nodes[3].fs
        inode, handle = await make(one, data=b"data")
        world.remove(1)
        await world.readmit(1)
        elsewhere = (await three.open(inode, os.O_RDWR)).handle
        await lock(one, handle, 7)
        world.remove(1)
        await lock(three, elsewhere, 8)
        world.crash(3)
        await world.readmit(1)
        with pytest.raises(StaleHandle):
            await one.write(handle, 0, b"mine")


async def test_what_is_closed_while_the_node_is_out_is_not_locked_again(
    autojump_clock: Clock,
) -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        inode, handle = await make(one, data=b"data")
        await lock(one, handle, 7)
        world.remove(1)
        one.file_locks.closed(handle, 7)
        await world.readmit(1)
        await one.write(handle, 0, b"mine")
        elsewhere = (await two.open(inode, os.O_RDWR)).handle
        await lock(two, elsewhere, 8)
        assert not len(one.file_locks)


async def test_who_waits_for_a_file_lock_goes_on_waiting_after_a_readmission(
    autojump_clock: Clock,
) -> None:
    async with World(2).running() as world:
        one, two = world.nodes[1].fs, world.nodes[2].fs
        inode, handle = await make(one, data=b"data")
        elsewhere = (await two.open(inode, os.O_RDWR)).handle
        await lock(one, handle, 7, Span(20, 20, EXCLUSIVE))
        await lock(two, elsewhere, 8)
        async with trio.open_nursery() as nursery:
            wait = partial(one.file_locks.set, handle, 7, 7, WHOLE, wait=True)
            nursery.start_soon(wait)
            await trio.sleep(1)
            world.remove(1)
            await trio.sleep(1)
            await world.readmit(1)
            await trio.sleep(1)
            await lock(two, elsewhere, 8, Span(0, 9, NOTHING))
        for place in (0, 20):
            with pytest.raises(dlm.errors.WouldBlock):
                await lock(two, elsewhere, 8, Span(place, place, SHARED))
