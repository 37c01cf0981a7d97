"""A daemon is replaced below open files: on request, and by its supervisor after a crash."""

import errno
import fcntl
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from clusterfs.cli import processes
from clusterfs.cli.dev import Cluster, Node
from clusterfs.errors import NotAnswering, SetupError
from tests.mount.support.lockers import lockers

PATIENCE_S = 150.0


MOST_CRASHES = 3  # if daemons die more often in a minute, the supervisor gives the mount up
crashes: Counter[Path] = Counter()  # by the cluster's folder


@pytest.fixture(scope="module")
def pairs(make_cluster: Callable[..., Cluster]) -> Iterator[list[Cluster]]:
    """Return the clusters of these tests, to be unmounted before `make_cluster` ends them."""
    del make_cluster
    made: list[Cluster] = []
    yield made
    for cluster in made:
        with suppress(SetupError):
            cluster.down()


@pytest.fixture
def pair(pairs: list[Cluster], make_cluster: Callable[..., Cluster]) -> Cluster:
    """Two nodes whose daemons are replaced after a crash; so they are unmounted, not killed."""
    if not pairs or crashes[pairs[-1].folder] == MOST_CRASHES:
        pairs.append(make_cluster(2, 2, settings={"after_crash": '"restart"'}))
    return pairs[-1]


@pytest.fixture
def node(pair: Cluster) -> Node:
    return pair.nodes[0]


def upgrade(node: Node) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "clusterfs.cli.main", "upgrade", str(node.config), "--json"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S * 2,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def crash(node: Node) -> None:
    """Kill the daemon alone, and wait until another one serves."""
    process = node.process
    assert process is not None
    crashes[node.folder] += 1
    assert processes.send(process, signal.SIGKILL)
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        assert time.monotonic() < deadline_s, "no other daemon serves"
        try:
            status = node.ask("status")
        except NotAnswering:
            status = {"serving": False, "pid": process.pid}
        if status["serving"] and status["pid"] != process.pid:
            return
        time.sleep(0.1)


REPLACE = {"upgrade": upgrade, "crash": crash}


class Program:
    """Uses a mount all the time: each error is kept."""

    def __init__(self, folder: Path) -> None:
        self.errors: list[OSError] = []
        self.rounds = 0
        self._folder = folder
        self._stop = False
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop:
            try:
                self._round(self._folder / f"round-{self.rounds}")
            except OSError as error:
                self.errors.append(error)
            self.rounds += 1

    def _round(self, name: Path) -> None:
        name.mkdir()
        with (name / "file").open("xb+", buffering=0) as file:
            file.write(b"1234")
            os.fsync(file.fileno())
            assert os.pread(file.fileno(), 4, 0) == b"1234"
        os.symlink("file", name / "link")
        os.rename(name / "file", name / "renamed")
        os.unlink(name / "link")
        assert os.listdir(name) == ["renamed"]

    def wait_rounds(self, more: int) -> None:
        wanted = self.rounds + more
        deadline_s = time.monotonic() + PATIENCE_S
        while self.rounds < wanted:
            assert time.monotonic() < deadline_s, f"it hangs in round {self.rounds}"
            time.sleep(0.02)

    def stop(self) -> None:
        self._stop = True
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


@pytest.fixture
def program(node: Node, request: pytest.FixtureRequest) -> Iterator[Program]:
    folder = node.mount / request.node.name
    folder.mkdir()
    program = Program(folder)
    yield program
    program.stop()


@pytest.mark.parametrize("how", REPLACE)
def test_open_files_and_running_programs_go_on(
    how: str, pair: Cluster, node: Node, program: Program
) -> None:
    path = node.mount / f"open-{how}"
    with path.open("xb+", buffering=0) as file, path.open("rb", buffering=0) as reader:
        os.pwrite(file.fileno(), b"before", 0)
        os.fsync(file.fileno())
        listing = os.scandir(node.mount)
        mapped = mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ)
        assert mapped[:6] == b"before"
        program.wait_rounds(2)
        REPLACE[how](node)
        assert os.pread(reader.fileno(), 6, 0) == b"before"
        assert mapped[:6] == b"before"
        os.pwrite(file.fileno(), b"after!", 0)
        os.fsync(file.fileno())
        assert mapped[:6] == b"after!"
        assert path.name in [entry.name for entry in listing]
        program.wait_rounds(2)
        assert (pair.nodes[1].mount / path.name).read_bytes() == b"after!"
        mapped.close()
    # Whoever had written and not synced when the daemon died is told so.
    excused = {errno.EIO} if how == "crash" else set()
    assert [error for error in program.errors if error.errno not in excused] == []


def test_what_was_written_and_not_synced_is_lost_with_a_crash_and_fsync_says_so(
    node: Node,
) -> None:
    dirty, safe = node.mount / "dirty", node.mount / "safe"
    with dirty.open("xb+", buffering=0) as lost, safe.open("xb+", buffering=0) as kept:
        for file in (lost, kept):
            file.write(b"synced")
            os.fsync(file.fileno())
        # Such a file is written back when somebody asks for it, and nobody does.
        os.setxattr(dirty, "user.clusterfs.atomic_fsync", b"1")
        os.pwrite(lost.fileno(), b"lost..", 0)
        crash(node)
        with pytest.raises(OSError, match="Input/output error") as refused:
            os.fsync(lost.fileno())
        assert refused.value.errno == errno.EIO
        with pytest.raises(OSError, match="Input/output error"):
            os.pwrite(lost.fileno(), b"more", 6)
        os.pwrite(kept.fileno(), b"more", 6)
        os.fsync(kept.fileno())
    assert safe.read_bytes() == b"syncedmore"
    assert dirty.read_bytes() == b"synced"


