"""Whole clusters in one thread: what clients saw must be explainable, whatever happened."""

import os
from collections.abc import Callable
from itertools import count

import pytest
import trio

from clusterfs.errors import FilesystemError
from clusterfs.fs.files import Files
from clusterfs.fs.keys import ROOT
from clusterfs.fs.results import Changes
from clusterfs.sim.cluster_story import Broken
from clusterfs.sim.cluster_world import Node, World, run_world
from clusterfs.store.objects import BLOCK_BYTES
from clusterfs.volume.messages import Code
from clusterfs.volume.pending import Pending
from clusterfs.volume.resync import Resync
from dlm.sim.checkers import Violation
from tests.simulation.clusters import CHUNK, FIRST_SEED, live, live_through


@pytest.mark.parametrize("first", range(FIRST_SEED, FIRST_SEED + 250, CHUNK))
def test_everything_that_clients_saw_can_be_explained(first: int) -> None:
    live_through(first)


def test_a_seed_is_a_complete_bug_report() -> None:
    assert live(1).records == live(1).records


def test_a_file_that_was_emptied_and_written_anew_is_whole_after_a_blackout() -> None:
    """One disk has the deletion of its data, and its tombstone, but not what came after."""
    content = b"anew" * 100

    async def tell(world: World) -> None:
        for number in (1, 2, 3):
            await world.start(number)
        await world.settle()
        files = world.nodes[2].filesystem
        made = await files.create(ROOT, b"log", 0o644, os.O_RDWR)
        assert made.entry.attributes is not None
        inode, handle = made.entry.attributes.inode, made.opened.handle
        for value in range(5):
            await files.write(handle, 0, bytes([value]) * BLOCK_BYTES)
            await files.fsync(handle)
        await files.setattr(inode, Changes(size=0))
        await files.fsync(handle)
        await files.write(handle, 0, content)
        assert await read(world.nodes[3], inode) == content  # every replica has it in memory
        await world.blackout(1)
        await world.start(1)
        await world.settle()
        assert [await read(node, inode) for node in world.nodes.values()] == [content] * 3

    async def read(node: Node, inode: int) -> bytes:
        opened = await node.filesystem.open(inode, os.O_RDONLY)
        return await node.filesystem.read(opened.handle, 0, BLOCK_BYTES)

    run_world(1, tell)


def serve_stale_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Now and then, what was there at the read before."""
    read = Files.read
    before: dict[tuple[Files, int], bytes] = {}
    turn = count(1)

    async def stale(
        self: Files, handle: int, offset: int, size: int, *, page_io: bool = False
    ) -> bytes:
        now = await read(self, handle, offset, size, page_io=page_io)
        old = before.get((self, handle), now)
        before[self, handle] = now
        return old if next(turn) % 5 == 0 else now

    monkeypatch.setattr(Files, "read", stale)


def acknowledge_before_the_second_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = Pending.answered

    def hasty(self: Pending, node: int, code: Code) -> bool:
        waited = bool(self.waiting)
        answered(self, node, code)
        self.waiting = 0
        return waited

    monkeypatch.setattr(Pending, "answered", hasty)


def skip_objects_in_a_resync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Resync, "_differs", lambda *_: False)


@pytest.mark.parametrize(
    "plant",
    [serve_stale_reads, acknowledge_before_the_second_replica, skip_objects_in_a_resync],
)
def test_a_planted_bug_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(BaseExceptionGroup) as found:
        list(map(live, range(60)))
    assert found.group_contains((Broken, Violation, FilesystemError, trio.TooSlowError), depth=None)
