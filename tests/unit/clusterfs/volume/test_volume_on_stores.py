"""Volumes on real stores in directories: the interfaces fit, and a returning brick resyncs."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from clusterfs.errors import ChunkCorrupted, WouldBlock
from clusterfs.sim.volume_world import Node, World
from clusterfs.store import upkeep
from clusterfs.store.disk import DirectoryDisk
from clusterfs.store.location import place_of
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
    Write,
    inode_object,
    stripe_object,
)
from clusterfs.store.opening import Options
from clusterfs.store.store import Store

KEY = bytes(32)
OPTIONS = Options(
    segment_bytes=1 << 20, log_bytes=1 << 17, size_limit_bytes=64 << 20, cache_bytes=0
)


async def open_store(path: Path) -> Store:
    path.mkdir(exist_ok=True)
    return await Store.open(DirectoryDisk(path, reserve_bytes=0), KEY, options=OPTIONS)


class Bricks(World):
    """A world whose stores are directories."""

    answer_timeout_s = 300.0  # real disks, in real time, of a machine that does other things, too
    path: Path

    async def start_on_brick(self, number: int) -> Node:
        store = await open_store(self.path / str(number))
        self.stores[number] = store  # type: ignore[assignment]
        return await self.start(number)

    async def stop(self, *numbers: int) -> None:
        """Stop them at the same moment."""
        nodes = {number: self.nodes.pop(number) for number in numbers}
        for node in nodes.values():
            node.mesh.stop()
            node.scope.cancel()
            node.volume.lose()
        for number in numbers:
            await self.stores.pop(number).close()  # type: ignore[attr-defined]
        self.agreement.remove([node.incarnation for node in nodes.values()])

    def image(self, number: int) -> dict[ObjectId, tuple[object, ...]]:
        store = self.stores[number]
        return {
            o: (version, store.group(o), store.scan(o, b"", b"", 1000), store.blocks(o))
            for o, version in store.objects(None, b"", 1000)
        }


@asynccontextmanager
async def bricks(path: Path) -> AsyncIterator[Bricks]:
    async with trio.open_nursery() as nursery:
        world = Bricks(3, nursery)
        world.path = path
        for number in (1, 2, 3):
            await world.start_on_brick(number)
        await world.settled()
        yield world
        await world.settled()
        for number in list(world.nodes):
            await world.stop(number)
        nursery.cancel_scope.cancel()


def block(n: int) -> bytes:
    return n.to_bytes(2, "big") * (BLOCK_BYTES // 2)


async def test_a_brick_that_was_away_becomes_equal_again(tmp_path: Path) -> None:
    async with bricks(tmp_path) as world:
        volume = world.nodes[1].volume
        stripe, first = stripe_object(7, 0), ABSENT.after(volume.epoch)
        data = b"".join(block(n) for n in range(1, 601))
        await volume.commit([Change(stripe, 1, ABSENT, first, (Write(0, 600),))], data)
        for n in range(20):
            change = Change(inode_object(n), n % 4, ABSENT, first, (Put(b"k", b"old"),))
            await volume.commit([change])
        await world.stop(3)
        second = first.after(volume.epoch)
        operations = (Write(10, 300), Discard(500, 50))
        data = b"".join(block(n) for n in range(1000, 1300))
        await volume.commit([Change(stripe, 1, first, second, operations)], data)
        await volume.commit([Change(inode_object(3), 3, first, second, (Delete(),))])
        await volume.commit([Change(inode_object(4), 0, first, second, (Put(b"k", b"new"),))])
        await world.start_on_brick(3)
        await world.settled()
        assert world.image(3) == world.image(1) == world.image(2)
        assert await world.nodes[3].volume.read(stripe, 1, 10, 1) == block(1000)
        assert world.nodes[3].volume.statistics()["resync"]["pulled_bytes"] <= 300 * BLOCK_BYTES
        await world.nodes[3].volume.sync()


async def test_clones_of_whole_stripes_on_a_brick_that_was_away_are_right(tmp_path: Path) -> None:
    """A source is overwritten meanwhile, a clone removed, another made: only that changes."""
    async with bricks(tmp_path) as world:
        volume = world.nodes[1].volume
        names = [stripe_object(n, 0) for n in (7, 8, 9, 10)]
        versions = dict.fromkeys(names, ABSENT)

        def change(name: ObjectId, *operations: Operation) -> Change:
            before, versions[name] = versions[name], versions[name].after(volume.epoch)
            return Change(name, 1, before, versions[name], operations)

        async def clone(source: ObjectId, target: ObjectId) -> None:
            share = Share(0, STRIPE_BLOCKS, source, 0)
            await volume.commit([change(source), change(target, share)])

        data = b"".join(block(n) for n in range(1, 601))
        await volume.commit([change(names[0], Write(0, 600))], data)
        await clone(names[0], names[1])
        await clone(names[0], names[2])
        await world.stop(3)
        await volume.commit([change(names[0], Write(300, 1))], block(1000))
        await volume.commit([change(names[1], Delete())])
        await clone(names[2], names[3])
        await world.start_on_brick(3)
        await world.settled()
        assert world.image(3) == world.image(1) == world.image(2)
        three = world.nodes[3].volume
        for name, expected in zip(names[2:], (block(301), block(301)), strict=True):
            assert await three.read(name, 1, 300, 1) == expected
        assert await three.read(names[0], 1, 300, 1) == block(1000)
        for store in world.stores.values():
            cast(Any, store).validate()


async def test_a_dead_clients_transaction_is_rolled_forward_with_its_data(tmp_path: Path) -> None:
    async with bricks(tmp_path) as world:
        volume = world.nodes[1].volume
        stripe, first = stripe_object(7, 0), ABSENT.after(volume.epoch)
        change = Change(stripe, 1, ABSENT, first, (Write(0, 2), Put(b"k", b"v")))
        await volume.commit([change], block(1) + block(2))
        world.network.cut(1, 3)
        second = first.after(volume.epoch)
        change = Change(stripe, 1, first, second, (Write(1, 1), Put(b"k", b"w")))
        async with trio.open_nursery() as committing:
            committing.start_soon(volume.commit, [change], block(3))
            with trio.fail_after(300):
                while world.stores[2].version(stripe) != second:
                    await trio.sleep(0.01)
            committing.cancel_scope.cancel()
        await world.stop(1)
        await world.settled()
        for number in (2, 3):
            assert await world.nodes[number].volume.read(stripe, 1, 0, 2) == block(1) + block(3)
        assert world.image(2) == world.image(3)


async def test_a_block_that_nobody_can_read_any_more_keeps_nobody_waiting(tmp_path: Path) -> None:
    """The gate, and the resync, tried for ever to bring it forward; now reading it is an error."""
    async with bricks(tmp_path) as world:
        volume = world.nodes[1].volume
        stripe, first = stripe_object(7, 0), ABSENT.after(volume.epoch)
        data = b"".join(block(n) for n in range(1, 9))
        await volume.commit([Change(stripe, 1, ABSENT, first, (Write(0, 8),))], data)
        world.network.cut(1, 3)
        second = first.after(volume.epoch)
        change = Change(stripe, 1, first, second, (Write(2, 3),))
        holder = world.stores[2]
        async with trio.open_nursery() as committing:
            committing.start_soon(volume.commit, [change], block(20) + block(21) + block(22))
            with trio.fail_after(300):
                while holder.version(stripe) != second:
                    await trio.sleep(0.01)
            committing.cancel_scope.cancel()
        await holder.sync()
        rot(holder, stripe, 3)
        await world.stop(1)
        await world.settled()
        for number in (2, 3):
            volume = world.nodes[number].volume
            assert await volume.read(stripe, 1, 0, 3) == block(1) + block(2) + block(20)
            assert await volume.read(stripe, 1, 4, 4) == block(22) + data[5 * BLOCK_BYTES :]
            with pytest.raises(ChunkCorrupted, match="block 3: no replica in sync has a good copy"):
                await volume.read(stripe, 1, 3, 1)
        world.network.heal(1, 3)
        await world.start_on_brick(1)
        await world.settled()
        with trio.fail_after(300):  # it has the block: all are whole again
            while any(store.damaged() for store in world.stores.values()):
                await trio.sleep(0.01)
        for node in world.nodes.values():
            assert await node.volume.read(stripe, 1, 3, 1) == block(21)
        for store in world.stores.values():
            store.validate()  # type: ignore[attr-defined]


def rot(store: Any, name: ObjectId, number: int) -> None:
    """Flip a bit of a block on the medium, once it is there."""
    location = store._state.chunks.find(store._state.cids(name, number, 1)[0])[0]
    segment, offset, _ = place_of(location)
    path = store._disk.path / "segments" / f"{segment:08d}"
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


async def test_all_bricks_stop_and_start_again(tmp_path: Path) -> None:
    async with bricks(tmp_path) as world:
        volume = world.nodes[1].volume
        first = ABSENT.after(volume.epoch)
        await volume.commit([Change(inode_object(7), 0, ABSENT, first, (Put(b"k", b"v"),))])
        await volume.sync()
        for number in (1, 2, 3):
            await world.stop(number)
        for number in (1, 2, 3):
            await world.start_on_brick(number)
        await world.settled()
        assert (await world.nodes[2].volume.fetch(inode_object(7), 0, [b"k"]))[1] == [b"v"]
        assert world.image(1) == world.image(2) == world.image(3)


@pytest.mark.parametrize("all_crash", [False, True])
async def test_a_replica_that_lost_its_last_log_gets_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, all_crash: bool
) -> None:
    """It has no witness yet, so it looks like a torn tail; the others know better."""
    monkeypatch.setattr(upkeep, "_MARK_AFTER_S", 1e6)
    crashed = (1, 2, 3) if all_crash else (3,)
    async with bricks(tmp_path) as world:
        volume = world.nodes[1].volume
        stripe, first = stripe_object(7, 0), ABSENT.after(volume.epoch)
        await volume.commit([Change(stripe, 1, ABSENT, first, (Write(0, 2),))], block(1) + block(2))
        await volume.sync()
        second = first.after(volume.epoch)
        await volume.commit([Change(stripe, 1, first, second, (Write(1, 1),))], block(3))
        await volume.sync()
        last = cast("Store", world.stores[3])._log.last_sealed
        assert last is not None
        for number in crashed:
            shutil.copytree(tmp_path / str(number), tmp_path / f"killed-{number}")
        await world.stop(*crashed)
        for number in crashed:
            shutil.rmtree(tmp_path / str(number))
            (tmp_path / f"killed-{number}").rename(tmp_path / str(number))
        with (tmp_path / "3" / "segments" / f"{last.segment:08d}").open("r+b") as segment:
            segment.seek(last.block * BLOCK_BYTES + 50)
            segment.write(b"rot")
        store = await open_store(tmp_path / "3")
        assert store.version(stripe) == first, "the store takes it for a torn tail"
        await store.close()
        for number in crashed:
            await world.start_on_brick(number)
        await world.settled()
        for number in (1, 2, 3):
            assert await world.nodes[number].volume.read(stripe, 1, 0, 2) == block(1) + block(3)
        assert world.image(3) == world.image(1) == world.image(2)


async def test_what_a_brick_cannot_read_any_more_is_read_from_the_others(tmp_path: Path) -> None:
    """The checkpoint of node 1 rots while it is used; no view has said so yet."""
    async with bricks(tmp_path) as world:
        volume = world.nodes[1].volume
        stripe, inode = stripe_object(7, 0), inode_object(7)
        first = ABSENT.after(volume.epoch)
        data = b"".join(block(n) for n in range(1, 101))
        await volume.commit([Change(stripe, 1, ABSENT, first, (Write(0, 100),))], data)
        await volume.commit([Change(inode, 1, ABSENT, first, (Put(b"k", b"v"),))])
        await world.stop(1)
        await world.start_on_brick(1)
        await world.settled()
        store = cast("Store", world.stores[1])
        with (tmp_path / "1" / "checkpoint" / "data.mdb").open("r+b") as pages:
            for at in range(2 * 4096, pages.seek(0, 2), 4096):
                pages.seek(at)
                pages.write(bytes(16))
        store._state.chunks._clean.clear()
        volume = world.nodes[1].volume
        with trio.fail_after(300):
            assert await volume.read(stripe, 1, 0, 100) == data
            assert (await volume.fetch(inode, 1, [b"k"]))[1] == [b"v"]
            assert await volume.scan(inode, 1, b"", b"", 9) == [(b"k", b"v")]
            with pytest.raises(WouldBlock):
                volume.fetch_nowait(inode, 1, [b"k"])
        assert store.failed is not None
        await world.stop(1)
