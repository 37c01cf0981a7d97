"""Ends a cluster that hangs, and with it the test that waits for it.

A system call on a mount whose daemon hangs, or waits for a node that only the test could bring
back, cannot be interrupted. The watchdog kills the daemons and aborts their FUSE connections in
time; the call fails and so does the test.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from clusterfs.cli import processes
from clusterfs.cli.control import MOUNTINFO
from clusterfs.cli.dev import Cluster, clear_mount
from clusterfs.errors import SetupError

_LIMIT_S = 600
_SHARE = 0.8  # of the time that a test has


@contextlib.contextmanager
def watched(
    request: pytest.FixtureRequest, clusters: Callable[[], Iterable[Cluster]]
) -> Iterator[None]:
    """Wreck the clusters that there are, shortly before a test's time is over."""
    marker = request.node.get_closest_marker("timeout")
    asked_s = request.config.getoption("timeout")
    limit_s = marker.args[0] if marker and marker.args else asked_s or _LIMIT_S
    timer = threading.Timer(limit_s * _SHARE, lambda: [wreck(one) for one in list(clusters())])
    timer.daemon = True
    timer.start()
    yield
    timer.cancel()


def wreck(cluster: Cluster) -> None:
    """End everything a cluster runs, hung or not, without asking it."""
    with contextlib.suppress(SetupError):
        for node in cluster.nodes:
            process = node.process
            if process and processes.send(process, signal.SIGKILL):
                processes.wait_gone(process, 10)
    abort_mounts(cluster.folder)


def abort_mounts(folder: Path) -> None:
    """Abort and detach every FUSE mount under the folder."""
    for line in MOUNTINFO.read_text().splitlines():
        fields = line.split(" ")
        if fields[4].startswith(f"{folder}/") and " - fuse" in line:
            minor = fields[2].partition(":")[2]
            with contextlib.suppress(OSError):
                Path(f"/sys/fs/fuse/connections/{minor}/abort").write_text("1")
            with contextlib.suppress(SetupError):
                clear_mount(Path(fields[4]))
