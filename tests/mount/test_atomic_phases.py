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
