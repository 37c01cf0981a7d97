"""A daemon that may have few files open: refused with a line, or with less room; nothing fails."""

import contextlib
import errno
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from clusterfs.cli.dev import MOUNT_PROGRAM, Cluster, Node
from clusterfs.errors import SetupError

SEGMENT = {"segment_mib": "4"}
BLOCK = 1 << 20


def limited(files: int) -> Callable[[Node], list[str]]:
    """Return how mount.clusterfs is run with that hard limit."""
    return lambda _node: ["prlimit", f"--nofile={files}:{files}", *MOUNT_PROGRAM]


def test_with_too_few_it_is_refused(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(0, program=limited(200))
    with pytest.raises(SetupError, match=r"may have 200 files open, and the brick needs 268"):
        cluster.up(1, 1)


def test_with_few_the_brick_is_full_before_they_are_used_up(
    make_cluster: Callable[..., Cluster],
) -> None:
    """300 files are 22 segments of 4 MiB."""
    cluster = make_cluster(1, 1, settings=SEGMENT, program=limited(300))
    mount = cluster.nodes[0].mount
    space = os.statvfs(mount)
    assert 20 * BLOCK < space.f_blocks * space.f_frsize < 88 * BLOCK
    written = fill(mount, "first")
    assert 10 < len(written) < 88
    for path in written[::2]:
        path.unlink()
    fill(mount, "second")
    for path in written[1::2]:
        assert path.read_bytes() == content(path)
    assert not {"BRICK_READ_ONLY", "BRICK_DISK_FULL"} & codes(cluster.nodes[0])


def test_when_they_run_out_it_waits_for_others(make_cluster: Callable[..., Cluster]) -> None:
    """As if other programs had used up the machine's."""
    cluster = make_cluster(1, 1, settings=SEGMENT)
    node = cluster.nodes[0]
    assert node.process is not None
    before = resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE)
    open_now = len(os.listdir(f"/proc/{node.process.pid}/fd"))
    resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, (open_now, before[1]))
    written = fill(node.mount, "scarce")
    resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, before)
    for _ in range(1200):
        space = os.statvfs(node.mount)
        if space.f_bavail * space.f_frsize > 100 * BLOCK:
            break
        time.sleep(0.05)
    assert written
    assert "BRICK_READ_ONLY" not in codes(node)
    for path in [*written, *fill(node.mount, "again", 20)]:
        assert path.read_bytes() == content(path)


def fill(folder: Path, name: str, most: int = 1000) -> list[Path]:
    """Write files that share no block, until there is no room; return them."""
    written: list[Path] = []
    for n in range(most):
        path = folder / f"{name}-{n}"
        if not accepted(path):
            return written
        written.append(path)
    assert most < 1000, "it takes everything"
    return written


def accepted(path: Path) -> bool:
    """Write a file; False if there is no room."""
    try:
        with path.open("wb", buffering=0) as file:
            file.write(content(path))
            if path.name.endswith("7"):
                os.fsync(file.fileno())
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return False
    return True


def codes(node: Node) -> set[str]:
    return {finding["code"] for finding in node.ask("status")["codes"]}


def content(path: Path) -> bytes:
    """Return what is written to a file: no two blocks of any files are alike."""
    seeds = (f"{path.name} {block}".encode() for block in range(BLOCK // 4096))
    return b"".join(seed.ljust(4096, b"-") for seed in seeds)
