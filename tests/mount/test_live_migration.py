"""A guest with a real kernel moves between the mounts of three nodes, and writes all the time.

A clone of its disk, taken meanwhile by a node that it does not run on, has all that was durable.
"""

import contextlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from clusterfs.cli.dev import Cluster
from clusterfs.errors import NotAnswering
from tests.mount.support.guest import DISK, Guest, Run, check_disk
from tests.mount.support.qemu import clusterfs, img


@contextlib.contextmanager
def wandering(cluster: Cluster, image: Path) -> Iterator[None]:
    """Send the locks of a file from node to node."""
    root = f"{image.stat().st_ino:016x}"
    enough = threading.Event()

    def send() -> None:
        while not enough.is_set():
            for node in cluster.nodes:
                with contextlib.suppress(NotAnswering):
                    node.ask("lock_tree", root=root, action="migrate", node=node.name)
                enough.wait(0.2)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def moved(cluster: Cluster) -> int:
    """Return how many trees of locks have moved so far."""
    dumps = [node.ask("locks")["locks"] for node in cluster.nodes]
    return sum(int(dump["migration"]["taken"]) for dump in dumps)


def hop(stack: ExitStack, guest: Guest, source: Run, image: Path) -> Run:
    """Move the guest to a new QEMU with its image there; it checks its disk before and after."""
    source.wait_verified(1)
    channel = guest.folder / f"channel-{guest.runs}"
    target = stack.enter_context(guest.on(image, "-incoming", f"unix:{channel}"))
    source.migrate(target, channel)
    target.wait_verified(2)
    return target


@pytest.mark.parametrize(
    ("form", "cache", "aio"), [("raw", "none", "native"), ("qcow2", "writeback", "io_uring")]
)
def test_a_guest_goes_from_node_to_node_and_back(
    folders: list[Path], cluster: Cluster, tmp_path: Path, form: str, cache: str, aio: str
) -> None:
    images = [folder / "disk" for folder in folders]
    img("create", "-q", "-f", form, images[0], DISK)
    guest = Guest(tmp_path, form, cache, aio)
    with ExitStack() as stack:
        stack.callback(guest.memory.unlink)
        run = stack.enter_context(guest.on(images[0]))
        run = hop(stack, guest, run, images[1])
        cloned = run.said("durable")[-1]
        clusterfs("clone", images[2], folders[2] / "clone")
        before = moved(cluster)
        with wandering(cluster, images[0]):
            run = hop(stack, guest, run, images[2])
            run = hop(stack, guest, run, images[0])
        assert moved(cluster) >= before + 3
        durable = run.said("durable")[-1]
    if form != "raw":
        img("check", "-f", form, images[1])
    for disk, least in ((images[1], durable), (folders[0] / "clone", cloned)):
        content = disk
        if form != "raw":
            content = tmp_path / "content"
            img("convert", "-f", form, "-O", "raw", disk, content)
        check_disk(content, least)


def test_the_node_that_a_guest_has_left_is_lost_at_once(
    folders: list[Path], cluster: Cluster, tmp_path: Path
) -> None:
    images = [folder / "disk" for folder in folders]
    img("create", "-q", "-f", "raw", images[0], DISK)
    guest = Guest(tmp_path, "raw", "none", "threads")
    with ExitStack() as stack:
        stack.callback(guest.memory.unlink)
        source = stack.enter_context(guest.on(images[0]))
        source.wait_verified(1)
        channel = tmp_path / "channel"
        target = stack.enter_context(guest.on(images[1], "-incoming", f"unix:{channel}"))
        source.migrate(target, channel)
        cluster.kill("n1")
        source.qemu.process.kill()
        target.wait_verified(2)
        durable = target.said("durable")[-1]
    check_disk(images[2], durable)
    cluster.start("n1")
    check_disk(images[0], durable)
