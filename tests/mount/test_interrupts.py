"""A program that waits for another node can be ended: by Ctrl-C, by SIGKILL; and by nothing less.

Node 2 holds a file exclusively and stands still. Until it is removed (its lease) whoever wants the
file on node 1 waits. That a wait ended by the signal, and not by the removal, is told by the view.
"""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clusterfs.cli.dev import Cluster, Node

LEASE_S = 20.0  # long enough for programs to start and wait on a busy machine
PATIENCE_S = 150.0
READ = "import sys; open(sys.argv[1]).read()"
CAUGHT = """
import sys
try:
    open(sys.argv[1]).read()
except KeyboardInterrupt:
    sys.exit(77)
"""
ALARMED = """
import ctypes, signal, sys
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, True)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
libc = ctypes.CDLL(None, use_errno=True)
descriptor = libc.open(sys.argv[1].encode(), 0)
signal.setitimer(signal.ITIMER_REAL, 0)
sys.exit(0 if descriptor >= 0 else ctypes.get_errno())
"""


@pytest.fixture(scope="module")
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    return make_cluster(settings={"lease_s": str(LEASE_S)})


@pytest.fixture
def held(folders: list[Path], cluster: Cluster) -> Iterator[Path]:
    """A file, as node 1 names it, that node 2 has locked and, standing still, does not give up."""
    (folders[1] / "file").write_text("content")
    assert (folders[0] / "file").read_text() == "content"
    (folders[1] / "file").write_text("changed")  # node 2 has it exclusively again
    cluster.pause("n2")
    yield folders[0] / "file"
    cluster.resume("n2")
    assert (folders[0] / "file").read_text() == "changed"


def started(program: str, path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", program, str(path)])


def wait_until_stalled(program: subprocess.Popen[bytes]) -> None:
    """Wait until the program is in a request that nobody answers."""
    kernel_function = Path(f"/proc/{program.pid}/wchan")
    while "request_wait_answer" not in kernel_function.read_text():
        assert program.poll() is None
        time.sleep(0.01)


def epoch(node: Node) -> int:
    return int(node.ask("status")["epoch"])


@pytest.mark.parametrize(
    ("program", "number", "code"),
    [
        (READ, signal.SIGKILL, -signal.SIGKILL),
        (CAUGHT, signal.SIGINT, 77),
        (READ, signal.SIGTERM, -signal.SIGTERM),
    ],
)
def test_a_signal_ends_the_wait_for_a_lock(
    held: Path, cluster: Cluster, program: str, number: signal.Signals, code: int
) -> None:
    before = epoch(cluster.nodes[0])
    waiting = started(program, held)
    wait_until_stalled(waiting)
    waiting.send_signal(number)
    assert waiting.wait(PATIENCE_S) == code
    assert epoch(cluster.nodes[0]) == before, "it waited until the other node was removed"


def test_a_timer_does_not_end_a_wait(held: Path, cluster: Cluster) -> None:
    waiting = started(ALARMED, held)
    wait_until_stalled(waiting)
    time.sleep(1.0)  # for some alarms
    assert waiting.poll() is None
    cluster.resume("n2")
    assert waiting.wait(PATIENCE_S) == 0


def test_a_program_killed_at_any_moment_does_not_stop_the_node(
    folders: list[Path], cluster: Cluster
) -> None:
    """The kernel takes a request back that was not read yet, when its program is killed."""
    moments = random.Random(1)
    for _ in range(120):
        program = os.fork()
        if not program:
            for number in itertools.count():
                with contextlib.suppress(FileNotFoundError):
                    os.stat(folders[0] / f"none-{os.getpid()}-{number}")
        time.sleep(moments.uniform(0.001, 0.01))
        os.kill(program, signal.SIGKILL)
        os.waitpid(program, 0)
        assert cluster.nodes[0].ask("status")["lease_left_s"] > 0


def test_a_node_that_is_out_lets_programs_be_killed(folders: list[Path], cluster: Cluster) -> None:
    node = cluster.nodes[1]
    (folders[1] / "file").write_text("x")
    provider = cluster.folder / "cluster.db"
    away = provider.with_name("away.db")
    provider.rename(away)  # nobody can renew: all nodes stall when their leases end
    try:
        deadline_s = time.monotonic() + PATIENCE_S
        while node.ask("status")["lease_left_s"] > 0:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        for program in (READ, "import os, sys; os.mkdir(sys.argv[1] + 'd')"):
            waiting = started(program, folders[1] / "file")
            wait_until_stalled(waiting)
            waiting.kill()
            assert waiting.wait(PATIENCE_S) == -signal.SIGKILL
            assert node.ask("status")["lease_left_s"] == 0
    finally:
        away.rename(provider)
    assert (folders[0] / "file").read_text() == "x"
    assert not os.path.exists(folders[0] / "filed")
