"""System calls beyond what pyfuse3 handles, on real mounts, seen from another node."""

import ctypes
import errno
import fcntl
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE = 0x01, 0x02, 0x08, 0x10
AT_FDCWD, AT_SYMLINK_FOLLOW = -100, 0x400
BLOCK = 4096

_libc = ctypes.CDLL(None, use_errno=True)


def fallocate(path: Path, mode: int, offset: int, length: int) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        arguments = (ctypes.c_int(descriptor), ctypes.c_int(mode))
        spans = (ctypes.c_longlong(offset), ctypes.c_longlong(length))
        if _libc.fallocate(*arguments, *spans) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(descriptor)


@pytest.fixture
def file(folders: list[Path]) -> list[Path]:
    """One file of ten blocks of b"x", as the three nodes see it."""
    (folders[0] / "file").write_bytes(b"x" * 10 * BLOCK)
    return [folder / "file" for folder in folders]


def test_fallocate_grows_a_file_with_zeros(file: list[Path]) -> None:
    fallocate(file[0], 0, 8 * BLOCK, 4 * BLOCK + 7)
    assert file[1].read_bytes() == b"x" * 10 * BLOCK + bytes(2 * BLOCK + 7)
    fallocate(file[2], 0, 0, BLOCK)
    assert file[0].stat().st_size == 12 * BLOCK + 7


def test_fallocate_with_keep_size_changes_nothing_to_be_seen(file: list[Path]) -> None:
    fallocate(file[0], KEEP_SIZE, 8 * BLOCK, 10 * BLOCK)
    assert file[1].read_bytes() == b"x" * 10 * BLOCK


@pytest.mark.parametrize("mode", [PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE | KEEP_SIZE, ZERO_RANGE])
def test_a_range_is_made_zero(file: list[Path], mode: int) -> None:
    assert file[2].read_bytes()[:3] == b"xxx"  # cached there
    fallocate(file[0], mode, BLOCK + 10, 3 * BLOCK)
    expected = b"x" * (BLOCK + 10) + bytes(3 * BLOCK) + b"x" * (6 * BLOCK - 10)
    for path in file:
        assert path.read_bytes() == expected


def test_zero_range_beyond_the_end_grows(file: list[Path]) -> None:
    fallocate(file[0], ZERO_RANGE, 9 * BLOCK, 2 * BLOCK)
    assert file[1].read_bytes() == b"x" * 9 * BLOCK + bytes(2 * BLOCK)


@pytest.mark.parametrize(
    ("mode", "offset", "length", "number"),
    [
        (COLLAPSE_RANGE, 0, BLOCK, errno.EOPNOTSUPP),
        (0, 0, 0, errno.EINVAL),
        (0, -1, 10, errno.EINVAL),
        (0, 1 << 44, BLOCK, errno.EFBIG),
    ],
)
def test_what_fallocate_cannot_do_it_says(
    file: list[Path], mode: int, offset: int, length: int, number: int
) -> None:
    with pytest.raises(OSError, match=r".") as refusal:
        fallocate(file[0], mode, offset, length)
    assert refusal.value.errno == number
    assert file[1].read_bytes() == b"x" * 10 * BLOCK


def test_setxattr_heeds_create_and_replace(file: list[Path]) -> None:
    name = "user.colour"
    with pytest.raises(OSError, match=r".") as refusal:
        os.setxattr(file[0], name, b"red", os.XATTR_REPLACE)
    assert refusal.value.errno == errno.ENODATA
    os.setxattr(file[0], name, b"red", os.XATTR_CREATE)
    with pytest.raises(OSError, match=r".") as refusal:
        os.setxattr(file[1], name, b"blue", os.XATTR_CREATE)
    assert refusal.value.errno == errno.EEXIST
    os.setxattr(file[1], name, b"green", os.XATTR_REPLACE)
    assert os.getxattr(file[2], name) == b"green"
    os.setxattr(file[2], name, b"")
    assert os.getxattr(file[0], name) == b""


def extents(path: Path) -> list[tuple[int, int]]:
    """Return the (start, end) of data that SEEK_DATA and SEEK_HOLE tell."""
    found: list[tuple[int, int]] = []
    with path.open("rb") as file, pytest.raises(OSError, match="No such device"):  # noqa: PT012
        end = 0
        while True:
            start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, end))
    return found


def test_data_and_holes_are_told_apart(folders: list[Path]) -> None:
    stripe, terabyte = 64 << 20, 1 << 40
    spans = [
        (2 * BLOCK, 5 * BLOCK),
        (9 * BLOCK, 10 * BLOCK),
        (stripe - 3 * BLOCK, stripe + 2 * BLOCK),
        (terabyte, terabyte + 100),
    ]
    with (folders[0] / "sparse").open("wb") as file:
        for start, end in spans:
            file.seek(start)
            file.write(b"d" * (end - start))
        file.flush()
        assert extents(folders[0] / "sparse") == spans, "some of it is dirty still"
        os.fsync(file.fileno())
    for folder in folders:
        assert extents(folder / "sparse") == spans
    fallocate(folders[1] / "sparse", PUNCH_HOLE | KEEP_SIZE, 3 * BLOCK, BLOCK)
    spans[:1] = [(2 * BLOCK, 3 * BLOCK), (4 * BLOCK, 5 * BLOCK)]
    assert extents(folders[2] / "sparse") == spans
    (folders[0] / "empty").touch()
    assert extents(folders[1] / "empty") == []
    os.truncate(folders[0] / "empty", 10 * BLOCK)
    assert extents(folders[1] / "empty") == []


