"""SQLite built with SQLITE_ENABLE_BATCH_ATOMIC_WRITE, else as it is, on real mounts.

`make setup` builds the library (scripts/sqlite); it takes the place of the one that Python loads.
"""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from clusterfs.cli.dev import Cluster

BUILT = Path(sys.prefix) / "share" / "clusterfs-sqlite"
ACCOUNTS = 400
_PREAMBLE = """
import sqlite3, sys
data = sqlite3.connect(sys.argv[1], timeout=300, isolation_level=None)
batch = ("ENABLE_BATCH_ATOMIC_WRITE",) in data.execute("PRAGMA compile_options").fetchall()
assert batch == (sys.argv[2] == "batch")
data.execute("PRAGMA synchronous = FULL")
def transaction():
    data.execute("BEGIN IMMEDIATE")
    data.execute("UPDATE account SET amount = amount + 1")
    data.execute("INSERT INTO history SELECT max(number) + 1, randomblob(30000) FROM history")
    ((number,),) = data.execute("SELECT max(number) FROM history").fetchall()
    data.execute("COMMIT")
    print(number, flush=True)
"""
ONE = f"{_PREAMBLE}\ntransaction()\ndata.close()"
MANY = f"{_PREAMBLE}\nfor _ in range(int(sys.argv[3])): transaction()"


@pytest.fixture
def databases(folders: list[Path]) -> list[Path]:
    """One database, as each node sees it."""
    paths = [folder / "bank.db" for folder in folders]
    with closing(sqlite3.connect(paths[0])) as data, data:
        data.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, amount INTEGER, pad TEXT)")
        data.execute("CREATE TABLE history (number INTEGER, noise BLOB)")
        data.execute("INSERT INTO history VALUES (0, '')")
        rows = [(number, "x" * 200) for number in range(ACCOUNTS)]
        data.executemany("INSERT INTO account VALUES (?, 0, ?)", rows)
    return paths


@pytest.fixture(scope="module")
def phases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that stops a program before each step."""
    library = tmp_path_factory.mktemp("phases") / "phases.so"
    source = Path(__file__).parent / "support" / "phases.c"
    command = ["gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source, "-ldl"]
    subprocess.run(command, check=True)
    return library


def environment() -> dict[str, str]:
    assert (BUILT / "libsqlite3.so.0").exists(), "make setup builds it (scripts/sqlite)"
    return os.environ | {"LD_LIBRARY_PATH": str(BUILT)}


def transactions_of(database: Path) -> int:
    """Return how many took place; each must be there as a whole. Asks the system's own SQLite."""
    with closing(sqlite3.connect(database, timeout=300)) as data:
        assert data.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        amounts = data.execute("SELECT DISTINCT amount FROM account").fetchall()
        numbers = data.execute("SELECT number FROM history ORDER BY number").fetchall()
    assert numbers == [(number,) for number in range(len(numbers))]
    assert amounts == [(len(numbers) - 1,)], "half of a transaction"
    return len(numbers) - 1


class Stepped:
    """A program with one transaction that waits before each step."""

    def __init__(self, program: "subprocess.Popen[str]", names: int, go: int) -> None:
        self.program = program
        self._names = os.fdopen(names)
        self._go = go

    def next(self) -> str:
        """Return the step before which it waits; "" if it has ended."""
        return self._names.readline().strip()

    def proceed(self) -> None:
        """Let it do this step."""
        os.write(self._go, b"\n")

    def run_until(self, step: str, times: int = 1) -> None:
        """Stop it before a step, the so-manieth of this name."""
        while times:
            name = self.next()
            assert name, f"it ended before {step}"
            times -= name == step
            if times:
                self.proceed()

    def end(self) -> None:
        """Kill it, if it still runs."""
        self.program.kill()
        self.program.communicate()
        self._names.close()
        os.close(self._go)


@contextmanager
def stepped(database: Path, phases: Path) -> Iterator[Stepped]:
    (names, out), (into, go) = os.pipe(), os.pipe()
    program = subprocess.Popen(
        [sys.executable, "-c", ONE, database, "batch"],
        env=environment()
        | {"LD_PRELOAD": str(phases), "PHASES_OUT": str(out), "PHASES_IN": str(into)},
        pass_fds=(out, into),
        stdout=subprocess.PIPE,
        text=True,
    )
    os.close(out)
    os.close(into)
    steps = Stepped(program, names, go)
    try:
        yield steps
    finally:
        steps.end()


def test_sqlite_finds_the_ioctls_by_itself_and_makes_no_journal(
    databases: list[Path], phases: Path
) -> None:
    with stepped(databases[0], phases) as program:
        steps = []
        while step := program.next():
            assert os.listdir(databases[1].parent) == ["bank.db"]
            steps.append(step)
            program.proceed()
        assert program.program.wait() == 0
    written = steps.count("write")
    assert written > ACCOUNTS * 200 // 4096, "all pages of a transaction"
    assert steps == ["features", "start", *("write",) * written, "commit", "sync"]
    assert [transactions_of(database) for database in databases] == [1, 1, 1]


@pytest.mark.parametrize(
    ("victim", "step", "times"),
    [
        ("program", "write", 1),
        ("program", "write", 12),
        *((victim, "commit", 1) for victim in ("program", "node")),
        *((victim, "committing", 1) for victim in ("program", "node")),
        *((victim, "sync", 1) for victim in ("program", "node")),
    ],
)
def test_sqlite_killed_in_any_phase_leaves_the_old_or_the_new_state(
    databases: list[Path], cluster: Cluster, phases: Path, victim: str, step: str, times: int
) -> None:
    with stepped(databases[0], phases) as program:
        program.run_until("commit" if step == "committing" else step, times)
        if step == "committing":
            program.proceed()
        if victim == "node":
            cluster.kill("n1")
    expected = {"sync": {1}, "committing": {0, 1}}.get(step, {0})
    found = transactions_of(databases[1])
    assert found in expected
    assert os.listdir(databases[1].parent) == ["bank.db"], "nothing is to be rolled back"
    if victim == "node":
        cluster.start("n1")
    assert [transactions_of(database) for database in databases] == [found] * 3


def test_sqlite_with_and_without_on_three_nodes_lose_and_tear_nothing(
    databases: list[Path],
) -> None:
    """Batch atomic writers and one with a journal; some are killed anywhere, others go on."""
    each, victims = 6, 3

    def started(node: int, kind: str, count: int) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", MANY, databases[node], kind, str(count)]
        variables = environment() if kind == "batch" else None
        return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True)

    running = [started(node, kind, each) for node, kind in enumerate(("batch", "stock", "batch"))]
    done: list[int] = []
    for victim in range(victims):
        doomed = started(victim % 3, "batch", 1 << 20)
        assert doomed.stdout is not None
        done += [int(doomed.stdout.readline()) for _ in range(1 + victim)]
        doomed.kill()
        done += map(int, doomed.communicate()[0].split())
    for other in running:
        done += map(int, other.communicate()[0].split())
        assert other.returncode == 0
    (last,) = {transactions_of(database) for database in databases}
    assert len(done) == len(set(done)), "a transaction was lost, and its number came again"
    assert set(done) <= set(range(1, last + 1))
    assert last - len(done) <= victims, "only who was killed may not have told of its last one"
