"""What completed on one node is what every other node sees next."""

import contextlib
import ctypes
import errno
import mmap
import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clusterfs.cli.dev import Cluster


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_no_read_is_stale_after_a_remote_write(folders: list[Path]) -> None:
    (folders[0] / "f").write_bytes(bytes(8192))
    stale = 0
    with (
        opened(folders[0] / "f", os.O_RDWR) as writer,
        opened(folders[1] / "f", os.O_RDONLY) as second,
        opened(folders[2] / "f", os.O_RDONLY) as third,
    ):
        for number in range(1000):
            data = number.to_bytes(8, "big") * 512
            offset = 4096 * (number % 2)
            os.pwrite(writer, data, offset)
            reader = second if number % 3 else third
            stale += os.pread(reader, 4096, offset) != data
    assert stale == 0


def test_no_read_is_stale_when_writers_take_turns(folders: list[Path]) -> None:
    (folders[0] / "f").write_bytes(bytes(4096))
    stale = 0
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(opened(path / "f", os.O_RDWR)) for path in folders]
        for number in range(300):
            data = number.to_bytes(8, "big")
            os.pwrite(writers[number % 3], data, 100)
            stale += os.pread(writers[(number + 1) % 3], 8, 100) != data
    assert stale == 0


def test_no_size_is_stale_after_a_remote_append_or_truncate(folders: list[Path]) -> None:
    (folders[0] / "f").touch()
    stale = 0
    with (
        opened(folders[0] / "f", os.O_WRONLY | os.O_APPEND) as writer,
        opened(folders[1] / "f", os.O_RDONLY) as reader,
    ):
        size = 0
        for number in range(200):
            if number % 10 == 9:
                size //= 2
                os.ftruncate(writer, size)
            else:
                size += os.write(writer, b"x" * (number * 37 + 1))
            stale += os.fstat(reader).st_size != size
            stale += (folders[2] / "f").stat().st_size != size
    assert stale == 0


def test_no_lookup_is_stale_after_a_remote_create_rename_or_unlink(folders: list[Path]) -> None:
    here, there = folders[0], folders[1]
    stale = 0
    for number in range(500):
        old, new = f"old-{number}", f"new-{number}"
        stale += (there / old).exists()  # a negative dentry to be dropped
        (here / old).write_bytes(b"x" * number)
        stale += not (there / old).exists() or (there / old).stat().st_size != number
        if number % 2:
            stale += (there / new).exists()
            (here / old).rename(here / new)
            stale += (there / old).exists() or not (there / new).exists()
            (here / new).unlink()
            stale += (there / new).exists()
        else:
            (here / old).unlink()
            stale += (there / old).exists()
    assert stale == 0
    assert list(there.iterdir()) == []


def test_a_name_replaced_elsewhere_leads_to_the_new_file(folders: list[Path]) -> None:
    for number in range(50):
        (folders[0] / "new").write_text(f"content {number}")
        (folders[0] / "new").rename(folders[0] / "name")
        assert (folders[1] / "name").read_text() == f"content {number}"
        assert (folders[2] / "name").stat().st_ino == (folders[0] / "name").stat().st_ino


def test_a_name_that_is_replaced_elsewhere_is_never_missing(folders: list[Path]) -> None:
    """What is replaced between the lookup of its name and its use is looked up again."""
    name = folders[0] / "config"
    uses: list[Callable[[], object]] = [
        name.stat,
        lambda: os.close(os.open(name, os.O_RDONLY)),
        lambda: name.chmod(0o644),
        lambda: os.listxattr(name),
    ]
    missing: list[OSError] = []
    over = threading.Event()

    def use(call: Callable[[], object]) -> None:
        while not over.is_set():
            try:
                call()
            except OSError as failure:
                if failure.errno != errno.ESTALE:  # replaced twice while it was looked for twice
                    missing.append(failure)

    name.write_text("0")
    with ThreadPoolExecutor(len(uses)) as pool:
        users = [pool.submit(use, call) for call in uses]
        try:
            for number in range(150):
                (folders[1] / "new").write_text(str(number))
                (folders[1] / "new").rename(folders[1] / "config")
        finally:
            over.set()
        for user in users:
            user.result()
    assert missing == []
    assert name.read_text() == "149"


