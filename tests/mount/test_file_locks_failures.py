"""File locks when daemons die or stand still, with 500 waiters, and in a storm."""

import errno
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clusterfs.cli.dev import Cluster
from tests.mount.support.lockers import Locker, lockers

WAIT = True
PATIENCE_S = 150.0
STORM = Path(__file__).parent / "support" / "lock_storm.py"
SEED = int(os.environ.get("CLUSTERFS_SEED", "0"))
SOAK_S = float(os.environ.get("CLUSTERFS_SOAK_MINUTES", "0")) * 60
STORM_S = 25.0

Make = Callable[[], Locker]


@pytest.fixture
def make() -> Iterator[Make]:
    with lockers() as made:
        yield made


@pytest.fixture
def programs(make: Make, folders: list[Path]) -> list[Locker]:
    """A program on each node, with the same file open as "f"."""
    return [make().opened(folder / "file") for folder in folders]


def eventually(found: Callable[[], Any], wanted: Any) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while (last := found()) != wanted:
        assert time.monotonic() < until_s, last
        time.sleep(0.05)


def described(cluster: Cluster, key: str, node: int) -> list[Any]:
    return list(cluster.nodes[node].ask("locks")["locks"][key])


def waits(cluster: Cluster, node: int) -> int:
    return sum(len(entry["waiting"]) for entry in described(cluster, "ranges", node))


def left(cluster: Cluster) -> list[Any]:
    return [
        entry
        for node in range(3)
        for key in ("ranges", "kept_ranges")
        for entry in described(cluster, key, node)
        if entry["held"] or entry["waiting"]
    ]


def test_five_hundred_waiters_stop_nothing_else(
    programs: list[Locker], folders: list[Path], cluster: Cluster
) -> None:
    one = programs[0]
    assert one.tell("write", "f", 0, 1) == 0
    crowd = subprocess.Popen(
        [sys.executable, STORM, "crowd", str(folders[1] / "file"), "500"], stdout=subprocess.PIPE
    )
    try:
        eventually(lambda: waits(cluster, 1), 500)
        (folders[1] / "other").write_bytes(b"content" * 1000)
        assert (folders[1] / "other").read_bytes() == b"content" * 1000
        assert sorted(path.name for path in folders[1].iterdir()) == ["file", "other"]
        assert programs[1].tell("write", "f", 5, 1) == 0
        assert one.tell("unlock", "f", 0, 1) == 0
        output, _ = crowd.communicate(timeout=PATIENCE_S)
        assert output.split() == [b"500"]  # each had it, one at a time
    finally:
        crowd.kill()
        crowd.communicate()


def test_programs_storm_overlapping_ranges_and_nobody_gets_what_another_has(
    make_cluster: Callable[..., Cluster],
) -> None:
    """Each byte's owners are written down in a file outside; see support/lock_storm.py.

    The lease is long: who was out of the cluster for a while may have lost its locks, and is told.
    """
    cluster = make_cluster(settings={"lease_s": "60"})
    folders = [node.mount for node in cluster.nodes]
    path, board = "storm", cluster.folder / "board"
    board.write_bytes(bytes(1 << 16))
    (folders[0] / path).touch()
    seconds = SOAK_S or STORM_S
    seed = random.Random(SEED)
    storm = [
        subprocess.Popen(
            [
                *(sys.executable, STORM, "storm", str(folders[number % 3] / path)),
                *(str(board), str(number), str(seconds), str(seed.randrange(2**32))),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(8)
    ]
    counts: dict[str, int] = {}
    try:
        for program in storm:
            output, complaint = program.communicate(timeout=seconds + 2 * PATIENCE_S)
            assert program.returncode == 0, complaint.decode()
            for what, count in json.loads(output).items():
                counts[what] = counts.get(what, 0) + count
    finally:
        for program in storm:
            program.kill()
            program.communicate()
    assert counts["granted"] > 0
    assert counts["refused"] > 0
    eventually(lambda: left(cluster), [])


def test_locks_of_a_killed_daemon_are_free_once_its_lease_is_over(
    programs: list[Locker], cluster: Cluster
) -> None:
    one, two, three = programs
    assert three.tell("write", "f", 0, 10) == 0
    assert one.tell("write", "f", 20, 10) == 0
    assert two.tell("read", "f", 40, 10) == 0
    one.begin("write", "f", 0, 10, WAIT)
    eventually(lambda: waits(cluster, 0), 1)
    cluster.kill("n3")
    try:
        assert one.answer() == 0
        assert two.tell("write", "f", 20, 10) == errno.EAGAIN  # what others hold stays theirs
        assert one.tell("write", "f", 40, 10) == errno.EAGAIN
        assert one.tell("unlock", "f", 20, 10) == 0
        assert two.tell("write", "f", 20, 10) == 0
    finally:
        three.kill()
        cluster.start("n3")


def starts(cluster: Cluster, *nodes: int) -> list[Any]:
    return [cluster.nodes[node].ask("status")["incarnation"] for node in nodes]


def test_a_paused_node_whose_locks_nobody_took_goes_on_with_them(
    programs: list[Locker], cluster: Cluster
) -> None:
    one, two, three = programs
    assert three.tell("ofd_write", "f", 0, 10) == 0
    assert three.tell("flock", "f", "exclusive") == 0
    assert three.tell("put", "f", 0, "before") == 0
    assert three.tell("sync", "f") == 0
    (before,), others = starts(cluster, 2), starts(cluster, 0, 1)
    cluster.pause("n3")
    try:
        eventually(lambda: before in incarnations(cluster), False)
        assert two.tell("ofd_write", "f", 20, 10) == 0  # beside it
    finally:
        cluster.resume("n3")
    after = three.tell("put", "f", 0, "third!")
    assert starts(cluster, 2) != [before]
    if starts(cluster, 0, 1) != others:
        return  # a machine so slow that others were removed, too: they could have had the locks
    assert after == 0
    assert three.tell("sync", "f") == 0
    assert one.tell("ofd_read", "f", 0, 1) == errno.EAGAIN
    assert one.tell("flock", "f", "shared") == errno.EAGAIN
    assert three.tell("ofd_unlock", "f", 0, 1) == 0


def incarnations(cluster: Cluster) -> list[Any]:
    """Return those that node 1 knows as members."""
    return [member["incarnation"] for member in cluster.nodes[0].ask("status")["members"]]


def test_a_paused_node_loses_its_locks_and_knows_it(
    programs: list[Locker], cluster: Cluster
) -> None:
    """Whoever held a lock there and goes on believing so gets errors, never a second writer."""
    one, two, three = programs
    assert three.tell("ofd_write", "f", 0, 10) == 0
    assert three.tell("put", "f", 0, "before") == 0
    assert three.tell("sync", "f") == 0
    two.begin("ofd_write", "f", 0, 10, WAIT)
    eventually(lambda: waits(cluster, 1), 1)
    cluster.pause("n3")
    try:
        assert two.answer() == 0
        assert two.tell("put", "f", 0, "second") == 0
        assert two.tell("sync", "f") == 0
    finally:
        cluster.resume("n3")
    assert three.tell("put", "f", 0, "third!") == errno.EIO
    assert three.tell("ofd_write", "f", 50, 1) == errno.EIO
    assert one.tell("ofd_read", "f", 0, 10) == errno.EAGAIN
    three.tell("close", "f")
    eventually(lambda: three.tell("open", "f", str(cluster.nodes[2].mount / "again")), 0)
    assert three.tell("ofd_write", "f", 0, 10) == 0
