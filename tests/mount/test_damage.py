"""Rot on a node's medium: readers never see it, it is repaired; a lost checkpoint is resynced."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from clusterfs.cli import processes
from clusterfs.cli.dev import Cluster, Node

CLUSTERFS = Path(sys.executable).parent / "clusterfs"


@pytest.fixture
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    return make_cluster()


def clusterfs(*words: object, code: int | None = 0) -> str:
    done = subprocess.run(
        [str(CLUSTERFS), *map(str, words)], capture_output=True, text=True, timeout=100, check=False
    )
    assert code is None or done.returncode == code, done
    return done.stdout


def write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def rot(node: Node, content: bytes, *, at: int) -> None:
    """Flip a byte of a block of `content` wherever the node's brick has it."""
    block = content[at * 4096 : (at + 1) * 4096]
    for segment in (node.brick / "segments").iterdir():
        data = segment.read_bytes()
        place = data.find(block)
        if place >= 0:
            with segment.open("r+b") as file:
                file.seek(place + 1000)
                file.write(bytes([block[1000] ^ 1]))
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return
    raise AssertionError("the block is not in the brick")


def statistics(node: Node) -> dict[str, int]:
    found: dict[str, int] = json.loads(clusterfs("status", node.mount, "--json"))["store"]
    return found


def test_rot_is_found_by_readers_and_the_scrub_and_healed(cluster: Cluster) -> None:
    first, second, third = cluster.nodes
    content = random.Random(7).randbytes(64 * 4096)
    write(first.mount / "image", content)
    for node in cluster.nodes:
        rot(node, content, at=cluster.nodes.index(node) * 5)
    assert (second.mount / "image").read_bytes() == content, "never wrong data"
    deadline = time.monotonic() + 30
    while statistics(second)["damage_healed"] < 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    cold = random.Random(9).randbytes(16 * 4096)
    write(first.mount / "cold", cold)
    before = statistics(third)["damage_healed"]
    rot(third, cold, at=11)
    reply = json.loads(clusterfs("scrub", third.mount, "--wait", "--json"))
    assert (reply["damaged"], reply["damage_left"]) == (1, 0)
    assert reply["damage_healed"] == before + 1
    assert "0 damaged chunks" in clusterfs("scrub", second.mount, "--wait")
    cluster.down()
    for node in cluster.nodes:
        report = json.loads(clusterfs("fsck", node.config, "--json", code=None))
        assert set(report["counts"]) <= {"log"}, "only what the log once held there is damaged"


def test_a_brick_without_its_checkpoint_is_refused_and_synchronised_anew(cluster: Cluster) -> None:
    first, _, third = cluster.nodes
    content = random.Random(8).randbytes(300_000)
    write(first.mount / "image", content)
    (first.mount / "folder").mkdir()
    process = third.process
    subprocess.run(["umount", str(third.mount)], check=True, timeout=60)
    assert process is not None
    assert processes.wait_gone(process, 30), "its end takes a checkpoint"
    data = third.brick / "checkpoint" / "data.mdb"
    damaged = bytearray(data.read_bytes())
    for at in range(2 * 4096, len(damaged), 512):
        damaged[at] ^= 0xFF
    data.write_bytes(damaged)
    clusterfs("fsck", third.brick, code=4)
    clusterfs("fsck", "--set-aside", third.config)
    cluster.start("n3")
    assert (third.mount / "image").read_bytes() == content
    cluster.down()
    for node in cluster.nodes:
        clusterfs("fsck", node.config)