def test_attributes_and_xattrs_changed_on_one_node_are_seen_on_others(folders: list[Path]) -> None:
    path, other = folders[0] / "f", folders[1] / "f"
    path.write_text("x")
    for number in range(50):
        path.chmod(0o600 + number % 8)
        os.utime(path, ns=(number * 10**9 + 1, number * 10**9 + 2))
        os.setxattr(path, "user.number", str(number).encode())
        seen = other.stat()
        assert seen.st_mode & 0o777 == 0o600 + number % 8
        assert (seen.st_atime_ns, seen.st_mtime_ns) == (number * 10**9 + 1, number * 10**9 + 2)
        assert os.getxattr(other, "user.number") == str(number).encode()


def test_lines_appended_on_three_nodes_at_once_are_all_there_and_whole(
    folders: list[Path],
) -> None:
    (folders[0] / "log").touch()

    def append(node: int) -> None:
        sizes = random.Random(node)
        with opened(folders[node] / "log", os.O_WRONLY | os.O_APPEND) as log:
            for number in range(1000):
                line = f"{node} {number} ".encode() + b"." * sizes.randrange(200) + b"\n"
                assert os.write(log, line) == len(line)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(append, range(3)))

    contents = [(path / "log").read_bytes() for path in folders]
    assert contents[0] == contents[1] == contents[2]
    lines = contents[0].splitlines()
    assert len(lines) == 3000
    for node in range(3):
        sizes = random.Random(node)
        expected = [
            f"{node} {number} ".encode() + b"." * sizes.randrange(200) for number in range(1000)
        ]
        assert [line for line in lines if line.startswith(b"%d " % node)] == expected


def test_of_three_exclusive_creates_one_wins(folders: list[Path]) -> None:
    start = threading.Barrier(3)

    def create(node: int) -> list[bool]:
        won = []
        for number in range(50):
            start.wait()
            try:
                os.close(os.open(folders[node] / f"x{number}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                won.append(False)
            else:
                won.append(True)
        return won

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(create, range(3)))
    assert [sum(won) for won in zip(*results, strict=True)] == [1] * 50


def test_renames_of_one_name_from_all_nodes_happen_once_each(folders: list[Path]) -> None:
    for number in range(60):
        (folders[number % 3] / f"f{number}").touch()

    def take(node: int) -> int:
        taken = 0
        for number in range(60):
            with contextlib.suppress(FileNotFoundError):
                (folders[node] / f"f{number}").rename(folders[node] / f"taken-{node}-{number}")
                taken += 1
        return taken

    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(take, range(3))) == 60
    assert len(list(folders[0].iterdir())) == 60


def test_a_file_unlinked_elsewhere_stays_readable_and_writable_while_open(
    folders: list[Path],
) -> None:
    (folders[0] / "f").write_bytes(b"a" * 100_000)
    with opened(folders[1] / "f", os.O_RDWR) as kept:
        (folders[0] / "f").unlink()
        assert not (folders[1] / "f").exists()
        (folders[2] / "f").write_bytes(b"another file")
        assert os.pread(kept, 10, 99_995) == b"a" * 5
        os.pwrite(kept, b"b" * 10, 99_995)
        assert os.fstat(kept).st_size == 100_005
        assert os.fstat(kept).st_nlink == 0
        assert os.pread(kept, 20, 99_990) == b"a" * 5 + b"b" * 10
    assert (folders[1] / "f").read_bytes() == b"another file"


