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
from clusterfs.errors import SetupError

CLUSTERFS = Path(sys.executable).parent / "clusterfs"
PATIENCE_S = 150.0


@pytest.fixture
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    return make_cluster(settings={"chunk_cache_mib": "0"})  # reads are of the medium


def clusterfs(*words: object, code: int | None = 0) -> str:
    done = subprocess.run(
        [str(CLUSTERFS), *map(str, words)], capture_output=True, text=True, timeout=300, check=False
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
    deadline = time.monotonic() + PATIENCE_S
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


def unmount(node: Node) -> None:
    """End a node cleanly; returns when its last checkpoint is taken."""
    process = node.process
    subprocess.run(["umount", str(node.mount)], check=True, timeout=PATIENCE_S)
    assert process is not None
    assert processes.wait_gone(process, PATIENCE_S), "its end takes a checkpoint"


def spoil(node: Node) -> None:
    """Flip bits all over the checkpoint."""
    data = node.brick / "checkpoint" / "data.mdb"
    damaged = bytearray(data.read_bytes())
    for at in range(2 * 4096, len(damaged), 8):
        damaged[at] ^= 0xFF
    data.write_bytes(damaged)


def spoil_in_place(node: Node) -> None:
    """Have no page of the checkpoint of a running node say any more what kind it is."""
    with (node.brick / "checkpoint" / "data.mdb").open("r+b") as pages:
        for at in range(2 * 4096, os.fstat(pages.fileno()).st_size, 4096):
            pages.seek(at)
            pages.write(bytes(16))


def test_a_node_whose_checkpoint_is_damaged_synchronises_anew_by_itself(cluster: Cluster) -> None:
    first, _, third = cluster.nodes
    content = random.Random(8).randbytes(300_000)
    write(first.mount / "image", content)
    (first.mount / "folder").mkdir(exist_ok=True)
    unmount(third)
    cluster.start("n3")
    spoil_in_place(third)  # while it serves: others answer for it, and it says what happened
    assert (third.mount / "image").read_bytes() == content
    scrubbed = json.loads(clusterfs("scrub", third.mount, "--wait", "--json", code=1))
    assert "checkpoint" in scrubbed["failed"]
    write(third.mount / "written then", content[:5000])
    assert (first.mount / "written then").read_bytes() == content[:5000]
    codes = json.loads(clusterfs("status", third.mount, "--json"))["codes"]
    assert "BRICK_READ_ONLY" in {finding["code"] for finding in codes}
    cluster.kill("n3")  # its lease goes on: the node waits until the others have removed it
    spoil(third)
    clusterfs("fsck", third.brick, code=4)
    cluster.start("n3")
    assert (third.mount / "image").read_bytes() == content
    aside = third.brick / "set-aside-1"
    assert (aside / "brick.json").exists(), "nothing is deleted"
    told = json.loads(clusterfs("status", third.mount, "--json"))["health"]
    assert [Path(line.split()[0]).resolve() for line in told] == [aside.resolve()]
    cluster.down()
    for node in cluster.nodes:
        clusterfs("fsck", node.config)


def test_the_last_copy_is_never_set_aside(cluster: Cluster) -> None:
    for node in cluster.nodes:
        unmount(node)
    last = cluster.nodes[-1]
    before = sorted(path.name for path in last.brick.iterdir() if path.name.startswith("set-aside"))
    spoil(last)
    with pytest.raises(SetupError, match="n3"):
        cluster.start("n3")
    assert "the cluster counts on this brick" in last.log.read_text()
    after = sorted(path.name for path in last.brick.iterdir() if path.name.startswith("set-aside"))
    assert after == before
    assert (last.brick / "brick.json").exists()
