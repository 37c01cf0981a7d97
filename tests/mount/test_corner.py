"""What programs rarely ask for: access and birth times, flags, statfs of quotas, O_DIRECT, mmap.

Access times go to the other nodes after ACCESS_TIME_DELAY_S here.
"""

import ctypes
import fcntl
import mmap
import os
import random
import stat
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from clusterfs.cli.dev import Cluster
from clusterfs.fuse.flags import GET_FLAGS, GET_FSXATTR, GET_VERSION

ACCESS_TIME_DELAY_S = 0.5
PATIENCE_S = 150.0
LONG_AGO_NS = 10**18
PAGE = 4096
MIB = 1 << 20
SEED = int(os.environ.get("CLUSTERFS_SEED", "0"))

_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    """Three nodes that tell others of reads soon."""
    settings = {"access_time_delay_s": str(ACCESS_TIME_DELAY_S), "lease_s": "60"}
    return make_cluster(settings=settings)


def accessed(path: Path) -> int:
    return path.lstat().st_atime_ns


# ---- times


def test_a_read_is_seen_here_at_once_and_elsewhere_soon(folders: list[Path]) -> None:
    one, two, three = (folder / "file" for folder in folders)
    one.write_bytes(b"content")
    before = accessed(one)
    assert two.read_bytes() == b"content"
    after = accessed(two)
    assert after > before
    deadline = time.monotonic() + PATIENCE_S
    while {accessed(one), accessed(three)} != {after}:
        assert time.monotonic() < deadline, "the others do not hear of it"
        time.sleep(0.05)
    two.read_bytes()
    assert accessed(two) == after, "it is later than the last change already"


def test_a_read_after_a_change_elsewhere_counts_again(folders: list[Path]) -> None:
    one, two = folders[0] / "file", folders[1] / "file"
    one.write_bytes(b"content")
    two.read_bytes()
    first = accessed(two)
    one.write_bytes(b"changed")
    two.read_bytes()
    assert accessed(two) > first
    assert two.stat().st_atime_ns > two.stat().st_mtime_ns


def test_what_utimes_sets_on_one_node_stays_on_all(folders: list[Path]) -> None:
    one, two = folders[0] / "file", folders[1] / "file"
    one.write_bytes(b"content")
    two.read_bytes()
    os.utime(one, ns=(LONG_AGO_NS, LONG_AGO_NS))
    assert accessed(two) == LONG_AGO_NS
    time.sleep(3 * ACCESS_TIME_DELAY_S)  # would the read be stored over it, then by now, mostly
    assert accessed(one) == accessed(two) == LONG_AGO_NS


def test_directories_links_and_mappings_count_and_o_noatime_does_not(folders: list[Path]) -> None:
    here = folders[1]
    (here / "folder").mkdir()
    (here / "link").symlink_to("folder")
    for name in ("file", "spared"):
        (here / name).write_bytes(b"x" * PAGE)
    paths = [here / name for name in ("folder", "link", "file", "spared")]
    before = [accessed(path) for path in paths]
    fd = os.open(here / "spared", os.O_RDONLY | os.O_NOATIME)
    os.read(fd, 10)
    os.close(fd)
    os.listdir(here / "folder")
    (here / "link").readlink()
    with (here / "file").open("rb") as file:
        mmap.mmap(file.fileno(), PAGE, prot=mmap.PROT_READ)[0]
    later = [accessed(path) > old for path, old in zip(paths, before, strict=True)]
    assert later == [True, True, True, False]


def test_the_birth_time_is_the_same_everywhere_and_stays(folders: list[Path]) -> None:
    (folders[0] / "file").touch()
    born = birth(folders[0] / "file")
    assert abs(float(born) - time.time()) < PATIENCE_S
    (folders[1] / "file").write_bytes(b"later")
    os.utime(folders[2] / "file", (1, 1))
    (folders[2] / "file").rename(folders[2] / "new")
    assert {birth(folder / "new") for folder in folders} == {born}