def test_cp_keeps_a_sparse_file_sparse(folders: list[Path]) -> None:
    with (folders[0] / "sparse").open("wb") as file:
        file.seek(1 << 33)
        file.write(b"end")
    subprocess.run(["cp", "--sparse=auto", folders[1] / "sparse", folders[1] / "copy"], check=True)
    assert (folders[2] / "copy").stat().st_size == (1 << 33) + 3
    assert extents(folders[2] / "copy") == [(1 << 33, (1 << 33) + 3)]


def copied(source: Path, target: Path, *, at: int = 0, to: int = 0, size: int = 1 << 40) -> int:
    """Call copy_file_range until it is done; returns how many bytes went."""
    reader, writer = os.open(source, os.O_RDONLY), os.open(target, os.O_RDWR | os.O_CREAT)
    try:
        done = 0
        while count := os.copy_file_range(reader, writer, size - done, at + done, to + done):
            done += count
        return done
    finally:
        os.close(reader)
        os.close(writer)


def write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def used_bytes(folder: Path) -> int:
    report = subprocess.run(
        [sys.executable, "-m", "clusterfs.cli.main", "df", str(folder.parent), "--json"],
        capture_output=True,
        check=True,
    )
    return int(json.loads(report.stdout)["live_bytes"])


def test_copy_file_range_shares_blocks_and_each_file_goes_its_own_way(folders: list[Path]) -> None:
    data = random.Random(1).randbytes(8 << 20)
    write_synced(folders[0] / "source", data + b"end")
    before = used_bytes(folders[0])
    assert copied(folders[1] / "source", folders[1] / "target") == len(data) + 3
    assert used_bytes(folders[0]) - before < 1 << 20
    assert (folders[2] / "target").read_bytes() == data + b"end"
    with (folders[2] / "source").open("r+b") as file:
        file.write(b"new")
    with (folders[0] / "target").open("r+b") as file:
        file.seek(4096)
        file.write(b"other")
    assert (folders[1] / "source").read_bytes() == b"new" + data[3:] + b"end"
    changed = data[:4096] + b"other" + data[4101:] + b"end"
    assert (folders[2] / "target").read_bytes() == changed
    (folders[0] / "source").unlink()
    assert (folders[0] / "target").read_bytes() == changed


@pytest.mark.parametrize(
    ("at", "to", "size"),
    [(0, 0, 100), (4096, 8192, 20000), (5, 4101, 30000), (1, 2, 70000), (0, 40960, 50000)],
)
def test_copy_file_range_into_the_middle(file: list[Path], at: int, to: int, size: int) -> None:
    source = file[1].with_name("source")
    data = random.Random(at + to + size).randbytes(60000)
    source.write_bytes(data)
    before = file[2].read_bytes()  # cached there
    assert copied(file[0].with_name("source"), file[0], at=at, to=to, size=size) == len(
        data[at : at + size]
    )
    expected = before[:to] + data[at : at + size] + before[to + len(data[at : at + size]) :]
    for path in file:
        assert path.read_bytes() == expected


def test_ranges_of_one_file_must_not_overlap(file: list[Path]) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        copied(file[0], file[0], at=0, to=BLOCK, size=3 * BLOCK)
    assert copied(file[0], file[0], at=0, to=20 * BLOCK, size=3 * BLOCK) == 3 * BLOCK
    assert file[1].read_bytes() == b"x" * 10 * BLOCK + bytes(10 * BLOCK) + b"x" * 3 * BLOCK


def test_cp_clones(file: list[Path]) -> None:
    write_synced(file[0], random.Random(2).randbytes(100 * BLOCK))
    before = used_bytes(file[0].parent)
    subprocess.run(["cp", file[0], file[0].with_name("copy")], check=True)
    assert file[1].with_name("copy").read_bytes() == file[1].read_bytes()
    assert used_bytes(file[0].parent) - before < BLOCK * 50


def link_descriptor(descriptor: int, target: Path) -> None:
    source = f"/proc/self/fd/{descriptor}".encode()
    if _libc.linkat(AT_FDCWD, source, AT_FDCWD, os.fsencode(target), AT_SYMLINK_FOLLOW) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def test_a_file_without_a_name_gets_one_or_goes(folders: list[Path]) -> None:
    descriptor = os.open(folders[0], os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(descriptor, b"x" * 3 * BLOCK)
    assert os.fstat(descriptor).st_nlink == 0
    assert list(folders[1].iterdir()) == []
    link_descriptor(descriptor, folders[0] / "named")
    named = folders[1] / "named"
    assert (named.stat().st_nlink, named.stat().st_mode & 0o7777) == (1, 0o640)
    assert named.read_bytes() == b"x" * 3 * BLOCK
    os.close(descriptor)
    assert (folders[2] / "named").read_bytes() == b"x" * 3 * BLOCK
    os.link(folders[2] / "named", folders[2] / "again")
    named.unlink()
    assert (folders[0] / "again").stat().st_nlink == 1


def test_a_temporary_file_made_exclusively_never_gets_a_name(folders: list[Path]) -> None:
    descriptor = os.open(folders[0], os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
    with pytest.raises(FileNotFoundError):
        link_descriptor(descriptor, folders[0] / "named")
    os.close(descriptor)


def test_o_append_can_be_taken_away_and_given_by_fcntl(folders: list[Path]) -> None:
    (folders[0] / "file").write_bytes(b"content")
    fd = os.open(folders[0] / "file", os.O_WRONLY | os.O_APPEND)
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_APPEND)
    os.pwrite(fd, b"C", 0)
    (folders[1] / "file").write_bytes(b"longer content")
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_APPEND)
    os.pwrite(fd, b"!", 0)
    os.close(fd)
    assert (folders[2] / "file").read_bytes() == b"longer content!"
