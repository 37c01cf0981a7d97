"""F2FS's atomic writes, by the ioctls alone, whose program or node dies in each phase."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clusterfs.cli.dev import Cluster

BLOCK = 4096
# What SQLite does with SQLITE_ENABLE_BATCH_ATOMIC_WRITE: no journal, pages all over the file, and
# more of it than there was. It says in which phase it is, and goes on when it is told to.
_PROGRAM = """
import fcntl, os, struct, sys
path, features = sys.argv[1], bytearray(4)
descriptor = os.open(path, os.O_RDWR)
fcntl.ioctl(descriptor, 0x8004F50C, features)
assert struct.unpack("=I", features)[0] & 4
def phase(name):
    print(name, flush=True)
    sys.stdin.readline()
phase("opened")
fcntl.ioctl(descriptor, 0xF501)
phase("begun")
os.pwrite(descriptor, b"n" * 4096, 0)
os.pwrite(descriptor, b"n" * 100, 3 * 4096 + 50)
phase("half")
os.pwrite(descriptor, b"n" * 4096 * 300, 5 * 4096)
os.pwrite(descriptor, b"n" * 4096, 65 << 20)
phase("staged")
print("committing", flush=True)
fcntl.ioctl(descriptor, 0xF502)
phase("committed")
"""
PHASES = ("opened", "begun", "half", "staged", "committing", "committed")
OLD = b"o" * BLOCK * 10


def state(path: Path) -> str:
    """Return "old" or "new", or what is neither."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(310 * BLOCK)
        file.seek(65 << 20)
        end = file.read()
    if size == len(OLD) and start == OLD:
        return "old"
    patched = bytearray(305 * BLOCK)
    patched[: len(OLD)] = OLD
    patched[:BLOCK] = b"n" * BLOCK
    patched[3 * BLOCK + 50 : 3 * BLOCK + 150] = b"n" * 100
    patched[5 * BLOCK :] = b"n" * BLOCK * 300
    whole = size == (65 << 20) + BLOCK and start[: len(patched)] == bytes(patched)
    if whole and not any(start[len(patched) :]) and end == b"n" * BLOCK:
        return "new"
    return f"torn: {size} bytes"


def run_until(program: "subprocess.Popen[str]", phase: str) -> None:
    """Let it go on until it is in that phase."""
    assert program.stdout is not None
    assert program.stdin is not None
    for name in PHASES:
        assert program.stdout.readline() == f"{name}\n"
        if name == phase:
            return
        if name != "committing":  # it waits for nobody there
            program.stdin.write("\n")
            program.stdin.flush()


def end(program: "subprocess.Popen[str]") -> None:
    program.kill()
    program.communicate()


@pytest.mark.parametrize(
    ("victim", "phases"),
    [
        ("program", (*PHASES, *("committing",) * 6)),
        *(("node", (phase,)) for phase in ("staged", "committing", "committed")),
    ],
)
def test_who_dies_in_any_phase_leaves_the_old_or_the_new_state(
    folders: list[Path], cluster: Cluster, victim: str, phases: tuple[str, ...]
) -> None:
    for turn, phase in enumerate(phases):
        name = f"file-{turn}"
        (folders[0] / name).write_bytes(OLD)
        with (folders[0] / name).open("rb+") as file:
            os.fsync(file.fileno())
        program = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, folders[0] / name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            run_until(program, phase)
            if phase not in ("committing", "committed"):
                assert state(folders[1] / name) == "old"
            if victim == "node":
                cluster.kill("n1")
        finally:
            end(program)
        expected = {"committing": {"old", "new"}, "committed": {"new"}}.get(phase, {"old"})
        found = state(folders[1] / name)
        assert found in expected, (phase, found)
        if victim == "node":
            cluster.start("n1")
        left = [state(folder / name) for folder in folders]
        assert set(left) <= ({"new"} if found == "new" else expected), (phase, left)
        assert state(folders[0] / name) == left[-1], "it is settled after the descriptor is closed"


def test_sqlites_batch_atomic_calls_on_three_nodes_lose_and_tear_nothing(
    folders: list[Path], tmp_path: Path
) -> None:
    """SQLite's own system calls, in its order; programs are killed anywhere and others go on.

    No package of Debian has an SQLite that was built to make these calls.
    """
    pages, each, victims = 24, 10, 3
    program = tmp_path / "batch_atomic"
    source = Path(__file__).parent / "support" / "batch_atomic.c"
    subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-o", program, source], check=True)
    (folders[0] / "data").write_bytes(bytes(pages * BLOCK))

    def started(node: int, transactions: int) -> "subprocess.Popen[str]":
        command = [program, folders[node] / "data", str(pages), str(transactions)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    running = [started(node, each) for node in range(3)]
    done: list[int] = []
    for victim in range(victims):
        doomed = started(victim % 3, 1 << 20)
        assert doomed.stdout is not None
        done += [int(doomed.stdout.readline()) for _ in range(1 + victim)]
        doomed.kill()
        done += map(int, doomed.communicate()[0].split())
    for other in running:
        done += map(int, other.communicate()[0].split())
        assert other.returncode == 0
    (last,) = {
        int.from_bytes(word, "little")
        for folder in folders
        for content in [(folder / "data").read_bytes()]
        for word in [content[at : at + 8] for at in range(0, len(content), 8)]
    }
    assert len(done) == len(set(done)), "a transaction was lost, and its number came again"
    assert set(done) <= set(range(1, last + 1))
    assert last - len(done) <= victims, "only who was killed may not have told of its last one"
