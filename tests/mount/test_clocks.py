"""Nodes whose wall clocks differ, and jump by hours while they run.

Each node's programs have a library (support/wall_clock.c) between them and the time of day.
"""

import itertools
import os
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clusterfs.cli.dev import MOUNT_PROGRAM, Cluster, Node

HOUR_NS = 3600 * 10**9
JUMPS = ((0, 5, -5), (8, -8, 0), (-20, 20, 24 * 365), (0, 0, 0))  # hours
LINES_BETWEEN = 4


class Clocks:
    """The time of day of each node."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._library = folder / "wall_clock.so"
        source = Path(__file__).parent / "support" / "wall_clock.c"
        command = ["gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o"]
        subprocess.run([*command, self._library, source, "-ldl"], check=True)
        for n in (1, 2, 3):
            (folder / f"n{n}").write_bytes(bytes(8))

    def program(self, node: Node) -> list[str]:
        """Return how that node's mount.clusterfs is run."""
        clock = self._folder / node.name
        return ["env", f"LD_PRELOAD={self._library}", f"WALL_CLOCK={clock}", *MOUNT_PROGRAM]

    def set(self, *differences_ns: float) -> None:
        """Let the nodes' clocks jump; what is given is their difference from the right time."""
        for n, difference_ns in enumerate(differences_ns, 1):
            with (self._folder / f"n{n}").open("r+b") as file:
                file.write(struct.pack("=q", int(difference_ns)))


@pytest.fixture(scope="module")
def clocks(tmp_path_factory: pytest.TempPathFactory) -> Clocks:
    return Clocks(tmp_path_factory.mktemp("clocks"))


@pytest.fixture(scope="module")
def cluster(make_cluster: Callable[..., Cluster], clocks: Clocks) -> Cluster:
    clocks.set(*(hours * HOUR_NS for hours in JUMPS[0]))
    return make_cluster(program=clocks.program)


class Appenders:
    """Append lines to one file through every node, each fsynced, until told to stop."""

    def __init__(self, folders: list[Path]) -> None:
        self.done = [0] * len(folders)
        self.failures: list[OSError] = []
        self._ended = False
        self._threads = [
            threading.Thread(target=self._run, args=(n, folder / "log"))
            for n, folder in enumerate(folders)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, n: int, path: Path) -> None:
        try:
            while not self._ended:
                file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
                os.write(file, b"%d %d\n" % (n, self.done[n]))
                os.fsync(file)
                os.close(file)
                self.done[n] += 1
        except OSError as failure:
            self.failures.append(failure)

    def wait(self) -> None:
        """Wait until each has appended some lines more."""
        wanted = [done + LINES_BETWEEN for done in self.done]
        for _ in range(1200):
            assert not self.failures
            if all(done >= least for done, least in zip(self.done, wanted, strict=True)):
                return
            time.sleep(0.05)
        raise AssertionError(f"no progress: {self.done} of {wanted}")

    def stop(self) -> None:
        self._ended = True
        for thread in self._threads:
            thread.join()


def test_jumps_of_hours_expire_and_lose_nothing(
    folders: list[Path], cluster: Cluster, clocks: Clocks
) -> None:
    jump(folders, cluster, clocks)


def test_with_etcd_too(
    make_cluster: Callable[..., Cluster], clocks: Clocks, etcd_servers: Callable[..., Any]
) -> None:
    provider = f"etcd:{etcd_servers(1).endpoints[0]}"
    cluster = make_cluster(3, 3, provider, program=clocks.program)
    jump([node.mount for node in cluster.nodes], cluster, clocks)


def jump(folders: list[Path], cluster: Cluster, clocks: Clocks) -> None:
    """Let the clocks jump under writers, and check that nobody noticed."""
    appenders = Appenders(folders)
    try:
        appenders.wait()
        epochs = [node.ask("status")["epoch"] for node in cluster.nodes]
        for hours in JUMPS[1:]:
            clocks.set(*(hour * HOUR_NS for hour in hours))
            appenders.wait()
    finally:
        appenders.stop()
    assert [node.ask("status")["epoch"] for node in cluster.nodes] == epochs, "nobody was removed"
    expected = {b"%d %d" % (n, i) for n, done in enumerate(appenders.done) for i in range(done)}
    for folder in folders:
        lines = (folder / "log").read_bytes().splitlines()
        assert len(lines) == len(expected)
        assert set(lines) == expected


def test_a_node_comes_back_with_another_time_than_it_had(
    folders: list[Path], cluster: Cluster, clocks: Clocks
) -> None:
    clocks.set(0, 30 * HOUR_NS, 0)
    cluster.kill("n2")
    clocks.set(-HOUR_NS, -30 * HOUR_NS, HOUR_NS)
    (folders[0] / "file").write_text("written meanwhile")
    cluster.start("n2")
    assert (folders[1] / "file").read_text() == "written meanwhile"
    clocks.set(0, 0, 0)


def test_who_has_seen_a_change_makes_a_later_one(folders: list[Path], clocks: Clocks) -> None:
    """As make needs it: what was made from a file is newer than it, on whichever node."""
    clocks.set(0.4e9, 0, -0.4e9)
    (folders[0] / "both").write_text("")
    for turn, (source, target) in enumerate(itertools.permutations(folders, 2)):
        before = os.stat(source / "both")
        (source / f"source-{turn}").write_text("source")
        os.stat(target / f"source-{turn}")
        (target / f"target-{turn}").write_text("target")
        with (target / "both").open("a") as file:
            file.write("changed on every node")
        names = (f"source-{turn}", f"target-{turn}", "both")
        seen = [before, *(os.stat(folders[0] / name) for name in names)]
        os.truncate(source / "both", turn)
        seen.append(os.stat(folders[0] / "both"))
        times = [status.st_mtime_ns for status in seen]
        assert times == sorted(set(times)), names
        assert [status.st_ctime_ns for status in seen] == times, names
    clocks.set(0, 0, 0)
