"""File locks between programs on three nodes: exclusion, fairness, and what lets them go."""

import errno
import os
import signal
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
        time.sleep(0.02)


def waits(cluster: Cluster, node: int) -> int:
    """How many requests for file locks wait on a node."""
    described = cluster.nodes[node].ask("locks")["locks"]["ranges"]
    return sum(len(entry["waiting"]) for entry in described)


def left(cluster: Cluster) -> list[Any]:
    """Whatever any node knows of as held or wanted."""
    return [
        entry
        for node in cluster.nodes
        for key in ("ranges", "kept_ranges")
        for entry in node.ask("locks")["locks"][key]
        if entry["held"] or entry["waiting"]
    ]


@pytest.mark.parametrize("word", ["write", "ofd_write"])
def test_a_range_excludes_other_nodes_and_only_there(programs: list[Locker], word: str) -> None:
    one, two, three = programs
    unlock = word.replace("write", "unlock")
    assert one.tell(word, "f", 10, 10) == 0
    assert two.tell(word, "f", 19, 1) == errno.EAGAIN
    assert three.tell(word, "f", 20, 5) == 0
    assert two.tell(word.replace("write", "read"), "f", 5, 10) == errno.EAGAIN
    assert one.tell(unlock, "f", 12, 2) == 0  # splits it
    assert two.tell(word, "f", 12, 2) == 0
    assert two.tell(word, "f", 11, 1) == errno.EAGAIN
    assert two.tell(unlock, "f", 0, 0) == 0
    assert one.tell(unlock, "f", 0, 0) == 0
    assert two.tell(word, "f", 0, 20) == 0
    assert three.tell(word, "f", 0, 0) == errno.EAGAIN


def test_getlk_names_the_holder_on_another_node(programs: list[Locker]) -> None:
    one, two, _ = programs
    assert two.tell("test", "f", 0, 0)[0] == "unlock"
    assert one.tell("write", "f", 100, 50) == 0
    assert two.tell("test", "f", 0, 0) == ["write", 100, 50, one.pid]
    assert one.tell("read", "f", 100, 0) == 0
    assert two.tell("test", "f", 120, 1) == ["read", 100, 0, one.pid]
    assert two.tell("test", "f", 0, 100)[0] == "unlock"
    assert one.tell("test", "f", 0, 0)[0] == "unlock"  # never in its own way


def test_readers_share_and_one_becomes_a_writer_when_the_others_are_gone(
    programs: list[Locker],
) -> None:
    one, two, three = programs
    for locker in programs:
        assert locker.tell("read", "f", 0, 10) == 0
    assert one.tell("write", "f", 0, 10) == errno.EAGAIN
    one.begin("write", "f", 0, 10, WAIT)
    assert two.tell("unlock", "f", 0, 10) == 0
    assert three.tell("unlock", "f", 0, 10) == 0
    assert one.answer() == 0
    assert two.tell("read", "f", 0, 10) == errno.EAGAIN
    assert one.tell("read", "f", 0, 10) == 0  # weaker again
    assert two.tell("read", "f", 0, 10) == 0


def test_flock_excludes_other_nodes_and_knows_nothing_of_fcntl(programs: list[Locker]) -> None:
    one, two, three = programs
    assert one.tell("flock", "f", "exclusive") == 0
    assert two.tell("flock", "f", "shared") == errno.EAGAIN
    assert three.tell("write", "f", 0, 0) == 0
    assert one.tell("flock", "f", "shared") == 0
    assert two.tell("flock", "f", "shared") == 0
    two.begin("flock", "f", "exclusive", WAIT)
    assert one.tell("flock", "f", "unlock") == 0
    assert two.answer() == 0


def test_waiters_of_all_nodes_are_served_in_the_order_of_asking(
    programs: list[Locker], make: Make, folders: list[Path], cluster: Cluster
) -> None:
    assert programs[0].tell("write", "f", 0, 1) == 0
    queue = [make().opened(folders[place % 3] / "file") for place in (1, 2, 0, 2, 1)]
    for place, locker in enumerate(queue):
        locker.begin("write", "f", 0, 1, WAIT)
        eventually(lambda: sum(waits(cluster, node) for node in range(3)), place + 1)
    assert programs[0].tell("unlock", "f", 0, 1) == 0
    for place, locker in enumerate(queue):
        assert locker.answer() == 0
        assert not any(later.answered for later in queue[place + 1 :])
        assert locker.tell("unlock", "f", 0, 1) == 0


def test_any_close_by_the_process_drops_its_posix_locks_but_no_others(
    programs: list[Locker], folders: list[Path]
) -> None:
    one, two, _ = programs
    one.opened(folders[0] / "file", "again")
    assert one.tell("write", "f", 0, 10) == 0
    assert one.tell("ofd_write", "f", 20, 10) == 0
    assert one.tell("flock", "f", "exclusive") == 0
    assert one.tell("close", "again") == 0
    assert two.tell("write", "f", 0, 10) == 0
    assert two.tell("write", "f", 20, 10) == errno.EAGAIN
    assert two.tell("flock", "f", "exclusive") == errno.EAGAIN


def test_the_last_close_of_a_description_drops_what_it_holds(
    programs: list[Locker], cluster: Cluster
) -> None:
    one, two, _ = programs
    assert one.tell("ofd_write", "f", 0, 10) == 0
    assert one.tell("flock", "f", "exclusive") == 0
    assert one.tell("dup", "f", "g") == 0
    assert one.tell("close", "f") == 0
    assert two.tell("ofd_write", "f", 0, 10) == errno.EAGAIN
    assert two.tell("flock", "f", "exclusive") == errno.EAGAIN
    assert one.tell("close", "g") == 0
    eventually(lambda: two.tell("ofd_write", "f", 0, 10), 0)
    eventually(lambda: two.tell("flock", "f", "exclusive"), 0)
    two.tell("close", "f")
    eventually(lambda: left(cluster), [])


