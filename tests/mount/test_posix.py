"""What POSIX asks of one mount: errors, names, sizes, links, times, modes."""

import contextlib
import ctypes
import errno
import hashlib
import os
import random
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clusterfs.cli.dev import Cluster

TIB = 1 << 40
NOREPLACE, EXCHANGE = 1, 2


@contextlib.contextmanager
def failing(number: int) -> Iterator[None]:
    """Expect a system call to fail with exactly this errno."""
    with pytest.raises(OSError) as caught:  # noqa: PT011  (the errno is what is checked)
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


@contextlib.contextmanager
def opened(path: Path | bytes, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def renameat2(source: Path, target: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(source), -100, os.fsencode(target), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


@pytest.fixture
def here(folders: list[Path]) -> Path:
    return folders[0]


ERRORS: dict[str, tuple[int, Callable[[Path], object]]] = {
    "open a missing file": (errno.ENOENT, lambda p: os.open(p / "none", os.O_RDONLY)),
    "create under a missing directory": (errno.ENOENT, lambda p: (p / "none" / "x").touch()),
    "create under a file": (errno.ENOTDIR, lambda p: os.open(p / "file" / "x", os.O_CREAT)),
    "create what exists": (errno.EEXIST, lambda p: os.open(p / "file", os.O_CREAT | os.O_EXCL)),
    "write to a directory": (errno.EISDIR, lambda p: os.open(p / "full", os.O_WRONLY)),
    "O_DIRECTORY of a file": (errno.ENOTDIR, lambda p: os.open(p / "file", os.O_DIRECTORY)),
    "O_NOFOLLOW of a symlink": (errno.ELOOP, lambda p: os.open(p / "link", os.O_NOFOLLOW)),
    "symlinks in a circle": (errno.ELOOP, lambda p: os.stat(p / "circle")),
    "mkdir of what exists": (errno.EEXIST, lambda p: os.mkdir(p / "file")),
    "rmdir of a full directory": (errno.ENOTEMPTY, lambda p: os.rmdir(p / "full")),
    "rmdir of a file": (errno.ENOTDIR, lambda p: os.rmdir(p / "file")),
    "unlink of a directory": (errno.EISDIR, lambda p: os.unlink(p / "full")),
    "unlink of nothing": (errno.ENOENT, lambda p: os.unlink(p / "none")),
    "rename of nothing": (errno.ENOENT, lambda p: os.rename(p / "none", p / "x")),
    "rename of a file over a directory": (
        errno.EISDIR,
        lambda p: os.rename(p / "file", p / "empty"),
    ),
    "rename of a directory over a file": (
        errno.ENOTDIR,
        lambda p: os.rename(p / "empty", p / "file"),
    ),
    "rename over a full directory": (
        errno.ENOTEMPTY,
        lambda p: os.rename(p / "empty", p / "full"),
    ),
    "rename into itself": (errno.EINVAL, lambda p: os.rename(p / "full", p / "full" / "in")),
    "rename NOREPLACE": (errno.EEXIST, lambda p: renameat2(p / "file", p / "other", NOREPLACE)),
    "exchange with nothing": (errno.ENOENT, lambda p: renameat2(p / "file", p / "x", EXCHANGE)),
    "unknown rename flags": (errno.EINVAL, lambda p: renameat2(p / "file", p / "x", 64)),
    "link over a file": (errno.EEXIST, lambda p: os.link(p / "file", p / "other")),
    "link of a directory": (errno.EPERM, lambda p: os.link(p / "full", p / "x")),
    "link across filesystems": (errno.EXDEV, lambda p: os.link("/proc/self/status", p / "x")),
    "symlink over a file": (errno.EEXIST, lambda p: os.symlink("x", p / "file")),
    "readlink of a file": (errno.EINVAL, lambda p: os.readlink(p / "file")),
    "truncate of a directory": (errno.EISDIR, lambda p: os.truncate(p / "full", 0)),
    "truncate to a negative size": (errno.EINVAL, lambda p: os.truncate(p / "file", -1)),
    "truncate beyond 16 TiB": (errno.EFBIG, lambda p: os.truncate(p / "file", 16 * TIB + 1)),
    "a name of 256 bytes": (errno.ENAMETOOLONG, lambda p: os.mkdir(p / ("x" * 256))),
    "a missing xattr": (errno.ENODATA, lambda p: os.getxattr(p / "file", "user.none")),
    "remove a missing xattr": (errno.ENODATA, lambda p: os.removexattr(p / "file", "user.none")),
    "create an xattr twice": (
        errno.EEXIST,
        lambda p: os.setxattr(p / "file", "user.a", b"", os.XATTR_CREATE),
    ),
    "replace a missing xattr": (
        errno.ENODATA,
        lambda p: os.setxattr(p / "file", "user.b", b"", os.XATTR_REPLACE),
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_a_wrong_call_gets_its_errno_and_changes_nothing(here: Path, what: str) -> None:
    (here / "file").write_text("file")
    (here / "other").write_text("other")
    (here / "empty").mkdir()
    (here / "full").mkdir()
    (here / "full" / "inside").touch()
    (here / "link").symlink_to("file")
    (here / "circle").symlink_to("circle")
    os.setxattr(here / "file", "user.a", b"A")
    number, call = ERRORS[what]
    before = snapshot(here)
    with failing(number):
        call(here)
    assert snapshot(here) == before


def snapshot(folder: Path) -> list[tuple[str, os.stat_result]]:
    found = []
    for path in sorted(folder.rglob("*")):
        seen = path.lstat()
        found.append((str(path), seen.st_ino, seen.st_mode, seen.st_nlink, seen.st_size))
    return found


def test_modes_are_enforced_for_other_users(here: Path) -> None:
    (here / "mine").write_text("secret")
    (here / "mine").chmod(0o600)
    (here / "open").mkdir(mode=0o777)
    (here / "open").chmod(0o1777)
    (here / "open" / "roots").touch()
    here.chmod(0o755)

    script = f"""
import errno, os
def refused(number, call, *args):
    try:
        call(*args)
    except OSError as failure:
        assert failure.errno in number, failure
    else:
        raise SystemExit(f"not refused: {{call}} {{args}}")
os.setgroups([]); os.setgid(12345); os.setuid(12345)
os.chdir({str(here)!r})
refused([errno.EACCES], os.open, "mine", os.O_RDONLY)
refused([errno.EACCES], os.mkdir, "x")
refused([errno.EACCES], os.unlink, "mine")
refused([errno.EPERM], os.chmod, "mine", 0o777)
refused([errno.EPERM], os.chown, "mine", 12345, -1)
refused([errno.EPERM, errno.EACCES], os.unlink, "open/roots")
os.close(os.open("open/his", os.O_CREAT, 0o640))
assert os.stat("open/his").st_uid == 12345 and os.stat("open/his").st_gid == 12345
os.unlink("open/his")
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_new_files_take_umask_owner_and_the_group_of_a_setgid_directory(here: Path) -> None:
    (here / "d").mkdir()
    os.chown(here / "d", 0, 4242)
    (here / "d").chmod(0o2775)
    before = os.umask(0o027)
    try:
        os.close(os.open(here / "d" / "f", os.O_CREAT | os.O_WRONLY, 0o666))
        (here / "d" / "sub").mkdir()
    finally:
        os.umask(before)
    made = (here / "d" / "f").stat()
    assert (stat.S_IMODE(made.st_mode), made.st_gid) == (0o640, 4242)
    below = (here / "d" / "sub").stat()
    assert (stat.S_IMODE(below.st_mode), below.st_gid) == (0o2750, 4242)


def test_a_write_by_another_drops_the_setuid_bit(here: Path) -> None:
    here.chmod(0o777)
    path = here / "tool"
    path.write_text("x")
    path.chmod(0o6777)
    script = f"import os; os.setgid(99); os.setuid(99); open({str(path)!r}, 'a').write('y')"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o777


def test_times_follow_what_is_done(here: Path) -> None:
    path = here / "f"
    path.write_text("x")
    os.utime(path, ns=(1, 10**9 + 7))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (1, 10**9 + 7)
    old = path.stat().st_ctime_ns
    path.chmod(0o600)
    assert path.stat().st_ctime_ns > old
    assert path.stat().st_mtime_ns == 10**9 + 7
    path.write_text("yy")
    assert path.stat().st_mtime_ns > 10**9 + 7
    os.utime(here, ns=(1, 1))
    (here / "new").touch()
    assert here.stat().st_mtime_ns > 1


def test_link_counts_are_those_of_a_unix_filesystem(here: Path) -> None:
    before = here.stat().st_nlink
    (here / "d").mkdir()
    assert here.stat().st_nlink == before + 1
    (here / "f").touch()
    os.link(here / "f", here / "d" / "g")
    assert (here / "f").stat().st_nlink == 2
    assert (here / "f").samefile(here / "d" / "g")
    (here / "f").unlink()
    assert (here / "d" / "g").stat().st_nlink == 1
    (here / "d" / "g").rename(here / "f")
    (here / "d").rmdir()
    assert here.stat().st_nlink == before


def test_names_of_255_bytes_of_any_kind(folders: list[Path]) -> None:
    source = random.Random(255)
    allowed = [byte for byte in range(1, 256) if byte != ord("/")]
    names = {bytes(source.choices(allowed, k=255)) for _ in range(20)}
    names |= {bytes([byte]) for byte in allowed if byte != ord(".")} | {b"..." * 85, b" ", b"\n"}
    here, there = (os.fsencode(path) for path in folders[:2])
    for name in names:
        with opened(here + b"/" + name, os.O_CREAT | os.O_WRONLY) as made:
            os.write(made, name)
    assert set(os.listdir(there)) == names
    for name in names:
        with opened(there + b"/" + name, os.O_RDONLY) as found:
            assert os.read(found, 300) == name


def test_symlinks_hold_4095_bytes_of_any_kind(folders: list[Path]) -> None:
    target = bytes(random.Random(1).choices(range(1, 256), k=4095))
    os.symlink(target, os.fsencode(folders[0]) + b"/link")
    assert os.readlink(os.fsencode(folders[1]) + b"/link") == target
    assert (folders[1] / "link").lstat().st_size == 4095


def test_special_files_keep_their_kind(folders: list[Path]) -> None:
    os.mkfifo(folders[0] / "pipe")
    os.mknod(folders[0] / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(folders[0] / "socket", stat.S_IFSOCK | 0o600)
    assert stat.S_ISFIFO((folders[1] / "pipe").stat().st_mode)
    assert stat.S_ISSOCK((folders[1] / "socket").stat().st_mode)
    assert (folders[1] / "device").stat().st_rdev == os.makedev(1, 3)


def test_a_sparse_file_of_16_tib(folders: list[Path]) -> None:
    end = 16 * TIB
    places = [0, 12345, (64 << 20) - 3, 5 * TIB + 1, end - 6]
    with opened(folders[0] / "f", os.O_CREAT | os.O_RDWR) as writer:
        os.ftruncate(writer, end)
        for place in places:
            assert os.pwrite(writer, b"sparse", place) == 6
        with failing(errno.EFBIG):
            os.pwrite(writer, b"x", end)
    seen = (folders[1] / "f").stat()
    assert seen.st_size == end
    assert seen.st_blocks * 512 <= 1 << 20
    with opened(folders[1] / "f", os.O_RDONLY) as reader:
        for place in places:
            assert os.pread(reader, 6, place) == b"sparse"
        assert os.pread(reader, 8192, 3 * TIB) == bytes(8192)
        assert os.pread(reader, 100, end) == b""
    (folders[2] / "f").unlink()


def test_what_a_truncate_cut_off_reads_as_zeros_when_the_file_grows_again(
    folders: list[Path],
) -> None:
    (folders[0] / "f").write_bytes(b"x" * 10_000)
    os.truncate(folders[1] / "f", 5_001)
    os.truncate(folders[2] / "f", 9_000)
    with opened(folders[0] / "f", os.O_RDWR) as writer:
        os.pwrite(writer, b"y", 20_000)
    expected = b"x" * 5_001 + bytes(20_000 - 5_001) + b"y"
    for path in folders:
        assert (path / "f").read_bytes() == expected


def test_random_writes_truncates_and_reads_are_what_a_plain_file_does(
    folders: list[Path], tmp_path: Path
) -> None:
    source = random.Random(20)
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(opened(tmp_path / "f", os.O_CREAT | os.O_RDWR))
        nodes = [stack.enter_context(opened(p / "f", os.O_CREAT | os.O_RDWR)) for p in folders]
        for _ in range(600):
            node, kind = source.choice(nodes), source.random()
            offset, size = source.randrange(400_000), source.randrange(1, 70_000)
            if kind < 0.45:
                data = source.randbytes(size)
                assert os.pwrite(node, data, offset) == os.pwrite(model, data, offset)
            elif kind < 0.55:
                os.ftruncate(node, offset)
                os.ftruncate(model, offset)
            else:
                assert os.pread(node, size, offset) == os.pread(model, size, offset)
            assert os.fstat(node).st_size == os.fstat(model).st_size
        whole = hashlib.sha256((tmp_path / "f").read_bytes()).digest()
    for path in folders:
        assert hashlib.sha256((path / "f").read_bytes()).digest() == whole


def test_extended_attributes_hold_64_kib_of_any_bytes(folders: list[Path]) -> None:
    (folders[0] / "f").touch()
    value = random.Random(3).randbytes(65536)
    os.setxattr(folders[0] / "f", "user.big", value)
    os.setxattr(folders[0] / "f", "user.empty", b"")
    assert os.getxattr(folders[1] / "f", "user.big") == value
    assert set(os.listxattr(folders[1] / "f")) == {"user.big", "user.empty"}
    os.removexattr(folders[1] / "f", "user.big")
    assert os.listxattr(folders[2] / "f") == ["user.empty"]


@pytest.mark.timeout(2400)
def test_a_directory_of_100000_files(tmp_path: Path) -> None:
    count = 100_000
    cluster = Cluster(tmp_path / "c")
    cluster.up(1, 1)  # a third of what three nodes take
    try:
        big = cluster.nodes[0].mount / "big"
        big.mkdir()
        folder = os.open(big, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for number in range(count):
                os.mknod(f"file-{number:06}", stat.S_IFREG | 0o600, dir_fd=folder)
        finally:
            os.close(folder)
        cluster.down()
        cluster.up(1, 1)  # with nothing of it in memory
        names = os.listdir(big)
        assert len(names) == count
        assert set(names) == {f"file-{number:06}" for number in range(count)}
        assert (big / "file-099999").exists()
        assert not (big / "file-100000").exists()
    finally:
        cluster.down()


def test_space_is_reported_and_comes_back(cluster, folders: list[Path]) -> None:  # noqa: ANN001
    seen = os.statvfs(folders[0])
    assert seen.f_bsize * seen.f_blocks > 0
    assert 0 < seen.f_bavail <= seen.f_blocks
    assert seen.f_namemax == 255
    assert cluster.nodes


def test_the_root_cannot_be_removed_or_left(cluster, folders: list[Path]) -> None:  # noqa: ANN001
    root = cluster.nodes[0].mount
    assert (root / "..").resolve() == root.parent
    assert sorted(os.listdir(root)) == sorted(os.listdir(cluster.nodes[1].mount))
    with failing(errno.EBUSY):
        root.rmdir()
    assert folders[0].exists()
