"""Stops, starts, pauses: the data is there again, and nobody serves what is no longer true."""

import hashlib
import os
import queue
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from clusterfs.cli import processes
from clusterfs.cli.dev import Cluster

PATIENCE_S = 150.0


def fill(root: Path, seed: int) -> dict[str, bytes]:
    """Write files, fsynced; return their digests."""
    source = random.Random(seed)
    digests = {}
    (root / "sub").mkdir(exist_ok=True)
    for number in range(40):
        name = f"{source.choice(['', 'sub/'])}file-{seed}-{number}"
        content = source.randbytes(source.choice([0, 10, 4096, 70_000, 300_000]))
        descriptor = os.open(root / name, os.O_CREAT | os.O_WRONLY, 0o644)
        os.write(descriptor, content)
        os.fsync(descriptor)
        os.close(descriptor)
        digests[name] = hashlib.sha256(content).digest()
    for folder in (root / "sub", root):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(descriptor)
        os.close(descriptor)
    return digests


def differing(root: Path, digests: dict[str, bytes]) -> list[str]:
    return [
        name
        for name, digest in digests.items()
        if not (root / name).exists()
        or hashlib.sha256((root / name).read_bytes()).digest() != digest
    ]


def in_thread(work: Callable[[], object]) -> "queue.Queue[object]":
    """Do it elsewhere, for it may wait; its result or failure comes through a queue."""
    results: queue.Queue[object] = queue.Queue()

    def run() -> None:
        try:
            results.put(work())
        except OSError as failure:
            results.put(failure)

    threading.Thread(target=run, daemon=True).start()
    return results


def test_after_a_clean_stop_all_data_is_there_again(cluster: Cluster) -> None:
    digests = fill(cluster.nodes[0].mount, 1)
    cluster.down()
    assert [node.state() for node in cluster.nodes] == ["gone"] * 3
    assert not any(os.path.ismount(node.mount) for node in cluster.nodes)
    cluster.up()
    assert [differing(node.mount, digests) for node in cluster.nodes] == [[], [], []]


def test_after_all_nodes_were_killed_everything_fsynced_is_there_again(cluster: Cluster) -> None:
    digests = fill(cluster.nodes[1].mount, 2)
    for node in cluster.nodes:
        assert node.process is not None
        processes.send(node.process, signal.SIGKILL)
    for node in cluster.nodes:
        assert node.process is not None
        assert processes.wait_gone(node.process, PATIENCE_S)
    cluster.up()
    assert [differing(node.mount, digests) for node in cluster.nodes] == [[], [], []]


def test_a_node_that_was_away_gets_what_it_missed_and_serves_it_alone(cluster: Cluster) -> None:
    before = fill(cluster.nodes[0].mount, 3)
    cluster.kill("n2")
    missed = fill(cluster.nodes[2].mount, 4)
    gone = next(iter(before))
    (cluster.nodes[0].mount / gone).unlink()
    before.pop(gone)
    cluster.start("n2")
    cluster.kill("n1")
    cluster.kill("n3")
    alone = cluster.nodes[1].mount
    assert differing(alone, before | missed) == []
    assert not (alone / gone).exists()
    cluster.up()
    assert [differing(node.mount, before | missed) for node in cluster.nodes] == [[], [], []]


def test_the_others_go_on_while_a_node_is_paused_and_it_serves_nothing_old(
    folders: list[Path], cluster: Cluster
) -> None:
    (folders[0] / "f").write_bytes(b"old " * 1024)
    reader = os.open(folders[1] / "f", os.O_RDONLY)
    assert os.pread(reader, 4, 0) == b"old "
    cluster.pause("n2")
    try:
        (folders[0] / "f").write_bytes(b"new " * 1024)
        assert (folders[2] / "f").read_bytes() == b"new " * 1024
        answers = in_thread(lambda: os.pread(reader, 4096, 0))
        sizes = in_thread((folders[1] / "f").read_bytes)
    finally:
        cluster.resume("n2")
    assert answers.get(timeout=PATIENCE_S) == b"new " * 1024
    assert sizes.get(timeout=PATIENCE_S) == b"new " * 1024
    os.close(reader)


def test_a_writer_that_was_away_does_not_write_over_its_successor(
    folders: list[Path], cluster: Cluster
) -> None:
    stale = os.open(folders[1] / "image", os.O_CREAT | os.O_RDWR)
    kept = os.open(folders[1] / "own", os.O_CREAT | os.O_RDWR)
    os.write(stale, b"first")
    os.write(kept, b"first")
    os.fsync(stale)
    cluster.pause("n2")
    try:
        (folders[0] / "image").write_bytes(b"successor")
    finally:
        cluster.resume("n2")
    with pytest.raises(OSError, match="Input/output error"):
        os.pwrite(stale, b"zombie", 0)
    with pytest.raises(OSError, match="Input/output error"):
        os.fsync(stale)
    os.close(stale)
    assert [(path / "image").read_bytes() for path in folders] == [b"successor"] * 3
    assert os.pwrite(kept, b"again", 0) == 5
    os.fsync(kept)
    os.close(kept)
    assert (folders[2] / "own").read_bytes() == b"again"
    (folders[1] / "image").write_bytes(b"reopened")
    assert (folders[0] / "image").read_bytes() == b"reopened"


def test_a_single_node_is_a_cluster_too(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(nodes=1, replicas=1)
    digests = fill(cluster.nodes[0].mount, 5)
    cluster.kill("n1")
    cluster.up()
    assert differing(cluster.nodes[0].mount, digests) == []


def test_a_cluster_grows_by_a_node_that_gets_all_data(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster(nodes=2, replicas=3)
    digests = fill(cluster.nodes[0].mount, 6)
    cluster.up(nodes=3)
    cluster.kill("n1")
    cluster.kill("n2")
    assert differing(cluster.nodes[2].mount, digests) == []
