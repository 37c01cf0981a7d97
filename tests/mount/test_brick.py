"""A node's brick as administrators see it: tuned at run time, failed, back again."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clusterfs import control
from clusterfs.cli.dev import Cluster

COMMANDS = Path(sys.executable).parent

MIB = 1 << 20
PATIENCE_S = 150.0


def run(*words: object, code: int = 0) -> str:
    """Run `clusterfs`, return what it prints."""
    command = [str(COMMANDS / "clusterfs"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == code, done
    return done.stdout


@pytest.fixture
def make_image(folders: list[Path]) -> Callable[[str, int], None]:
    def make(name: str, mib: int) -> None:
        descriptor = os.open(folders[0] / name, os.O_CREAT | os.O_WRONLY, 0o644)
        for _ in range(mib):
            os.write(descriptor, os.urandom(MIB))
        os.fsync(descriptor)
        os.close(descriptor)

    return make


def status(cluster: Cluster, number: int) -> dict[str, Any]:
    return control.ask(cluster.nodes[number].brick / "control.sock", "status", timeout_s=PATIENCE_S)


def groups_in_sync(reply: dict[str, Any], name: str) -> int:
    return sum(member["in_sync"] for member in reply["members"] if member["name"] == name)


def test_the_flush_executors_are_tuned_while_writes_go_on(
    cluster: Cluster, make_image: Callable[[str, int], None]
) -> None:
    point = cluster.nodes[0].mount
    for count in (4, 1, 2):
        reply = json.loads(run("tune", "flush-executors", count, point, "--json"))
        assert reply["flush_executors"] == count
        make_image("tuned", 2)
    assert "3 flush" in run("tune", "flush-executors", 3, point)
    run("tune", "flush-executors", 0, point, code=2)
    assert "compression zstd" in run("tune", "compression", "zstd", point)
    run("tune", "compression", "rar", point, code=2)
    run("tune", "compression", "lz4", point)


def test_df_explains_where_the_room_went(
    cluster: Cluster, make_image: Callable[[str, int], None]
) -> None:
    point = cluster.nodes[0].mount
    before = json.loads(run("df", point, "--json"))
    make_image("counted", 3)
    after = json.loads(run("df", point, "--json"))
    assert after["logical_bytes"] - before["logical_bytes"] >= 3 * MIB
    saved = after["shared_bytes"] + after["packed_bytes"]
    assert after["logical_bytes"] - saved == after["live_bytes"]
    assert after["live_bytes"] + after["free_bytes"] == after["total_bytes"]
    assert "kept empty" in run("df", point)


def test_a_failed_brick_leaves_the_sets_and_says_so_and_its_node_serves_on(
    cluster: Cluster, folders: list[Path], make_image: Callable[[str, int], None]
) -> None:
    """The disk of n2 fails: its daemon may write no file beyond 8 MiB any more (EFBIG)."""
    node = cluster.nodes[1]
    resource.prlimit(status(cluster, 1)["pid"], resource.RLIMIT_FSIZE, (8 * MIB, 8 * MIB))
    make_image("while-it-fails", 24)
    end = time.monotonic() + PATIENCE_S
    while not (reply := status(cluster, 1))["health"] or groups_in_sync(reply, "n2"):
        assert time.monotonic() < end, reply
        time.sleep(0.1)
    assert "read-only" in reply["health"][0]
    assert "read-only" in run("status", node.mount)
    assert groups_in_sync(status(cluster, 0), "n1") == reply["groups"]
    content = (folders[0] / "while-it-fails").read_bytes()
    assert (folders[1] / "while-it-fails").read_bytes() == content
    (folders[1] / "from-n2").write_bytes(content[:MIB])
    assert (folders[2] / "from-n2").read_bytes() == content[:MIB]
    cluster.kill("n2")
    cluster.start("n2")
    assert status(cluster, 1)["health"] == []
    assert (folders[1] / "while-it-fails").read_bytes() == content
