"""Directory quotas on three nodes, with real daemons and mounts."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from clusterfs.cli.dev import Cluster

KIB = 1 << 10
PATIENCE_S = 150.0


def clusterfs(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "clusterfs.cli.main", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout if done.returncode == 0 else f"refused: {done.stderr}"


def used(path: Path) -> tuple[int, int]:
    return tuple(
        int(os.getxattr(path, f"user.clusterfs.quota.used_{x}")) for x in ("bytes", "files")
    )


def found(top: Path) -> tuple[int, int]:
    """Return what `used` should be, by looking."""
    paths = list(top.rglob("*"))
    return sum(path.stat().st_size for path in paths if path.is_file()), len(paths)


def append(path: Path, block: bytes, written: list[int]) -> None:
    """Append to a file until that is refused."""

    def append_for_ever() -> None:
        while True:
            written.append(os.write(file.fileno(), block))

    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="quota") as refused:
        append_for_ever()
    assert refused.value.errno == errno.EDQUOT


def test_writers_on_three_nodes_share_a_quota_to_the_byte(folders: list[Path]) -> None:
    tops = [folder / "team" for folder in folders]
    tops[0].mkdir()
    clusterfs("quota", "set", tops[0], "--bytes", "300k", "--files", "10")
    written: list[list[int]] = [[], [], []]
    writers = [
        threading.Thread(target=append, args=(top / f"file {n}", b"x" * (1000 + n), written[n]))
        for n, top in enumerate(tops)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    total = sum(map(sum, written))
    assert 300 * KIB - 1002 < total <= 300 * KIB
    assert used(tops[1]) == found(tops[2]) == (total, 3)
    with (tops[0] / "last").open("wb", buffering=0) as file:
        assert file.write(b"y" * (300 * KIB - total)) == 300 * KIB - total
        with pytest.raises(OSError, match="quota"):
            file.write(b"z")
    for number in range(6):
        (tops[number % 3] / f"empty {number}").touch()
    with pytest.raises(OSError, match="quota"):
        (tops[2] / "one more").mkdir()
    (tops[1] / "file 1").unlink()
    (tops[2] / "again").write_bytes(bytes(sum(written[1])))
    assert used(tops[0]) == found(tops[0]) == (300 * KIB, 10)


def test_a_killed_node_leaves_a_quota_that_is_exact(folders: list[Path], cluster: Cluster) -> None:
    tops = [folder / "team" for folder in folders]
    tops[0].mkdir()
    os.setxattr(tops[0], "user.clusterfs.quota.bytes", b"100000")
    for number, top in enumerate(tops):
        (top / f"file {number}").write_bytes(bytes(10_000))
    with (tops[2] / "more").open("wb", buffering=0) as file:
        file.write(bytes(20_000))
        os.fsync(file.fileno())
    cluster.kill("n3")
    written: list[int] = []
    append(tops[0] / "rest", b"x" * 100, written)
    assert sum(written) in (50_000, 60_000)  # what n3 had not synced went with it
    assert used(tops[1]) == found(tops[1]) == (100_000, 5)
    cluster.start("n3")
    deadline = time.monotonic() + PATIENCE_S
    while used(tops[2]) != found(tops[2]):
        assert time.monotonic() < deadline
    with pytest.raises(OSError, match="quota"):
        (tops[2] / "too much").write_bytes(b"x")


def test_the_command_sets_shows_lists_and_removes(folders: list[Path]) -> None:
    top = folders[0] / "team"
    (top / "inner").mkdir(parents=True)
    assert "not empty" in clusterfs("quota", "set", top, "--bytes", "1M")
    (top / "inner").rmdir()
    assert "no limit" in clusterfs("quota", "set", top, "--bytes", "much")
    assert "name a limit" in clusterfs("quota", "set", top)
    assert "no quota" in clusterfs("quota", "show", top)
    clusterfs("quota", "set", top, "--bytes", "1M")
    (folders[1] / "team" / "inner").mkdir()
    assert "do not nest" in clusterfs("quota", "set", top / "inner", "--files", "1")
    (folders[1] / "team" / "inner" / "file").write_bytes(bytes(100))
    expected = {"used_bytes": 100, "used_files": 2, "limit_bytes": 1 << 20, "limit_files": 0}
    assert json.loads(clusterfs("quota", "show", folders[2] / "team", "--json")) == expected
    listed = json.loads(clusterfs("quota", "list", folders[0].parent, "--json"))
    mine = [one for one in listed if one["inode"] == top.stat().st_ino]
    assert mine == [{"inode": top.stat().st_ino, "path": f"/{folders[0].name}/team", **expected}]
    clusterfs("snapshot", "create", top, "first")
    assert used(folders[1] / "team")[0] == 200
    assert "quota cannot be replaced" in clusterfs("snapshot", "restore", top, "first")
    with pytest.raises(OSError, match="cross-device"):
        (top / "inner" / "file").rename(folders[0] / "file")
    clusterfs("quota", "remove", folders[1] / "team")
    (top / "inner" / "large").write_bytes(bytes(2 << 20))
