"""A request that was under way when its node was lost happens once, whatever others did since."""

import os
from collections.abc import Awaitable, Callable

import pytest
import trio

from clusterfs.errors import EntryExists, NoSuchEntry, StaleHandle
from clusterfs.fs.filesystem import Filesystem
from clusterfs.fs.keys import ROOT
from clusterfs.fs.results import Changes
from clusterfs.sim.cluster_world import Node, World, run_world

Deed = Callable[[Filesystem], Awaitable[object]]

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL


def interrupted(deed: Deed, meanwhile: Deed, *, gets_out: bool = True) -> dict[bytes, int | None]:
    """Let node 1 be lost while it does something, and node 2 act before node 1 is back.

    There is a file `old` with a second name `keep` before. gets_out: the replicas hear of the deed,
    but node 1 does not hear of them. Returns where `old`, `keep`, `x` and `y` lead afterwards.
    """
    found: dict[bytes, int | None] = {}

    async def tell(world: World) -> None:
        for number in (1, 2, 3):
            await world.start(number)
        await world.settle()
        one, two = world.nodes[1], world.nodes[2].filesystem
        made = await one.filesystem.create(ROOT, b"old", 0o644, _NEW)
        assert made.entry.attributes is not None
        await one.filesystem.link(made.entry.attributes.inode, ROOT, b"keep")
        for other in (2, 3):
            world.network.cut_one_way(other, 1)
            if not gets_out:
                world.network.cut_one_way(1, other)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(deed, one.filesystem)
                await _lose(world, one, meanwhile)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            for name in (b"old", b"keep", b"x", b"y"):
                entry = await two.lookup(ROOT, name)
                found[name] = entry.attributes and entry.attributes.inode

    async def _lose(world: World, node: Node, meanwhile: Deed) -> None:
        await trio.sleep(0.05)
        node.views.reachable = False
        await world.bury(node.views.incarnation)
        await meanwhile(world.nodes[2].filesystem)
        node.views.reachable = True
        await node.views.lost.wait()
        for other in (2, 3):
            world.network.heal(other, node.number)

    try:
        run_world(1, tell)
    except BaseExceptionGroup as group:
        raise _only(group) from None
    return found


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    inner = group.exceptions[0]
    return _only(inner) if isinstance(inner, BaseExceptionGroup) else inner


def renaming(old: bytes, new: bytes) -> Deed:
    return lambda files: files.rename(ROOT, old, ROOT, new)


def removing(name: bytes) -> Deed:
    return lambda files: files.unlink(ROOT, name)


async def make(files: Filesystem) -> None:
    await files.create(ROOT, b"x", 0o644, _NEW)


async def link(files: Filesystem, source: bytes = b"keep", name: bytes = b"x") -> None:
    entry = await files.lookup(ROOT, source)
    assert entry.attributes is not None
    await files.link(entry.attributes.inode, ROOT, name)


async def idle(_files: Filesystem) -> None:
    await trio.lowlevel.checkpoint()


def test_what_was_made_and_moved_by_another_node_is_not_made_again() -> None:
    names = interrupted(make, renaming(b"x", b"y"))
    assert names[b"y"]
    assert names[b"x"] is None


def test_what_was_made_and_removed_by_another_node_is_not_made_again() -> None:
    async def make_in_vain(files: Filesystem) -> None:
        with pytest.raises(StaleHandle):
            await make(files)

    assert interrupted(make_in_vain, removing(b"x"))[b"x"] is None


def test_a_directory_that_was_made_and_moved_is_not_made_again() -> None:
    async def make_directory(files: Filesystem) -> None:
        entry = await files.mkdir(ROOT, b"x", 0o755)
        assert entry.attributes is not None
        assert entry.entry_timeout_s == 0

    names = interrupted(make_directory, renaming(b"x", b"y"))
    assert names[b"y"]
    assert names[b"x"] is None


def test_a_link_that_another_node_removed_is_not_made_again() -> None:
    assert interrupted(link, removing(b"x"))[b"x"] is None


def test_a_rename_that_another_node_took_back_is_not_done_again() -> None:
    names = interrupted(renaming(b"old", b"x"), renaming(b"x", b"old"))
    assert names[b"old"]
    assert names[b"x"] is None


def test_a_name_that_another_node_made_anew_is_not_removed_again() -> None:
    async def name_it_anew(files: Filesystem) -> None:
        await link(files, b"keep", b"old")

    names = interrupted(removing(b"old"), name_it_anew)
    assert names[b"old"] == names[b"keep"]


@pytest.mark.parametrize("deed", [renaming(b"old", b"y"), removing(b"old")])
def test_what_never_got_out_and_another_node_did_is_not_claimed(deed: Deed) -> None:
    async def fail(files: Filesystem) -> None:
        with pytest.raises(NoSuchEntry):
            await deed(files)

    names = interrupted(fail, renaming(b"old", b"x"), gets_out=False)
    assert names[b"x"]
    assert names[b"y"] is None


def test_a_file_is_not_emptied_again_after_another_node_wrote_to_it() -> None:
    sizes = []

    async def inode_of(files: Filesystem) -> int:
        entry = await files.lookup(ROOT, b"keep")
        assert entry.attributes is not None
        return entry.attributes.inode

    async def empty(files: Filesystem) -> None:
        inode = await inode_of(files)
        await files.setattr(inode, Changes(size=0))
        sizes.append((await files.getattr(inode)).attributes.size)

    async def write(files: Filesystem) -> None:
        opened = await files.open(await inode_of(files), os.O_RDWR)
        await files.write(opened.handle, 0, b"new")
        await files.fsync(opened.handle)

    interrupted(empty, write)
    assert sizes == [3]


def test_what_never_got_out_is_done_after_the_return() -> None:
    assert interrupted(make, idle, gets_out=False)[b"x"]

    async def fail(files: Filesystem) -> None:
        with pytest.raises(EntryExists):
            await make(files)

    assert interrupted(fail, make, gets_out=False)[b"x"]
