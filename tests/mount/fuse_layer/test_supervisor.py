"""What is left of a mount when its daemon is stopped or killed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

PAGE = 4096


def cached_file(served: Any, pages: int = 1) -> tuple[int, int]:
    """Make a file whose first and last page are cached; returns (descriptor, inode)."""
    path = served.directory / "file"
    path.write_bytes(b"old" + bytes(pages * PAGE - 3))
    served.ask("change", number=path.stat().st_ino, text="old", offset=(pages - 1) * PAGE)
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # one page at a time
    assert os.pread(descriptor, 3, 0) == b"old"
    assert os.pread(descriptor, 3, (pages - 1) * PAGE) == b"old"
    return descriptor, os.fstat(descriptor).st_ino


def test_caches_may_be_believed_while_the_lease_holds(served: Any) -> None:
    descriptor, _ = cached_file(served)
    served.signal_daemon(signal.SIGSTOP)
    assert os.pread(descriptor, 3, 0) == b"old"
    assert (served.directory / "file").stat().st_size == PAGE
    served.signal_daemon(signal.SIGCONT)
    assert served.ask("drops") == 0
    os.close(descriptor)


def test_a_stopped_daemon_loses_its_caches_when_its_lease_ends(
    served: Any, background: Callable[..., Any], hanging: Callable[..., Any]
) -> None:
    descriptor, number = cached_file(served)
    served.ask("change", number=number, text="new", offset=0)
    served.ask("change", number=number, text="longer", offset=PAGE)
    served.ask("lease", seconds=0.5)
    served.signal_daemon(signal.SIGSTOP)
    read = hanging(lambda: os.pread(descriptor, 3, 0))
    stat = background((served.directory / "file").stat)
    served.signal_daemon(signal.SIGCONT)
    assert read.outcome() == b"new"
    assert stat.outcome().st_size == PAGE + len("longer")
    assert served.ask("drops") >= 1
    os.close(descriptor)


def test_a_read_in_flight_does_not_hide_the_pages_around_it(
    served: Any,
    background: Callable[..., Any],
    eventually: Callable[..., Any],
    hanging: Callable[..., Any],
) -> None:
    descriptor, number = cached_file(served, pages=64)
    tag = f"page {32 * PAGE}"
    served.ask("park", tag=tag)
    parked = background(lambda: os.pread(descriptor, 3, 32 * PAGE))
    eventually(lambda: served.ask("waiting", tag=tag), "the read is parked")
    for page in (0, 32, 63):
        served.ask("change", number=number, text="new", offset=page * PAGE)
    served.ask("lease", seconds=0.1)
    served.signal_daemon(signal.SIGSTOP)
    last = hanging(lambda: os.pread(descriptor, 3, 63 * PAGE))
    first = hanging(lambda: os.pread(descriptor, 3, 0))
    assert not parked.done
    served.signal_daemon(signal.SIGCONT)
    assert first.outcome() == b"new"
    assert last.outcome() == b"new"
    served.ask("unpark", tag=tag)
    assert parked.outcome() == b"new"
    assert served.ask("drops") >= 1  # and the supervisor is still there
    os.close(descriptor)


def test_a_killed_daemon_leaves_nothing_to_read_and_a_usable_directory(served: Any) -> None:
    descriptor, _ = cached_file(served)
    served.signal_daemon(signal.SIGKILL)
    assert served.process.wait(120) == 128 + signal.SIGKILL
    assert json.loads(served.report.read_text()) == [7, 1234, False]
    with pytest.raises(OSError, match=r"endpoint|abort"):
        os.pread(descriptor, 3, 0)
    with suppress(OSError):
        os.close(descriptor)
    assert not os.path.ismount(served.directory)
    (served.directory / "beneath").write_bytes(b"the directory is usable")


def test_a_request_that_waits_ends_with_the_daemon(
    served: Any, background: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    path = served.directory / "file"
    path.write_bytes(b"x" * PAGE)
    served.ask("park", tag="page 0")
    reading = background(path.read_bytes)
    eventually(lambda: served.ask("waiting", tag="page 0"), "the read is parked")
    served.signal_daemon(signal.SIGKILL)
    with pytest.raises(OSError, match=r"endpoint|abort"):
        reading.outcome()


@pytest.fixture
def _without_fusectl() -> Iterator[None]:
    unmount = ["umount", "/sys/fs/fuse/connections"]
    was_mounted = subprocess.run(unmount, check=False, capture_output=True).returncode == 0
    yield
    if not was_mounted:
        subprocess.run(unmount, check=False, capture_output=True)


@pytest.mark.usefixtures("_without_fusectl")
def test_a_mount_that_was_detached_while_busy_ends_with_the_daemon(
    served: Any, background: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    path = served.directory / "file"
    path.write_bytes(b"x" * PAGE)
    served.ask("park", tag="page 0")
    reading = background(path.read_bytes)
    eventually(lambda: served.ask("waiting", tag="page 0"), "the read is parked")
    subprocess.run(["umount", "-l", served.directory], check=True)
    served.signal_daemon(signal.SIGKILL)
    assert served.process.wait(120) == 128 + signal.SIGKILL
    with pytest.raises(OSError, match=r"endpoint|abort"):
        reading.outcome()


def test_a_daemon_that_gives_up_is_treated_as_dead(served: Any) -> None:
    served.tell("exit_badly")
    assert served.process.wait(120) == 3
    assert json.loads(served.report.read_text()) == [7, 1234, False]


def test_a_daemon_without_supervisor_ends(served: Any, eventually: Callable[..., Any]) -> None:
    os.kill(served.supervisor, signal.SIGKILL)
    eventually(lambda: not running(served.daemon), "the daemon ends")


def test_the_supervisor_is_small(served: Any) -> None:
    status = Path(f"/proc/{served.supervisor}/smaps_rollup").read_text()
    maps = Path(f"/proc/{served.supervisor}/maps").read_text()
    private = sum(int(line.split()[1]) for line in status.splitlines() if "Private" in line)
    assert private < 16 << 10
    assert "pyfuse3" not in maps
    assert "libfuse" not in maps


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it ended before, or while we read
        return False


COMMAND = """
import sys, os, time
from clusterfs.errors import SetupError
from clusterfs.fuse.supervisor import run_supervised

