"""Real mounts whose views are in a real etcd cluster, while members of etcd die and come back."""

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clusterfs.cli.dev import Cluster, Node

LEASE_S = 12.0  # a disk may stall under the members of etcd for seconds
PATIENCE_S = 150.0


@pytest.fixture(scope="module")
def servers(etcd_servers: Callable[..., Any]) -> Any:
    return etcd_servers(3)


@pytest.fixture(scope="module")
def cluster(make_cluster: Callable[..., Cluster], servers: Any) -> Cluster:
    provider = "etcd:" + ",".join(servers.endpoints)
    return make_cluster(provider=provider, settings={"lease_s": str(LEASE_S)})


class Writer:
    """Appends numbered lines, each fsynced, until told to stop."""

    def __init__(self, path: Path) -> None:
        self.done = 0
        self.failure: OSError | None = None
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
            while not self._stop.is_set():
                os.write(descriptor, b"%d\n" % self.done)
                os.fsync(descriptor)
                self.done += 1
            os.close(descriptor)
        except OSError as failure:
            self.failure = failure

    def wait(self, lines: int, timeout_s: float = PATIENCE_S) -> None:
        """Wait until that many lines more are written."""
        wanted, slept_s = self.done + lines, 0.0
        while self.done < wanted:
            assert self.failure is None
            assert slept_s < timeout_s, "the writer makes no progress"
            time.sleep(0.05)
            slept_s += 0.05

    def stop(self) -> int:
        self._stop.set()
        self._thread.join()
        return self.done


def test_writers_go_on_without_one_member_of_etcd(
    folders: list[Path], servers: Any, cluster: Cluster
) -> None:
    writer = Writer(folders[0] / "log")
    epoch = cluster.nodes[0].ask("status")["epoch"]
    writer.wait(5)
    servers.stop(0)
    before = [renewals(node) for node in cluster.nodes]
    for node, count in zip(cluster.nodes, before, strict=True):
        eventually(lambda node=node, count=count: renewals(node) > count + 2)  # type: ignore[misc]
    writer.wait(5)
    servers.start(0)
    servers.wait(0)
    done = writer.stop()
    assert writer.failure is None
    assert cluster.nodes[0].ask("status")["epoch"] == epoch, "nobody was removed"
    assert (folders[2] / "log").read_bytes() == b"".join(b"%d\n" % n for n in range(done))


def test_without_etcd_the_cluster_stalls_and_resumes_by_itself(
    folders: list[Path], servers: Any, cluster: Cluster
) -> None:
    writer = Writer(folders[1] / "log")
    writer.wait(5)
    for n in (0, 1, 2):
        servers.stop(n)
    for node in cluster.nodes:
        eventually(lambda node=node: node.ask("status")["lease_left_s"] == 0)  # type: ignore[misc]
    written = writer.done
    time.sleep(1.0)
    assert writer.done <= written + 1, "what was under way may end, and no more"
    assert writer.failure is None
    for n in (0, 1, 2):
        servers.start(n)
    writer.wait(5)
    done = writer.stop()
    assert writer.failure is None
    expected = b"".join(b"%d\n" % n for n in range(done))
    for folder in folders:
        assert (folder / "log").read_bytes() == expected


def test_where_errors_are_wanted_programs_get_them_and_go_on_afterwards(
    make_cluster: Callable[..., Cluster], etcd_servers: Callable[..., Any]
) -> None:
    """`on_lost = "eio"`: no call waits for the cluster, and no handle is lost with it."""
    servers = etcd_servers(1)
    settings = {"on_lost": '"eio"', "provider": f'"etcd:{servers.endpoints[0]}"'}
    cluster = make_cluster(1, 1, settings=settings)
    path = cluster.nodes[0].mount / "file"
    with path.open("xb+", buffering=0) as file:
        file.write(b"before")
        os.fsync(file.fileno())
        servers.stop(0)
        eventually(lambda: refusal(file.fileno()) == errno.EIO)
        with pytest.raises(OSError, match="Input/output error"):
            path.with_name("other").touch()
        servers.start(0)
        eventually(lambda: refusal(file.fileno()) == 0)
        os.pwrite(file.fileno(), b"behind", 6)
        os.fsync(file.fileno())
    assert path.read_bytes() == b"beforebehind"


def renewals(node: Node) -> int:
    return int(node.ask("statistics")["statistics"]["membership"]["renewals"])


def refusal(descriptor: int) -> int:
    """Return the errno of a read that no cache of the kernel answers; 0: it has the data."""
    try:
        assert os.pread(descriptor, 6, 0) == b"before"
    except OSError as failure:
        return failure.errno or 0
    return 0


def eventually(so: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    slept_s = 0.0
    while not so():
        assert slept_s < timeout_s, "it does not come to be so"
        time.sleep(0.1)
        slept_s += 0.1
