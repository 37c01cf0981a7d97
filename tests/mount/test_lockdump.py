"""clusterfs-lockdump on real mounts: nodes fight, one is stopped, a mount hangs."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clusterfs.cli.dev import Cluster
from clusterfs.cli.lockdump import fetch

COMMAND = Path(sys.executable).parent / "clusterfs-lockdump"
WAIT_S = 120.0

APPEND = """
import sys
with open(sys.argv[1], 'ab', 0) as file:
    print(flush=True)
    sys.stdin.readline()
    file.write(b'x')
"""
APPEND_MANY = """
import sys
with open(sys.argv[1], 'ab', 0) as file:
    print(flush=True)
    while True:
        file.write(b'x')
"""


def lockdump(*words: object, code: int = 0) -> str:
    done = subprocess.run(
        [COMMAND, *map(str, words)], capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert done.returncode == code, done
    return done.stdout if code == 0 else done.stderr


def wait_for(so: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + WAIT_S
    while not so():
        assert time.monotonic() < end_s, f"never: {what}"


@pytest.fixture
def file(folders: list[Path]) -> Path:
    """A file whose locks node 3 masters; its name below the root of the volume."""
    (folders[2] / "fought for").write_bytes(b"")
    return Path(folders[2].name, "fought for")


@pytest.fixture
def append(cluster: Cluster, file: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start programs that append to the file; they end with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(node: int, program: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", program, cluster.nodes[node].mount / file]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def waiting_pids(value: Any) -> set[int]:
    nodes = value.get("nodes", [value])
    return {entry["pid"] for node in nodes for use in node["uses"] for entry in use["waiting"]}


def test_a_wait_for_a_stopped_node_is_shown_with_process_path_and_holder(
    cluster: Cluster, file: Path, append: Callable[..., Any], tmp_path: Path
) -> None:
    first, second, third = cluster.nodes
    waiter = append(1, APPEND)
    append(0, APPEND).communicate(b"\n", timeout=WAIT_S)
    cluster.pause("n1")
    try:
        waiter.stdin.write(b"\n")
        waiter.stdin.flush()
        # The mount of node 2 hangs for that process until node 1 is removed; its daemon answers.
        wait_for(
            lambda: waiter.pid in waiting_pids(fetch(str(second.mount), cluster=False)),
            "node 2 waits",
        )
        saved = tmp_path / "picture"
        saved.write_text(json.dumps(fetch(str(third.mount), cluster=True, only_busy=True)))
        assert "no answer within 5 s" in lockdump(first.mount, code=1)
    finally:
        cluster.resume("n1")
    shown = lockdump("--offline", saved, "--waiters")
    [row] = [line for line in shown.splitlines() if f" {waiter.pid} " in line]
    assert f"/{file}" in row
    assert " write " in row
    assert "n1 lock" in row
    assert f" {Path(sys.executable).name[:6]}" in row
    assert "n1 is missing here: no answer within 5 s" in shown
    assert "holds EX" in lockdump("--offline", saved, "--graph")
    assert waiter.communicate(timeout=WAIT_S) == (b"", None)
    assert (second.mount / file).read_bytes().endswith(b"x")


def test_two_nodes_that_fight_for_a_file_are_seen_fighting(
    cluster: Cluster, append: Callable[..., Any]
) -> None:
    pids = {append(node, APPEND_MANY).pid for node in (0, 1)}
    seen: set[int] = set()

    def both_waited() -> bool:
        seen.update(waiting_pids(fetch(str(cluster.nodes[2].mount), cluster=True)))
        return pids <= seen

    wait_for(both_waited, "both wait for it")
    statistics = lockdump(cluster.nodes[0].mount, "--stats")
    assert "messages per operation" in statistics
    assert "Blocking" in statistics


def test_watch_prints_until_it_is_interrupted(cluster: Cluster) -> None:
    command = [COMMAND, cluster.nodes[0].mount, "--watch", "0.1", "--waiters"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watching:
        assert watching.stdout is not None
        for _ in range(3):
            assert b"waits" in watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        _, complaint = watching.communicate(timeout=WAIT_S)
    assert b"Traceback" not in complaint


def test_the_picture_of_a_cluster_can_be_looked_at_later(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_text(lockdump(cluster.nodes[0].mount, "--cluster", "--json"))
    assert {node["name"] for node in json.loads(path.read_text())["nodes"]} == {"n1", "n2", "n3"}
    for number in (1, 2, 3):
        assert lockdump("--offline", path, "--node", number, "--format", "lockdump")
    assert lockdump("--offline", path, "--dot").startswith("digraph")
