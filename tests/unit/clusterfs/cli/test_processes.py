import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from clusterfs.cli import processes


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "100"])
    yield process
    process.kill()
    process.wait()


def test_a_process_is_running_paused_and_gone(child: subprocess.Popen[bytes]) -> None:
    process = processes.identify(child.pid)
    assert process is not None
    assert processes.send(process, signal.SIGSTOP)
    os.waitpid(child.pid, os.WUNTRACED)
    assert processes.state(process) == "paused"
    assert processes.send(process, signal.SIGCONT)
    os.waitpid(child.pid, os.WCONTINUED)
    assert processes.state(process) == "running"
    assert not processes.wait_gone(process, 0)
    assert processes.send(process, signal.SIGKILL)
    assert processes.wait_gone(process, 10)
    assert processes.state(process) == "gone"  # although nobody has reaped it
    assert not processes.send(process, signal.SIGTERM)


@pytest.mark.parametrize("field", ["started", "boot"])
def test_a_reused_pid_is_another_process(child: subprocess.Popen[bytes], field: str) -> None:
    process = processes.identify(child.pid)
    assert process is not None
    other = {"started": process.started - 1} if field == "started" else {"boot": "yesterday"}
    before = msgspec.structs.replace(process, **other)
    assert processes.state(before) == "gone"
    assert not processes.send(before, signal.SIGKILL)
    assert processes.wait_gone(before, 0)
    assert child.poll() is None


def test_a_pid_file_survives_only_whole(tmp_path: Path) -> None:
    path = tmp_path / "n1.pid"
    assert processes.recorded(path) is None
    processes.record(path, processes.family())
    found = processes.recorded(path)
    assert found is not None
    assert found.daemon.pid == os.getpid()
    assert found.supervisor.pid == os.getppid()
    path.write_bytes(path.read_bytes()[:20])
    assert processes.recorded(path) is None


def test_nobody_has_a_pid_beyond_the_last() -> None:
    assert processes.identify(1 << 30) is None
