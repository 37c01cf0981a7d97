"""fio's verifier: what is written on one node is what is read on another."""

import subprocess
from pathlib import Path

import pytest


def fio(path: Path, *words: str) -> None:
    done = subprocess.run(
        [
            *("fio", "--name=verify", f"--filename={path}", "--size=48m", "--rw=randwrite"),
            *("--verify=xxhash", "--verify_fatal=1", "--verify_backlog=0", "--randseed=4711"),
            *("--group_reporting", "--output-format=terse", *words),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verify:" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    "way",
    [
        ["--direct=1", "--ioengine=libaio", "--iodepth=16", "--bs=4k"],
        ["--direct=1", "--ioengine=psync", "--bsrange=4k-128k", "--blockalign=4k"],
        ["--direct=0", "--ioengine=psync", "--bs=4k"],
        ["--direct=0", "--ioengine=mmap", "--bs=4k"],
    ],
    ids=["O_DIRECT", "O_DIRECT of all sizes", "page cache", "mmap"],
)
def test_random_writes_are_read_back_elsewhere(folders: list[Path], way: list[str]) -> None:
    fio(folders[0] / "f", *way, "--do_verify=0")
    fio(folders[1] / "f", *way, "--verify_only")
    fio(folders[2] / "f", "--direct=0", "--ioengine=psync", *way[2:], "--verify_only")