def test_a_program_that_is_killed_lets_go_of_all(programs: list[Locker], cluster: Cluster) -> None:
    one, two, three = programs
    for words in (("write", "f", 0, 10), ("ofd_write", "f", 20, 10), ("flock", "f", "exclusive")):
        assert one.tell(*words) == 0
    two.begin("write", "f", 0, 0, WAIT)
    three.begin("flock", "f", "exclusive", WAIT)
    eventually(lambda: waits(cluster, 1) + waits(cluster, 2), 2)
    one.kill()
    assert two.answer() == 0
    assert three.answer() == 0
    two.kill()
    three.kill()
    eventually(lambda: left(cluster), [])


def test_a_child_keeps_what_belongs_to_the_description(programs: list[Locker]) -> None:
    one, two, _ = programs
    assert one.tell("write", "f", 0, 10) == 0
    assert one.tell("ofd_write", "f", 20, 10) == 0
    child = one.tell("fork")
    try:
        one.kill()
        eventually(lambda: two.tell("write", "f", 0, 10), 0)
        assert two.tell("ofd_write", "f", 20, 10) == errno.EAGAIN
    finally:
        os.kill(child, 9)
    eventually(lambda: two.tell("ofd_write", "f", 20, 10), 0)


@pytest.mark.parametrize("words", [("write", "f", 0, 10, WAIT), ("flock", "f", "shared", WAIT)])
def test_a_wait_ends_at_a_signal_and_leaves_nothing(
    programs: list[Locker], cluster: Cluster, words: tuple[Any, ...]
) -> None:
    one, two, three = programs
    assert one.tell("write", "f", 0, 10) == 0
    assert one.tell("flock", "f", "exclusive") == 0
    two.tell("catch")
    two.begin(*words)
    eventually(lambda: waits(cluster, 1), 1)
    os.kill(two.pid, signal.SIGALRM)
    assert two.answer() == errno.EINTR
    three.begin(*words)
    eventually(lambda: waits(cluster, 2), 1)
    three.kill()
    three.process.wait(PATIENCE_S)
    eventually(lambda: waits(cluster, 1) + waits(cluster, 2), 0)
    one.tell("unlock", "f", 0, 0)
    one.tell("flock", "f", "unlock")
    assert two.tell(*words) == 0


def test_a_deadlock_between_nodes_ends_with_edeadlk_for_exactly_one(
    folders: list[Path], make: Make
) -> None:
    paths = [folders[0] / f"file{number}" for number in range(3)]
    for path in paths:
        path.touch()
    ring = []
    for number, folder in enumerate(folders):
        locker = make().opened(folder / f"file{number}", "mine")
        assert locker.tell("write", "mine", 0, 1) == 0
        ring.append(locker.opened(folder / f"file{(number + 1) % 3}", "next"))
    for locker in ring:
        locker.begin("write", "next", 0, 1, WAIT)
    answers: dict[int, int] = {}
    until_s = time.monotonic() + PATIENCE_S
    while len(answers) < 3:
        assert time.monotonic() < until_s, answers
        for number, locker in enumerate(ring):
            if number not in answers and locker.answered:
                answers[number] = locker.answer()
                locker.tell("unlock", "mine", 0, 1)
                locker.tell("unlock", "next", 0, 1)
        time.sleep(0.01)
    assert sorted(answers.values()) == [0, 0, errno.EDEADLK]


def test_locks_of_the_only_user_cost_no_message(
    programs: list[Locker], cluster: Cluster, folders: list[Path]
) -> None:
    one = programs[1].opened(folders[1] / "own", "own")
    assert one.tell("write", "own", 0, 10) == 0

    def sent() -> dict[str, int]:
        numbers = cluster.nodes[1].ask("locks")["locks"]["sent"]
        return {kind: count for kind, count in numbers.items() if kind.startswith("Range")}

    before = sent()
    for number in range(50):
        assert one.tell("write", "own", number, 10) == 0
        assert one.tell("test", "own", 0, 0)[0] == "unlock"
        assert one.tell("unlock", "own", 0, 0) == 0
        assert one.tell("flock", "own", "exclusive") == 0
        assert one.tell("flock", "own", "unlock") == 0
    assert sum(sent().values()) - sum(before.values()) <= 2  # once for flock


def test_the_lock_tool_shows_who_waits_for_which_bytes_because_of_whom(
    programs: list[Locker], cluster: Cluster
) -> None:
    one, two, _ = programs
    assert one.tell("write", "f", 0, 10) == 0
    two.begin("write", "f", 5, 10, WAIT)
    eventually(lambda: waits(cluster, 1), 1)
    tool = [sys.executable, "-m", "clusterfs.cli.lockdump"]
    shown = subprocess.run(
        [*tool, str(cluster.nodes[2].mount), "--waiters", "--cluster"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (row,) = [line for line in shown.splitlines() if "file lock" in line]
    command = Path(f"/proc/{two.pid}/comm").read_text().strip()
    assert {"n2", str(two.pid), command, "5..14"} <= set(row.replace("│", " ").split())
    assert f"/{cluster_path(two)}" in row
    assert str(one.pid) in row


def cluster_path(program: Locker) -> str:
    """The path below the mount of the file that a program has open."""
    (path,) = [
        os.readlink(entry)
        for entry in Path(f"/proc/{program.pid}/fd").iterdir()
        if os.readlink(entry).endswith("/file")
    ]
    return "/".join(Path(path).parts[-2:])
