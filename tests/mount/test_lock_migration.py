"""Locks of a file that processes fight for move from node to node, and nobody loses anything."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from clusterfs.cli.dev import Cluster, Node
from clusterfs.errors import SetupError

PATIENCE_S = 120.0
ROUNDS = 2  # of moves around the cluster


class Writer(threading.Thread):
    """Appends numbered lines to a file that others append to as well."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(daemon=True)
        self.path, self.name_in_file = path, name
        self.lines = 0
        self.stopping = False
        self.failure: OSError | None = None

    def has_more_than(self, lines: int) -> bool:
        return self.lines > lines or self.failure is not None

    def run(self) -> None:
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            try:
                while not self.stopping:
                    os.write(descriptor, b"%s %08d\n" % (self.name_in_file.encode(), self.lines))
                    self.lines += 1
            finally:
                os.close(descriptor)
        except OSError as failure:
            self.failure = failure


@contextlib.contextmanager
def fighting(*paths: Path) -> Iterator[list[Writer]]:
    """Let a process on each of these mounts append; afterwards every line is there, in order."""
    writers = [Writer(path, f"w{number}") for number, path in enumerate(paths)]
    for writer in writers:
        writer.start()
    try:
        yield writers
    finally:
        for writer in writers:
            writer.stopping = True
        for writer in writers:
            writer.join(PATIENCE_S)
    assert not any(writer.is_alive() for writer in writers)
    assert not [writer.failure for writer in writers if writer.failure]
    lines = paths[0].read_text().splitlines()
    for writer in writers:
        own = [int(line.split()[1]) for line in lines if line.startswith(writer.name_in_file)]
        assert own == list(range(writer.lines))


def locks(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command, as a user does; it takes a while to start."""
    command = [sys.executable, "-m", "clusterfs.cli.main", "locks", *map(str, arguments), "--json"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def made(path: Path) -> str:
    """Make a file; return its root. (Every stat would take a lock, and count as a use.)"""
    path.write_bytes(b"")
    return f"{path.stat().st_ino:016x}"


def order(via: Node, root: str, action: str = "show", **to: str) -> dict[str, Any]:
    """Ask what the command asks."""
    return via.ask("lock_tree", root=root, action=action, **to)


def master_of(node: Node, root: str) -> str:
    reply = order(node, root)
    return str(reply["names"].get(str(reply["master"]), ""))


def send(node: Node, root: str, target: str) -> None:
    order(node, root, "migrate", node=target)
    wait_for(lambda: master_of(node, root) == target, f"it never came to {target}")


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, what
        time.sleep(0.05)


def let_them_write(writers: list[Writer]) -> None:
    before = [writer.lines for writer in writers]
    for writer, lines in zip(writers, before, strict=True):
        wait_for(partial(writer.has_more_than, lines), "a writer stands still")


def taken(cluster: Cluster, *nodes: int) -> int:
    """Return how many trees these nodes have got from others so far."""
    dumps = [cluster.nodes[node - 1].ask("locks")["locks"] for node in nodes]
    return sum(dump["migration"]["taken"] for dump in dumps)


@pytest.fixture(scope="module")
def moving(make_cluster: Callable[..., Cluster]) -> Cluster:
    return make_cluster()


def test_what_others_use_moves_to_one_of_them_by_itself(moving: Cluster) -> None:
    first, paths = moving.nodes[0], [node.mount / "hot" for node in moving.nodes]
    root = made(paths[0])
    assert master_of(first, root) == "n1"
    with fighting(paths[1], paths[2]):
        wait_for(lambda: master_of(first, root) in {"n2", "n3"}, "it stayed with n1")


def test_locks_that_are_fought_for_move_by_command_and_stay_where_they_are_pinned(
    moving: Cluster,
) -> None:
    paths = [node.mount / "contested" for node in moving.nodes]
    root = made(paths[0])
    with fighting(paths[0], paths[1]) as writers:
        for target in ["n2", "n3", "n1"] * ROUNDS:
            send(moving.nodes[1], root, target)
            let_them_write(writers)
        done = locks("pin", paths[2], "--to", "n3", "--timeout", PATIENCE_S)
        assert done.returncode == 0, done.stderr
        assert master_of(moving.nodes[0], root) == "n3"
        refused = locks("migrate", paths[0], "--to", "n1")
        assert refused.returncode == 1
        assert "pinned to n3" in refused.stderr
    done = locks("unpin", paths[0])
    assert json.loads(done.stdout)["pinned"] == 0


def test_the_destination_is_killed_while_locks_move_there(moving: Cluster) -> None:
    first, paths = moving.nodes[0], [node.mount / "doomed" for node in moving.nodes]
    root = made(paths[0])
    stop = threading.Event()

    def move_about() -> None:
        while not stop.is_set():
            for target in ("n3", "n1"):
                with contextlib.suppress(SetupError):  # n3 is no member for a while
                    order(first, root, "migrate", node=target)
                time.sleep(0.01)

    mover = threading.Thread(target=move_about, daemon=True)
    with fighting(paths[0], paths[1]) as writers:
        before = taken(moving, 3)
        mover.start()
        try:
            wait_for(lambda: taken(moving, 3) > before + 3, "it never went there")
            moving.kill("n3")
            let_them_write(writers)
        finally:
            stop.set()
            mover.join(PATIENCE_S)
        let_them_write(writers)
    moving.start("n3")
    assert paths[2].read_bytes() == paths[0].read_bytes()


def test_who_unmounts_leaves_its_locks_to_others(moving: Cluster) -> None:
    first, paths = moving.nodes[0], [node.mount / "left" for node in moving.nodes]
    root = made(paths[2])
    with fighting(paths[0], paths[1]) as writers:
        order(first, root, "pin", node="n3")
        wait_for(lambda: master_of(first, root) == "n3", "it never came to n3")
        before = taken(moving, 1, 2)
        subprocess.run(["umount", moving.nodes[2].mount], check=True, timeout=PATIENCE_S)
        wait_for(lambda: master_of(first, root) in {"n1", "n2"}, "nobody has it")
        wait_for(lambda: taken(moving, 1, 2) > before, "nobody took it over")
        let_them_write(writers)
