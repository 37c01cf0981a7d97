"""Atomic writes from programs on real mounts: all or nothing, whatever dies, seen by every node."""

import errno
import fcntl
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from clusterfs import atomic as ioctls
from clusterfs.atomic import atomic
from clusterfs.cli.dev import Cluster

BLOCK = 4096


def make(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_extents_of_several_files_change_together(folders: list[Path]) -> None:
    one = make(folders[0] / "one", b"1" * 3 * BLOCK)
    two = make(folders[0] / "two", b"2" * 100)
    with two.open("rb+") as own, atomic(one, two) as tx:
        tx.pwrite(one, b"A" * 10, BLOCK - 5)
        tx.pwrite(own.fileno(), b"B" * 5000, 50)
        tx.pwrite(two, b"C" * 10, 60)
        assert tx.pread(two, 100, 45) == b"2" * 5 + b"B" * 10 + b"C" * 10 + b"B" * 75
        assert one.read_bytes() == b"1" * 3 * BLOCK, "nobody else sees it yet"
        assert (folders[1] / "two").read_bytes() == b"2" * 100
    expected_one = b"1" * (BLOCK - 5) + b"A" * 10 + b"1" * (2 * BLOCK - 5)
    expected_two = b"2" * 50 + b"B" * 10 + b"C" * 10 + b"B" * 4980
    for folder in folders:
        assert (folder / "one").read_bytes() == expected_one
        assert (folder / "two").read_bytes() == expected_two


def test_an_exception_in_the_block_changes_nothing(folders: list[Path]) -> None:
    file = make(folders[0] / "file", b"old")
    with pytest.raises(RuntimeError):  # noqa: PT012, SIM117
        with atomic(file) as tx:
            tx.pwrite(file, b"new", 0)
            raise RuntimeError
    for folder in folders:
        assert (folder / "file").read_bytes() == b"old"


def test_files_of_directories_in_different_groups_change_together(folders: list[Path]) -> None:
    files = []
    for name in "abcdef":
        (folders[0] / name).mkdir()  # a new directory has a group of its own
        files.append(make(folders[0] / name / "file", b"old"))
    with atomic(*files) as tx:
        for file in files:
            tx.pwrite(file, b"new" * 3000, 0)
    for name in "abcdef":
        assert (folders[2] / name / "file").read_bytes() == b"new" * 3000


def test_32_mib_fit_and_no_more(folders: list[Path]) -> None:
    file = make(folders[0] / "file", b"")
    piece = os.urandom(1 << 20)
    with atomic(file) as tx:
        for number in range(32):
            tx.pwrite(file, piece, number << 20)
    assert (folders[1] / "file").read_bytes() == piece * 32
    with pytest.raises(OSError, match="too large") as refusal:  # noqa: PT012, SIM117
        with atomic(file) as tx:
            for number in range(33):
                tx.pwrite(file, bytes(1 << 20), number << 20)
    assert refusal.value.errno == errno.EFBIG
    assert (folders[2] / "file").read_bytes() == piece * 32


def test_f2fs_ioctls_as_sqlite_uses_them(folders: list[Path]) -> None:
    file = make(folders[0] / "file", b"old" * BLOCK)
    descriptor = os.open(file, os.O_RDWR)
    answer = fcntl.ioctl(descriptor, ioctls.GET_FEATURES, bytes(4))
    assert struct.unpack("=I", answer)[0] & ioctls.FEATURE_ATOMIC_WRITE
    for ending, expected in ((ioctls.ABORT, b"old"), (ioctls.COMMIT, b"new")):
        fcntl.ioctl(descriptor, ioctls.START)
        os.pwrite(descriptor, b"new" * BLOCK, 0)
        assert (folders[1] / "file").read_bytes() == b"old" * BLOCK
        fcntl.ioctl(descriptor, ending)
        assert (folders[1] / "file").read_bytes() == expected * BLOCK
    with pytest.raises(OSError, match="argument"):
        fcntl.ioctl(descriptor, ioctls.COMMIT)
    fcntl.ioctl(descriptor, ioctls.START)
    os.pwrite(descriptor, b"bad", 0)
    os.close(descriptor)  # aborts
    assert file.read_bytes() == b"new" * BLOCK


def test_what_cannot_be_atomic_is_refused(folders: list[Path], tmp_path: Path) -> None:
    file = make(folders[0] / "file", b"old")
    for flags in (os.O_RDONLY, os.O_RDWR | os.O_APPEND):
        descriptor = os.open(file, flags)
        with pytest.raises(OSError, match="argument"):
            fcntl.ioctl(descriptor, ioctls.START)
        os.close(descriptor)
    elsewhere = make(tmp_path / "elsewhere", b"")
    with pytest.raises(OSError, match="ioctl"), atomic(elsewhere):
        pass
    with pytest.raises(OSError, match="one mount"), atomic(file, elsewhere):
        pass
    with pytest.raises(ValueError, match="not among"), atomic(file) as tx:
        tx.pwrite(elsewhere, b"x", 0)
    descriptor = os.open(file, os.O_RDWR)
    with pytest.raises(OSError, match="argument"):
        fcntl.ioctl(descriptor, ioctls.JOIN, struct.pack("=Q", 1))
    with pytest.raises(OSError, match="ioctl"):
        fcntl.ioctl(descriptor, 0xABCD)
    os.close(descriptor)


_WRITER = """
import os, sys
from clusterfs.atomic import atomic
paths = sys.argv[1:]
size = 3 * 4096 + 100
number = 0
while True:
    number += 1
    with atomic(*paths) as tx:
        for path in paths:
            for part in range(4):
                tx.pwrite(path, bytes([number % 251]) * size, part * (size + 5000))
    print(number, flush=True)
"""


@pytest.mark.parametrize("victim", ["program", "node"])
@pytest.mark.parametrize("round_", range(4))
def test_who_dies_in_the_middle_leaves_all_or_nothing(
    folders: list[Path], cluster: Cluster, victim: str, round_: int
) -> None:
    names = ["a", "b", "c"]
    for name in names:
        (folders[0] / f"dir-{name}").mkdir()
        make(folders[0] / f"dir-{name}" / name, b"")
    paths = [str(folders[0] / f"dir-{name}" / name) for name in names]
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, *paths], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    done = 0
    for _ in range(3 + round_):
        done = int(writer.stdout.readline())
    if victim == "node":
        cluster.kill("n1")
    writer.send_signal(signal.SIGKILL)
    rest = writer.stdout.read().split()
    done = int(rest[-1]) if rest else done
    writer.wait()
    writer.stdout.close()
    stamps = set()
    for name in names:
        content = (folders[1] / f"dir-{name}" / name).read_bytes()
        size = 3 * BLOCK + 100
        assert len(content) == 4 * size + 3 * 5000
        for part in range(4):
            start = part * (size + 5000)
            stamps |= set(content[start : start + size])
    assert len(stamps) == 1, f"a torn transaction: {stamps}"
    assert stamps <= {done % 251, (done + 1) % 251}, "committed and durable was lost"
    if victim == "node":
        cluster.start("n1")