def fails(beat, ready):
    raise SetupError("the brick is\\nforeign")

def dies(beat, ready):
    os._exit(9)

def works(beat, ready):
    open(sys.argv[2], "w").write(str(os.getpid()))
    ready.ready()
    print("said later", flush=True)
    while not os.path.exists(sys.argv[3]):
        time.sleep(0.01)
    return 0

sys.exit(run_supervised(globals()[sys.argv[1]], foreground=False, log_path=sys.argv[4]))
"""


def command(main: str, tmp_path: Path) -> "subprocess.CompletedProcess[str]":
    arguments = [str(tmp_path / name) for name in ("pid", "end", "log")]
    return subprocess.run(
        [sys.executable, "-c", COMMAND, main, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_command_says_in_one_line_why_the_daemon_cannot_start(tmp_path: Path) -> None:
    ended = command("fails", tmp_path)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "mount.clusterfs: the brick is foreign\n"


def test_the_command_notices_a_daemon_that_ends_without_a_word(tmp_path: Path) -> None:
    ended = command("dies", tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert str(tmp_path / "log") in ended.stderr


def test_the_command_returns_when_the_mount_answers(
    tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    ended = command("works", tmp_path)  # its pipes close although the daemon runs on
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    pid = int((tmp_path / "pid").read_text())
    assert running(pid)
    (tmp_path / "end").touch()
    eventually(lambda: not running(pid), "the daemon ends")
    assert (tmp_path / "log").read_text() == "said later\n"
