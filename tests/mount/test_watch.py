"""clusterfs watch: what happens in a directory on any node, in order and complete."""

import contextlib
import ctypes
import json
import os
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clusterfs.cli.dev import Cluster

PATIENCE_S = 150.0


class Watcher:
    """A running `clusterfs watch --json`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: queue.Queue[str] = queue.Queue()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def next(self) -> dict[str, Any]:
        line = self._lines.get(timeout=PATIENCE_S)
        assert line, "the watcher ended"
        told: dict[str, Any] = json.loads(line)
        return told

    def told(self, count: int) -> list[tuple[str, str]]:
        events = [self.next() for _ in range(count)]
        return [(one["event"], one["name"]) for one in events]

    def wait_for(self, event: str) -> dict[str, Any]:
        while (told := self.next())["event"] != event:
            pass
        return told

    def join(self) -> None:
        self._thread.join()


@contextlib.contextmanager
def watching(path: Path, *options: str) -> Iterator[Watcher]:
    command = [sys.executable, "-m", "clusterfs.cli.main", "watch", "--json", *options, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        watcher = Watcher(process)
        try:
            assert watcher.next()["event"] == "watching"
            yield watcher
        finally:
            process.terminate()
            watcher.join()


class Inotify:
    """inotify(7) on some paths, for all events that change something."""

    MASK = 0x0FC6 | 0x0008  # all but access, open and close after reading
    _EVENT = struct.Struct("=iIII")

    def __init__(self, *paths: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = libc.inotify_init1(os.O_CLOEXEC)
        assert self.descriptor >= 0
        self._watched = {
            libc.inotify_add_watch(self.descriptor, os.fsencode(path), self.MASK): path.name
            for path in paths
        }
        assert len(self._watched) == len(paths)

    def until(self, last: str) -> list[tuple[str, int, str]]:
        """Return (watched path, kind, name) of all events up to one of this name."""
        events: list[tuple[str, int, str]] = []
        while last not in [name for _, _, name in events]:
            data = os.read(self.descriptor, 1 << 16)
            while data:
                watch, kind, _, size = self._EVENT.unpack_from(data)
                name = data[self._EVENT.size :][:size].rstrip(b"\0").decode()
                events.append((self._watched[watch], kind, name))
                data = data[self._EVENT.size + size :]
        return events


def test_inotify_tells_of_its_own_node_alone_and_of_nothing_that_did_not_happen(
    folders: list[Path],
) -> None:
    """See docs/decisions/0012: no invalidation makes such an event for a directory."""
    one, two, _ = folders
    for name in ("kept", "gone", "moved", "tree/inner"):
        (one / name).parent.mkdir(exist_ok=True)
        (one / name).write_bytes(b"content")
    watched = Inotify(two, two / "kept", two / "gone", two / "moved", two / "tree")
    try:
        (one / "new").write_bytes(b"content")
        (one / "kept").write_bytes(b"other content")
        (one / "gone").unlink()
        (one / "moved").rename(one / "elsewhere")
        (one / "tree" / "inner").unlink()
        (one / "tree").rmdir()
        assert sorted(os.listdir(two)) == ["elsewhere", "kept", "new"]
        assert (two / "kept").read_bytes() == b"other content"
        os.mknod(two / "own")
        own = two.name
        assert watched.until("own") == [(own, 0x100, "own")]  # IN_CREATE
        (two / "own").rename(two / "again")
        (two / "new").unlink()
        assert watched.until("new") == [
            (own, 0x40, "own"),  # IN_MOVED_FROM, then IN_MOVED_TO
            (own, 0x80, "again"),
            (own, 0x200, "new"),  # IN_DELETE
        ]
    finally:
        os.close(watched.descriptor)


def test_a_watcher_is_told_what_every_node_does(folders: list[Path]) -> None:
    one, two, three = folders
    os.mknod(one / "old")  # unlike touch it opens nothing, and so closes nothing later
    with watching(three) as watcher:
        (one / "file").write_bytes(b"content")
        assert watcher.told(2) == [("create", "file"), ("close_write", "file")]
        (two / "file").rename(two / "renamed")
        (three / "renamed").read_bytes()  # tells nothing
        (three / "inner").mkdir()
        os.mknod(three / "inner" / "elsewhere")
        os.link(one / "renamed", one / "link")
        os.symlink("target", two / "symlink")
        assert watcher.told(5) == [
            ("moved_from", "file"),
            ("moved_to", "renamed"),
            ("create", "inner"),
            ("create", "link"),
            ("create", "symlink"),
        ]
        with (two / "old").open("ab") as file:
            file.write(b"more")
        assert watcher.told(1) == [("close_write", "old")]
        (one / "old").unlink()
        (two / "inner" / "elsewhere").rename(two / "out")
        (two / "inner").rmdir()
        (one / "out").replace(one / "renamed")
        assert watcher.told(5) == [
            ("delete", "old"),
            ("moved_to", "out"),
            ("delete", "inner"),
            ("moved_from", "out"),
            ("moved_to", "renamed"),
        ]


def test_events_of_three_busy_nodes_come_in_an_order_that_can_be(folders: list[Path]) -> None:
    """Replayed, they must never make what is there, take what is not, and end with what is left."""
    rounds = 25

    def churn(number: int) -> None:
        for turn in range(rounds):
            path = folders[number] / f"name {turn % 4}"
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            with contextlib.suppress(FileNotFoundError):
                path.unlink() if turn % 3 else path.rename(folders[number] / f"moved {number}")
        (folders[number] / f"done {number}").mkdir()

    names: set[str] = set()
    with watching(folders[1]) as watcher:
        threads = [threading.Thread(target=churn, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        while not {f"done {number}" for number in range(3)} <= names:
            told = watcher.next()
            event, name = told["event"], told["name"]
            assert event != "overflow", told
            if event in ("create", "delete", "moved_from"):
                assert (name in names) == (event != "create"), told
            if event in ("create", "moved_to"):
                names.add(name)
            elif event in ("delete", "moved_from"):
                names.discard(name)
        for thread in threads:
            thread.join()
    assert names == {path.name for path in folders[0].iterdir()}


def test_a_watcher_is_told_that_it_may_have_missed_something(
    folders: list[Path], cluster: Cluster
) -> None:
    with watching(folders[0]) as watcher:
        cluster.kill("n3")
        assert watcher.wait_for("overflow")["why"]
        (folders[1] / "meanwhile").touch()
        assert watcher.wait_for("create")["name"] == "meanwhile"
        cluster.start("n3")
        assert watcher.wait_for("overflow")["why"]
        (folders[2] / "back").touch()
        assert watcher.wait_for("create")["name"] == "back"


def test_a_whole_tree_is_watched(folders: list[Path]) -> None:
    one, two, three = folders
    (one / "old" / "deep").mkdir(parents=True)
    with watching(three, "--recursive") as watcher:

        def told(count: int) -> list[tuple[str, str]]:
            events = [watcher.next() for _ in range(count)]
            return [(one["event"], f"{one['directory']}/{one['name']}") for one in events]

        (two / "old" / "deep" / "file").write_bytes(b"x")
        assert told(2) == [("create", "old/deep/file"), ("close_write", "old/deep/file")]
        (one / "new").mkdir()
        assert told(1) == [("create", "/new")]
        os.mknod(two / "new" / "inner")  # told, whether it comes before or after it is watched
        assert told(1) == [("create", "new/inner")]
        (two / "old" / "deep").rename(two / "new" / "deep")
        assert told(2) == [("moved_from", "old/deep"), ("moved_to", "new/deep")]
        (one / "new" / "deep" / "file").unlink()
        (one / "new" / "deep").rmdir()
        assert told(2) == [("delete", "new/deep/file"), ("delete", "new/deep")]


def test_only_directories_are_watched(folders: list[Path]) -> None:
    (folders[0] / "file").touch()
    command = [sys.executable, "-m", "clusterfs.cli.main", "watch", str(folders[0] / "file")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no directory" in done.stderr


@pytest.mark.parametrize("node", [0, 1])
def test_a_watch_ends_with_its_directory(folders: list[Path], node: int) -> None:
    top = folders[node] / "top"
    top.mkdir()
    with watching(top) as watcher:
        (folders[2] / "top").rmdir()
        assert watcher.process.wait(PATIENCE_S) == 0