def test_a_directory_removed_elsewhere_takes_no_new_names(folders: list[Path]) -> None:
    (folders[0] / "d").mkdir()
    with opened(folders[1] / "d", os.O_RDONLY | os.O_DIRECTORY) as kept:
        (folders[0] / "d").rmdir()
        with pytest.raises(FileNotFoundError):
            os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=kept)
        with pytest.raises(FileNotFoundError):  # as a local filesystem says
            os.scandir(kept)


def test_mapped_memory_is_the_file_on_every_node(folders: list[Path]) -> None:
    (folders[0] / "f").write_bytes(bytes(3 * mmap.PAGESIZE))
    with (
        opened(folders[0] / "f", os.O_RDWR) as writer,
        mmap.mmap(writer, 0) as memory,
        opened(folders[1] / "f", os.O_RDWR) as other,
    ):
        for number in range(50):
            word = number.to_bytes(4, "big")
            memory[5000:5004] = word
            memory.flush()
            assert os.pread(other, 4, 5000) == word
            os.pwrite(other, word * 2, 9000)
            assert memory[9000:9008] == word * 2


def test_a_read_only_mapping_sees_remote_writes(folders: list[Path]) -> None:
    (folders[0] / "f").write_bytes(bytes(mmap.PAGESIZE))
    with (
        opened(folders[1] / "f", os.O_RDONLY) as reader,
        mmap.mmap(reader, 0, prot=mmap.PROT_READ) as memory,
        opened(folders[0] / "f", os.O_RDWR) as writer,
    ):
        for number in range(100):
            word = number.to_bytes(4, "big")
            os.pwrite(writer, word, 64)
            assert memory[64:68] == word


def test_directories_list_the_same_on_every_node_while_they_change(folders: list[Path]) -> None:
    names = {f"file-{number}" for number in range(300)}
    for name in names:
        (folders[0] / name).touch()
    for path in folders:
        assert names_in(path) == names
    for name in sorted(names)[::2]:
        (folders[1] / name).unlink()
    for path in folders:
        assert names_in(path) == set(sorted(names)[1::2])


def test_a_rename_into_its_own_subtree_is_refused_from_any_node(folders: list[Path]) -> None:
    (folders[0] / "a" / "b" / "c").mkdir(parents=True)
    with pytest.raises(OSError, match="Invalid argument") as caught:
        (folders[1] / "a").rename(folders[1] / "a" / "b" / "c" / "a")
    assert caught.value.errno == errno.EINVAL


def test_two_names_exchanged_on_one_node_are_exchanged_on_the_others(folders: list[Path]) -> None:
    (folders[0] / "a").write_text("A")
    (folders[0] / "b").write_text("B")
    assert (folders[1] / "a").read_text() == "A"
    libc = ctypes.CDLL(None, use_errno=True)
    exchange = 2
    answer = libc.renameat2(
        -100, os.fsencode(folders[0] / "a"), -100, os.fsencode(folders[0] / "b"), exchange
    )
    assert answer == 0, os.strerror(ctypes.get_errno())
    for path in folders:
        assert ((path / "a").read_text(), (path / "b").read_text()) == ("B", "A")


def test_small_files_change_elsewhere_while_they_are_answered_for_at_once(
    cluster: Cluster, folders: list[Path]
) -> None:
    """Opened, read and closed again and again: mostly without waiting, and never stale."""

    def answers() -> int:
        return int(
            cluster.nodes[1].ask("statistics")["statistics"]["filesystem"]["answers_at_once"]
        )

    before = answers()
    names = [f"small-{number}" for number in range(20)]
    for round_number in range(5):
        for name in names:
            (folders[0] / name).write_text(f"{name} {round_number}")
        for _ in range(3):
            for name in names:
                assert (folders[1] / name).read_text() == f"{name} {round_number}"
    (folders[0] / names[0]).rename(folders[0] / "moved")
    assert not (folders[1] / names[0]).exists()
    assert (folders[1] / "moved").read_text() == f"{names[0]} 4"
    (folders[0] / "moved").unlink()
    assert not (folders[1] / "moved").exists()
    assert answers() - before > 5 * 2 * len(names), "opens and closes"