_SQLITE = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA journal_mode = MEMORY")
database.execute("PRAGMA synchronous = FULL")
database.execute("PRAGMA cache_spill = OFF")
number = 0
while True:
    number += 1
    database.execute("BEGIN IMMEDIATE")
    database.execute("UPDATE account SET amount = amount - 1 WHERE id % 2 = 0")
    database.execute("UPDATE account SET amount = amount + 1 WHERE id % 2 = 1")
    database.execute("INSERT INTO history VALUES (?, randomblob(5000))", (number,))
    database.execute("COMMIT")
    print(number, flush=True)
"""
_ACCOUNTS = 2000


@pytest.mark.parametrize("round_", range(4))
def test_sqlite_without_a_journal_on_disk_survives_the_loss_of_its_node(
    folders: list[Path], cluster: Cluster, round_: int
) -> None:
    os.setxattr(folders[0], "user.clusterfs.atomic_fsync", b"1")
    path = folders[0] / "bank.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA journal_mode = MEMORY")
        database.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, amount INTEGER, pad TEXT)")
        database.execute("CREATE TABLE history (number INTEGER, blob BLOB)")
        rows = [(n, 0, "x" * 200) for n in range(_ACCOUNTS)]
        database.executemany("INSERT INTO account VALUES (?, ?, ?)", rows)
    assert os.getxattr(path, "user.clusterfs.atomic_fsync") == b"1"
    writer = subprocess.Popen(
        [sys.executable, "-c", _SQLITE, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    for _ in range(2 + round_):
        done = int(writer.stdout.readline())
    time.sleep(0.01 * round_)
    cluster.kill("n1")
    writer.send_signal(signal.SIGKILL)
    done = max([done, *(int(line) for line in writer.stdout.read().split())])
    writer.wait()
    writer.stdout.close()
    with closing(sqlite3.connect(folders[1] / "bank.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        amounts = {amount for (amount,) in database.execute("SELECT DISTINCT amount FROM account")}
        ((last,),) = database.execute("SELECT max(number) FROM history").fetchall()
    assert amounts == {-last, last}, "half of a transaction"
    assert last in {done, done + 1}, "a transaction that was committed is lost"
    cluster.start("n1")


# The kernel cuts a write in two if its buffer touches more than 256 pages of memory: hence mmap.
_PAGES = """
import mmap, os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o644)
size, pages = int(sys.argv[2]), 16
number, page = 0, mmap.mmap(-1, size)
while True:
    number += 1
    page[:] = bytes([number % 251]) * size
    os.pwrite(descriptor, page, (number * 7 % pages) * size + 1000)
    if number == 40:
        print("on", flush=True)
"""


@pytest.mark.parametrize("size", [16 << 10, 1 << 20])
def test_no_write_is_torn_by_the_loss_of_a_node(
    folders: list[Path], cluster: Cluster, size: int
) -> None:
    path = folders[0] / "pages"
    writer = subprocess.Popen(
        [sys.executable, "-c", _PAGES, str(path), str(size)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "on\n"
    time.sleep(2.0)  # it is written back after 1 s
    cluster.kill("n1")
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    content = (folders[1] / "pages").read_bytes()[1000:]
    torn = [n for n in range(0, len(content), size) if len(set(content[n : n + size])) > 1]
    assert not torn
    assert len(set(content)) > 1
    cluster.start("n1")
