"""What the kernel and the handlers see of each other, on a real mount."""

import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import pytest

PAGE = 4096


def cached_read(path: Any) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read() or b""


def test_the_hook_is_called_and_completes_the_negotiation(served: Any) -> None:
    negotiated = served.ask("negotiated")
    assert negotiated["hooked"]
    assert negotiated["init_completed"]
    assert negotiated["allow_mmap"] == (negotiated["protocol_minor"] >= 39)


def test_files_come_back_as_they_were_written(served: Any) -> None:
    data = os.urandom(300_000)
    (served.directory / "sub").mkdir()
    (served.directory / "sub" / "file").write_bytes(data)
    assert (served.directory / "sub" / "file").read_bytes() == data
    (served.directory / "link").symlink_to("sub/file")
    assert (served.directory / "link").read_bytes() == data
    (served.directory / "link").unlink()
    (served.directory / "sub" / "file").rename(served.directory / "file")
    os.truncate(served.directory / "file", 10)
    assert (served.directory / "file").read_bytes() == data[:10]
    assert sorted(os.listdir(served.directory)) == ["file", "sub"]


def test_attributes_arrive_unchanged(served: Any) -> None:
    (served.directory / "file").write_bytes(b"x" * 1000)
    (served.directory / "file").chmod(0o640)
    status = (served.directory / "file").stat()
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert (status.st_size, status.st_blocks, status.st_nlink) == (1000, 2, 1)
    assert (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns) == (1, 2, 3)
    assert os.statvfs(served.directory).f_bavail == 500


def test_shared_writable_mapping_of_a_direct_io_handle(served: Any) -> None:
    path = served.directory / "file"
    path.write_bytes(bytes(2 * PAGE))
    descriptor = os.open(path, os.O_RDWR)
    with closing(mmap.mmap(descriptor, 2 * PAGE)) as mapping:
        mapping[PAGE : PAGE + 5] = b"hello"
        mapping.flush()
    os.close(descriptor)
    assert path.read_bytes()[PAGE : PAGE + 5] == b"hello"


def test_page_io_is_told_from_direct_io(served: Any) -> None:
    path = served.directory / "file"
    path.write_bytes(bytes(PAGE))
    served.ask("events")
    descriptor = os.open(path, os.O_RDWR)
    with closing(mmap.mmap(descriptor, PAGE)) as mapping:
        mapping[0:5] = b"hello"
        mapping.flush()
    os.pread(descriptor, 10, 0)
    os.pwrite(descriptor, b"direct", 100)
    os.close(descriptor)
    cached_read(path)
    io = [event for event in served.ask("events") if event.startswith(("read", "write"))]
    assert [event.split()[-1] for event in io] == [
        "cached",  # the mapping's page comes in
        "cached",  # and goes out
        "direct",  # pread
        "direct",  # pwrite
        "cached",  # a read-only handle fills the page cache
    ]


def test_pages_are_cached_until_they_are_invalidated(served: Any) -> None:
    path = served.directory / "file"
    path.write_bytes(b"old")
    number = path.stat().st_ino
    assert cached_read(path) == b"old"
    served.ask("change", number=number, text="new")
    assert cached_read(path) == b"old"
    served.ask("invalidate_pages", number=number, ranges=[[0, 0]])
    assert cached_read(path) == b"new"


def test_attributes_are_cached_until_they_are_invalidated(served: Any) -> None:
    path = served.directory / "file"
    path.write_bytes(b"1234")
    number = path.stat().st_ino
    served.ask("change", number=number, text="123456")
    assert path.stat().st_size == 4
    served.ask("invalidate_attributes", number=number)
    assert path.stat().st_size == 6


def test_invalidating_what_the_kernel_does_not_know_is_fine(served: Any) -> None:
    served.ask("invalidate_pages", number=999_999, ranges=[[0, PAGE], [PAGE, 0]])
    served.ask("invalidate_attributes", number=999_999)


def test_dropped_dentries_are_looked_up_again(served: Any) -> None:
    path = served.directory / "file"
    path.write_bytes(b"")
    path.stat()
    assert not (served.directory / "absent").exists()
    served.ask("events")
    path.stat()
    assert not (served.directory / "absent").exists()
    assert not [event for event in served.ask("events") if event.startswith("lookup")]
    served.ask("drop_dentries")
    path.stat()
    assert not (served.directory / "absent").exists()
    looked_up = [event for event in served.ask("events") if event.startswith("lookup")]
    assert looked_up == ["lookup file", "lookup absent"]