def birth(path: Path) -> str:
    done = subprocess.run(["stat", "-c", "%.W", path], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_statx_says_what_stat_says(folders: list[Path]) -> None:
    os.mknod(folders[0] / "device", stat.S_IFCHR | 0o640, os.makedev(5, 77))
    (folders[0] / "file").write_bytes(b"x" * 5000)
    names = "%f %h %u %g %s %b %t %T %X %Y %Z %i"
    for name in ("device", "file", "."):
        told = [
            subprocess.run(["stat", "-c", form, folder / name], capture_output=True, check=True)
            for folder in folders
            for form in (names, names + " %W")
        ]
        assert len({b" ".join(one.stdout.split()[:12]) for one in told}) == 1


# ---- flags


def test_lsattr_shows_nothing_and_chattr_is_refused(folders: list[Path]) -> None:
    file = folders[1] / "file"
    (folders[0] / "file").touch()
    for command, size in ((GET_VERSION, 4), (GET_FLAGS, 4), (GET_FSXATTR, 28)):
        for path in (file, folders[1]):
            fd = os.open(path, os.O_RDONLY)
            told = fcntl.ioctl(fd, command, b"\xff" * 64)
            os.close(fd)
            assert told == bytes(size) + b"\xff" * (64 - size), "no byte more than there is room"
    shown = subprocess.run(["lsattr", "-v", file], capture_output=True, text=True, check=True)
    assert shown.stdout.split()[:2] == ["0", "-" * 22]
    refused = subprocess.run(["chattr", "+i", file], capture_output=True, text=True, check=False)
    assert refused.returncode
    assert "not supported" in refused.stderr
    subprocess.run(["chattr", "-i", file], check=True)


# ---- statfs


def test_statfs_within_a_quota_shows_the_quota_exactly(folders: list[Path]) -> None:
    top = folders[0] / "limited"
    top.mkdir()
    os.setxattr(top, "user.clusterfs.quota.bytes", b"%d" % (8 * MIB))
    os.setxattr(top, "user.clusterfs.quota.files", b"10")
    (folders[1] / "limited" / "file").write_bytes(bytes(3 * MIB))
    for folder in folders:
        for path in (folder / "limited", folder / "limited" / "file"):
            room = os.statvfs(path)
            assert room.f_blocks * room.f_frsize == 8 * MIB
            assert room.f_bavail * room.f_frsize == 5 * MIB
            assert (room.f_files, room.f_ffree) == (10, 9)
        assert os.statvfs(folder).f_blocks * os.statvfs(folder).f_frsize > 8 * MIB
    (folders[2] / "limited" / "file").unlink()
    assert os.statvfs(folders[1] / "limited").f_ffree == 10


# ---- O_DIRECT


def test_direct_io_takes_any_offset_length_and_memory(folders: list[Path]) -> None:
    """A local filesystem wants multiples of the device's blocks, mostly; here nothing need be."""
    chance, expected = random.Random(SEED), bytearray(3 * MIB)
    memory = mmap.mmap(-1, 2 * MIB)
    view = memoryview(memory)
    (folders[0] / "file").write_bytes(expected)
    for turn in range(40):
        unit = chance.choice([1, 1, 512, PAGE])
        offset = chance.randrange(2 * MIB) // unit * unit
        length = chance.choice([1, 511, 513, PAGE, 5000, 70_000, MIB]) // unit * unit or unit
        at = chance.choice([0, 0, 1, 8, 512])
        buffer = view[at : at + length]
        buffer[:] = chance.randbytes(16) * (length // 16) + b"x" * (length % 16)
        fd = os.open(folders[turn % 3] / "file", os.O_RDWR | os.O_DIRECT)
        assert os.pwrite(fd, buffer, offset) == length
        expected[offset : offset + length] = buffer
        os.close(fd)
        fd = os.open(folders[(turn + 1) % 3] / "file", os.O_RDONLY | os.O_DIRECT)
        start = max(0, offset - chance.choice([0, 1, PAGE]))
        buffer[:] = bytes(length)
        assert os.preadv(fd, [buffer], start) == length
        assert bytes(buffer) == expected[start : start + length], turn
        os.close(fd)
        buffer.release()
    assert (folders[2] / "file").read_bytes() == expected


def test_a_direct_read_ends_at_an_odd_end(folders: list[Path]) -> None:
    (folders[0] / "file").write_bytes(b"x" * 5000)
    fd = os.open(folders[1] / "file", os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, 2 * PAGE)
    assert os.preadv(fd, [buffer], PAGE) == 5000 - PAGE
    assert os.preadv(fd, [buffer], 5000) == 0
    assert os.preadv(fd, [buffer], 2 * PAGE) == 0
    os.close(fd)


# ---- mappings


def test_stores_to_mappings_on_three_nodes_are_seen_by_the_next_load(folders: list[Path]) -> None:
    """Nobody calls msync: the load that finds no page makes the other node give up its own."""
    size, chance = 3 * PAGE, random.Random(SEED)
    (folders[0] / "file").write_bytes(bytes(size))
    files = [(folder / "file").open("r+b") for folder in folders]
    maps = [mmap.mmap(file.fileno(), size) for file in files]
    reader = (folders[1] / "file").open("rb")
    shown = mmap.mmap(reader.fileno(), size, prot=mmap.PROT_READ)
    expected = [0] * (size // 8)
    for turn in range(60):
        place = chance.randrange(len(expected))
        expected[place] = turn + 1
        struct.pack_into("=Q", maps[turn % 3], 8 * place, turn + 1)
        for pages in (*maps, shown):
            assert struct.unpack_from("=Q", pages, 8 * place) == (turn + 1,), turn
        assert os.pread(files[(turn + 1) % 3].fileno(), 8, 8 * place) == struct.pack("=Q", turn + 1)
    assert all(pages[:] == struct.pack(f"={len(expected)}Q", *expected) for pages in maps)
    for pages in (*maps, shown):
        pages.close()
    for file in (*files, reader):
        file.close()
