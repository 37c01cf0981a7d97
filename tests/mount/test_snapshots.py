"""clusterfs clone and clusterfs snapshot on three nodes."""

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from clusterfs.cli import snapshot
from clusterfs.cli.dev import Cluster
from tests.mount.support.qemu import eventually

MIB = 1 << 20


def clusterfs(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "clusterfs.cli.main", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout if done.returncode == 0 else f"refused: {done.stderr}"


def live_bytes(folder: Path) -> int:
    found: dict[str, Any] = json.loads(clusterfs("df", folder.parent, "--json"))
    return int(found["live_bytes"])


def write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def test_a_clone_of_a_file_takes_no_room(folders: list[Path]) -> None:
    data = random.Random(3).randbytes(5 * MIB + 77)
    write_synced(folders[0] / "disk", data)
    (folders[0] / "disk").chmod(0o604)
    os.setxattr(folders[0] / "disk", "user.origin", b"yes")
    before = live_bytes(folders[0])
    clusterfs("clone", folders[1] / "disk", folders[1] / "clone")
    clone = folders[2] / "clone"
    assert clone.read_bytes() == data
    assert clone.stat().st_mode & 0o777 == 0o604
    assert clone.stat().st_mtime_ns == (folders[0] / "disk").stat().st_mtime_ns
    assert os.getxattr(clone, "user.origin") == b"yes"
    assert live_bytes(folders[0]) - before < MIB
    refusal = clusterfs("clone", folders[1] / "disk", clone)
    assert f"{clone} exists" in refusal
    assert sorted(path.name for path in folders[0].iterdir()) == ["clone", "disk"]


def test_users_who_may_not_ask_the_daemon_clone_by_ranges(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(5).randbytes(3 * MIB + 5)
    write_synced(folders[0] / "disk", data)
    before = live_bytes(folders[0])
    monkeypatch.setattr(snapshot, "_socket", lambda _target: None)
    snapshot.clone(folders[1] / "disk", folders[1] / "clone")
    assert (folders[2] / "clone").read_bytes() == data
    assert live_bytes(folders[0]) - before < MIB


def test_what_cannot_be_cloned_is_refused_at_once(folders: list[Path], tmp_path: Path) -> None:
    (folders[0] / "tree" / "inner").mkdir(parents=True)
    os.mkfifo(folders[0] / "tree" / "fifo")
    refused = clusterfs("clone", folders[0] / "tree", folders[0] / "tree" / "inner" / "copy")
    assert "into itself" in refused
    refused = clusterfs("clone", folders[1] / "tree" / "fifo", folders[1] / "copy")
    assert "neither a file nor a directory" in refused
    for verb in ("create", "list"):
        assert "is no directory" in clusterfs("snapshot", verb, folders[0] / "tree" / "fifo")
        assert "is on no clusterfs" in clusterfs("snapshot", verb, tmp_path)
    assert not list(tmp_path.iterdir())
    assert not list((folders[2] / "tree" / "inner").iterdir())
    assert sorted(path.name for path in folders[2].iterdir()) == ["tree"]


def test_a_clone_beyond_a_quota_is_refused_and_leaves_nothing(folders: list[Path]) -> None:
    write_synced(folders[0] / "disk", random.Random(6).randbytes(3 * MIB))
    limited = folders[0] / "limited"
    limited.mkdir()
    clusterfs("quota", "set", limited, "--bytes", str(4 * MIB))
    clusterfs("clone", folders[1] / "disk", folders[1] / "limited" / "one")
    assert "uota" in clusterfs("clone", folders[2] / "disk", folders[2] / "limited" / "two")
    assert os.listdir(limited) == ["one"]
    assert (limited / "one").stat().st_size == 3 * MIB


def test_a_clone_of_a_tree_goes_its_own_way(folders: list[Path]) -> None:
    tree = folders[0] / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "inner" / "file").write_bytes(b"old")
    (tree / "link").symlink_to("inner/file")
    clusterfs("clone", folders[1] / "tree", folders[1] / "copy")
    (tree / "inner" / "file").write_bytes(b"new")
    (tree / "more").touch()
    for folder in folders:
        assert (folder / "copy" / "link").read_bytes() == b"old"
        assert sorted(path.name for path in (folder / "copy").iterdir()) == ["inner", "link"]
    assert sorted(path.name for path in folders[1].iterdir()) == ["copy", "tree"]


def test_a_snapshot_is_of_one_moment_while_another_node_writes(folders: list[Path]) -> None:
    top = folders[0] / "top"
    top.mkdir()
    names = ["a", "b", "c"]
    for name in names:
        (top / name).write_bytes(b"00000000")
    stop = threading.Event()
    turns = [0]

    def count_up() -> None:
        files = [os.open(folders[1] / "top" / name, os.O_RDWR) for name in names]
        while not stop.is_set():
            turns[0] += 1
            for file in files:
                os.pwrite(file, b"%08d" % turns[0], 0)
        for file in files:
            os.close(file)

    writer = threading.Thread(target=count_up)
    writer.start()
    try:
        for number in range(3):
            clusterfs("snapshot", "create", folders[number] / "top", f"s{number}")
    finally:
        stop.set()
        writer.join()
    for number in range(3):
        taken = folders[2] / "top" / ".snapshots" / f"s{number}"
        values = [int((taken / name).read_bytes()) for name in names]
        assert values == sorted(values, reverse=True)
        assert values[0] - values[-1] <= 1
    listed = json.loads(clusterfs("snapshot", "list", folders[0] / "top", "--json"))
    assert [one["name"] for one in listed] == ["s0", "s1", "s2"]


def test_snapshots_are_restored_and_removed_and_cost_what_changed(folders: list[Path]) -> None:
    top = folders[0] / "top"
    top.mkdir()
    data = random.Random(4).randbytes(4 * MIB)
    write_synced(top / "disk", data)
    before = live_bytes(top.parent)
    clusterfs("snapshot", "create", folders[1] / "top", "first")
    with (folders[2] / "top" / "disk").open("r+b") as file:
        file.write(b"changed")
        file.flush()
        os.fsync(file.fileno())
    (top / "later").touch()
    assert live_bytes(top.parent) - before < MIB
    assert "no snapshot other" in clusterfs("snapshot", "restore", top, "other")
    clusterfs("snapshot", "restore", top, "first")
    for folder in folders:
        assert (folder / "top" / "disk").read_bytes() == data
        assert sorted(p.name for p in (folder / "top").iterdir()) == [".snapshots", "disk"]
    clusterfs("snapshot", "remove", folders[2] / "top", "first")
    assert json.loads(clusterfs("snapshot", "list", top, "--json")) == []
    assert (top / "disk").read_bytes() == data
    assert sorted(path.name for path in folders[1].iterdir()) == ["top"]


def test_a_snapshot_that_is_removed_gives_back_what_only_it_had(folders: list[Path]) -> None:
    top = folders[0] / "top"
    top.mkdir()
    contents = [random.Random(seed).randbytes(8 * MIB) for seed in range(3)]
    write_synced(top / "disk", contents[0])
    before = live_bytes(top.parent)
    for number in (1, 2):
        clusterfs("snapshot", "create", folders[number] / "top", f"s{number}")
        with (folders[number] / "top" / "disk").open("r+b") as file:
            file.write(contents[number])
            os.fsync(file.fileno())
    full = live_bytes(top.parent)
    assert full - before > 15 * MIB
    for number in (1, 2):
        clusterfs("snapshot", "remove", top, f"s{number}")
        most = full - number * 7 * MIB
        eventually(lambda most=most: live_bytes(top.parent) < most, "nothing is freed")  # type: ignore[misc]
    assert (folders[0] / "top" / "disk").read_bytes() == contents[2]


def replicas_differ(cluster: Cluster) -> int:
    """Compare all replicas; return how many objects differ."""
    node = cluster.nodes[0]
    passes = node.ask("compare")["passes"]
    node.ask("compare", action="start")
    eventually(lambda: node.ask("compare")["passes"] > passes, "the comparison does not end")
    return int(node.ask("compare")["diverged"])


def test_clones_are_equal_on_replicas_that_were_away_or_died_meanwhile(
    folders: list[Path], cluster: Cluster
) -> None:
    expected = {"disk": bytearray(random.Random(7).randbytes(6 * MIB))}
    write_synced(folders[0] / "disk", expected["disk"])

    def grow(numbers: range) -> None:
        """Clone the last one, and change a block of either."""
        for number in numbers:
            source, clone = list(expected)[-1], f"clone-{number}"
            snapshot.clone(folders[0] / source, folders[0] / clone)
            expected[clone] = expected[source][:]
            for name, at in ((source, number), (clone, 2 * number + 1)):
                block = bytes([number + 1]) * 4096
                with (folders[0] / name).open("r+b") as file:
                    file.seek(at * MIB // 4)
                    file.write(block)
                expected[name][at * MIB // 4 : at * MIB // 4 + 4096] = block

    cluster.kill("n3")
    grow(range(4))
    cluster.start("n3")
    dying = threading.Thread(target=cluster.kill, args=("n2",))
    dying.start()
    grow(range(4, 10))
    dying.join()
    cluster.start("n2")
    for folder in folders:
        for name, content in expected.items():
            assert (folder / name).read_bytes() == content, (folder, name)
    assert replicas_differ(cluster) == 0