def test_invalidating_around_a_parked_read_does_not_hang(
    served: Any, background: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    path = served.directory / "file"
    path.write_bytes(b"o" * (64 * PAGE))
    number = path.stat().st_ino
    reader = os.open(path, os.O_RDONLY)
    os.posix_fadvise(reader, 0, 0, os.POSIX_FADV_RANDOM)  # one page at a time
    for page in (0, 63):
        os.pread(reader, PAGE, page * PAGE)
    served.ask("park", tag=f"page {32 * PAGE}")
    parked = background(lambda: os.pread(reader, PAGE, 32 * PAGE))
    eventually(lambda: served.ask("waiting", tag=f"page {32 * PAGE}"), "the read is parked")

    for page in (0, 32, 63):
        served.ask("change", number=number, text="new", offset=page * PAGE)
    around = [[0, 32 * PAGE], [33 * PAGE, 0]]
    served.ask("invalidate_pages", number=number, ranges=around)
    assert os.pread(reader, 3, 0) == b"new"
    assert os.pread(reader, 3, 63 * PAGE) == b"new"
    assert not parked.done

    served.ask("unpark", tag=f"page {32 * PAGE}")
    assert parked.outcome()[:3] == b"new"
    os.close(reader)


def test_flush_arrives_for_each_close_once_anything_was_locked(
    served: Any, eventually: Callable[..., Any]
) -> None:
    path = served.directory / "file"
    path.write_bytes(b"")
    first = os.open(path, os.O_RDWR)
    assert not os.isatty(first)
    events: list[str] = []
    eventually(lambda: events.extend(served.ask("events")) or "release" in events, "release")
    assert "flush" not in events, "nobody has locked anything, so closing need not be told"
    fcntl.flock(first, fcntl.LOCK_SH)
    second = os.dup(first)
    served.ask("events")
    os.close(second)
    os.close(first)
    events.clear()
    eventually(lambda: events.extend(served.ask("events")) or "release" in events, "release")
    assert [event for event in events if event in ("flush", "release")] == [
        "flush",
        "flush",
        "release",
    ]


def test_hundreds_of_blocked_requests_stop_nobody(
    served: Any, background: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    path = served.directory / "file"
    path.write_bytes(b"x" * PAGE)
    served.ask("park", tag="page 0")
    descriptor = os.open(path, os.O_RDWR)
    blocked = [background(lambda: os.pread(descriptor, 10, 0)) for _ in range(300)]
    eventually(lambda: served.ask("waiting", tag="page 0") == 300, "all are received")
    (served.directory / "other").write_bytes(b"y")
    assert (served.directory / "other").stat().st_size == 1
    served.ask("unpark", tag="page 0")
    assert [call.outcome() for call in blocked] == [b"x" * 10] * 300
    os.close(descriptor)


@pytest.mark.parametrize(
    ("name", "expected"), [("user.explode", errno.ECHILD), ("user.bug", errno.EIO)]
)
def test_an_exception_is_an_errno_and_not_the_end(served: Any, name: str, expected: int) -> None:
    with pytest.raises(OSError, match=os.strerror(expected)) as caught:
        os.setxattr(served.directory, name, b"")
    assert caught.value.errno == expected
    os.setxattr(served.directory, "user.fine", b"value")
    assert os.getxattr(served.directory, "user.fine") == b"value"
    assert os.listxattr(served.directory) == ["user.fine"]


def test_listing_counts_what_it_looked_up_and_nothing_else(
    served: Any, eventually: Callable[..., Any]
) -> None:
    names = [f"file{number:03}" for number in range(300)]
    for name in names:
        (served.directory / name).write_bytes(b"")
    (served.directory / "directory").mkdir()
    served.ask("drop_dentries")
    before = served.ask("lookups")
    with os.scandir(served.directory) as entries:
        listed = {entry.name: (entry.inode(), entry.is_dir()) for entry in entries}
    assert sorted(listed) == ["directory", *names]
    assert listed["directory"][1]
    number = listed["directory"][0]
    assert number == (served.directory / "directory").stat().st_ino
    after = served.ask("lookups")
    assert all(after[str(listed[name][0])] > before[str(listed[name][0])] for name in names)

    # The server checks that no FORGET takes back more than was counted; none may be left over.
    for name in names:
        (served.directory / name).unlink()
    with suppress(OSError), open("/proc/sys/vm/drop_caches", "w") as control:
        control.write("2")
    counts = eventually(lambda: forgotten(served, listed, names), "the kernel forgets them")
    assert counts == {0}


def forgotten(served: Any, listed: dict[str, tuple[int, bool]], names: list[str]) -> set[int]:
    counts = served.ask("lookups")
    left = {counts[str(listed[name][0])] for name in names}
    return left if left == {0} else set()


def test_the_table_of_cached_inodes_follows_opens_and_forgets(
    served: Any, eventually: Callable[..., Any]
) -> None:
    path = served.directory / "file"
    path.write_bytes(b"x")
    assert served.ask("cached") == 1
    path.unlink()
    eventually(lambda: served.ask("cached") == 0, "the kernel forgets the file")


def test_an_ordinary_unmount_ends_the_server_cleanly(served: Any) -> None:
    (served.directory / "file").write_bytes(b"x")
    served.tell("detach")
    assert served.process.wait(120) == 0
    assert not served.report.exists()
    assert not os.path.ismount(served.directory)


def test_a_busy_mount_is_unmounted_all_the_same(served: Any) -> None:
    path = served.directory / "file"
    path.write_bytes(b"x")
    descriptor = os.open(path, os.O_RDONLY)
    assert os.pread(descriptor, 1, 0) == b"x"
    served.tell("detach")
    assert served.process.wait(120) == 0
    assert not os.path.ismount(served.directory)
    with pytest.raises(OSError):  # noqa: PT011  the connection is gone; which errno is the kernel's choice
        os.pread(descriptor, 1, 0)
    with suppress(OSError):  # it wants to flush, too
        os.close(descriptor)