def test_a_handle_whose_file_another_node_took_over_meanwhile_is_dead(
    pair: Cluster, node: Node
) -> None:
    path = node.mount / "image"
    with path.open("xb+", buffering=0) as file:
        file.write(b"mine..")
        os.fsync(file.fileno())
        supervisor = node.supervisor
        assert supervisor is not None
        process = node.process
        assert process is not None
        assert processes.send(supervisor, signal.SIGSTOP)  # the next daemon comes late
        try:
            crashes[node.folder] += 1
            assert processes.send(process, signal.SIGKILL)
            with (pair.nodes[1].mount / "image").open("rb+", buffering=0) as other:
                other.write(b"theirs")  # waits until this node is out
                os.fsync(other.fileno())
        finally:
            processes.send(supervisor, signal.SIGCONT)
        with pytest.raises(OSError, match="Input/output error"):
            os.pwrite(file.fileno(), b"again.", 0)
        assert path.read_bytes() == b"theirs"


LOCKS: tuple[tuple[Any, ...], ...] = (
    ("write", "image", 0, 10),
    ("ofd_write", "image", 100, 1),
    ("ofd_read", "image", 200, 5),
    ("flock", "other", "exclusive"),
)


@pytest.mark.parametrize("how", REPLACE)
def test_file_locks_are_held_before_and_after(how: str, pair: Cluster, node: Node) -> None:
    """A program has locks as QEMU has on an image; another node's programs want them all the time.

    Theirs do not wait for the locks: who waits would get them, and an upgrade is refused.
    """
    folder, elsewhere = node.mount / f"locked-{how}", pair.nodes[1].mount / f"locked-{how}"
    folder.mkdir()
    with lockers() as make:
        mine, theirs = make(), make()
        for locker, place in ((mine, folder), (theirs, elsewhere)):
            locker.opened(place / "image", "image").opened(place / "other", "other")
        for words in LOCKS:
            assert mine.tell(*words) == 0
        assert mine.tell("unlock", "image", 5, 5) == 0
        for label in ("image", "other"):
            assert mine.tell("sync", label) == 0
        REPLACE[how](node)
        beside: tuple[Any, ...] = ("write", "image", 5, 5)
        assert theirs.tell(*beside) == 0
        against_the_reader = ("ofd_write", "image", 204, 10)
        for words in (*LOCKS[:2], *LOCKS[3:], ("write", "image", 4, 1), against_the_reader):
            assert theirs.tell(*words) == errno.EAGAIN, words
        assert mine.tell("put", "image", 0, "still mine") == 0
        assert mine.tell("sync", "image") == 0
        assert mine.tell("ofd_unlock", "image", 100, 1) == 0
        assert theirs.tell(*LOCKS[1]) == 0
        mine.end()
        wanted = ("write", "image", 0, 50, True), ("ofd_write", "image", 150, 100, True)
        for words in (*wanted, ("flock", "other", "exclusive", True)):
            assert theirs.tell(*words) == 0, words


def test_a_lock_that_another_node_got_meanwhile_makes_the_handle_dead(
    pair: Cluster, node: Node
) -> None:
    path = node.mount / "wanted"
    with lockers() as make:
        mine, theirs = make(), make()
        mine.opened(path)
        theirs.opened(pair.nodes[1].mount / "wanted")
        assert mine.tell("write", "f", 0, 1) == 0
        assert mine.tell("sync", "f") == 0
        theirs.begin("write", "f", 0, 1, True)
        eventually_waits(pair.nodes[1])
        done = subprocess.run(
            [sys.executable, "-m", "clusterfs.cli.main", "upgrade", str(node.config)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S * 2,
            check=False,
        )
        assert done.returncode == 1
        assert "programs on n2 wait for file locks" in done.stderr
        assert mine.tell("put", "f", 0, "here") == 0, "nothing has happened"
        assert mine.tell("sync", "f") == 0
        crash(node)
        assert theirs.answer() == 0
        assert mine.tell("put", "f", 0, "late") == errno.EIO
        assert theirs.tell("put", "f", 0, "mine") == 0
        assert theirs.tell("sync", "f") == 0
        assert path.read_bytes() == b"mine"


def eventually_waits(node: Node) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not any(entry["waiting"] for entry in node.ask("locks")["locks"]["ranges"]):
        assert time.monotonic() < deadline_s, "nobody waits there"
        time.sleep(0.05)


def test_a_file_that_was_unlinked_while_it_was_open_survives_an_upgrade(
    make_cluster: Callable[..., Cluster],
) -> None:
    (node,) = make_cluster(1, 1).nodes
    path = node.mount / "temporary"
    with path.open("xb+", buffering=0) as file:
        file.write(b"still here")
        path.unlink()
        fcntl.flock(file, fcntl.LOCK_EX)
        upgrade(node)
        fcntl.flock(file, fcntl.LOCK_EX)
        assert os.pread(file.fileno(), 100, 0) == b"still here"
        os.pwrite(file.fileno(), b"and writable", 0)
        os.fsync(file.fileno())
