"""The command: exit codes as fsck(8) has them, output for people and programs."""

import json
import subprocess
import sys
from pathlib import Path

import trio

from clusterfs.store.disk import DirectoryDisk
from clusterfs.store.objects import BLOCK_BYTES, Version, Write, stripe_object
from clusterfs.store.opening import Options
from clusterfs.store.store import Store

OPTIONS = Options(segment_bytes=1 << 20, log_bytes=1 << 17, size_limit_bytes=16 << 20)


def fsck(*words: str | Path, before: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "clusterfs.cli.main", "fsck", *map(str, words)]
    if before:
        command = ["/bin/sh", "-c", f'{before}; exec "$@"', "sh", *command]
    return subprocess.run(command, capture_output=True, text=True, check=False)


async def make_brick(path: Path, options: Options = OPTIONS) -> None:
    path.mkdir()
    store = await Store.open(DirectoryDisk(path, reserve_bytes=0), bytes(32), options=options)
    content = b"".join(bytes([n]) * BLOCK_BYTES for n in range(1, 5))
    store.replace(stripe_object(1 << 52 | 1, 0), 0, Version(1, 1), (Write(0, 4),), content)
    await store.close()


def test_the_command_says_what_it_found(tmp_path: Path) -> None:
    brick = tmp_path / "brick"
    trio.run(make_brick, brick)
    clean = fsck(brick)
    assert (clean.returncode, clean.stderr) == (0, "")
    assert clean.stdout == "clean: 4 references, 4 chunks, 1 objects\n"
    segment = next(
        p for p in (brick / "segments").iterdir() if p.read_bytes().find(b"\4" * 4096) > 0
    )
    with segment.open("r+b") as file:
        file.seek(file.read().find(b"\4" * 4096))
        file.write(b"?")
    told = fsck(brick, "--json")
    assert told.returncode == 4
    report = json.loads(told.stdout)
    assert (report["clean"], report["counts"]) == (False, {"data": 1, "log": 1})
    assert "block 3 of object" in report["problems"][1]
    assert fsck(brick, "--quick").returncode == 0
    assert "1 left" not in fsck(brick).stdout
    assert "2 left" in fsck(brick).stdout


def contents(brick: Path) -> dict[Path, tuple[int, bytes]]:
    files = [path for path in brick.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_without_repair_nothing_is_written(tmp_path: Path) -> None:
    brick = tmp_path / "brick"
    trio.run(make_brick, brick)
    (brick / "segments" / "00000099.new").write_bytes(b"of a segment that was never finished")
    before = contents(brick)
    assert fsck(brick).returncode == 0
    assert contents(brick) == before


def test_a_brick_is_put_away_and_a_new_one_can_be_made(tmp_path: Path) -> None:
    brick = tmp_path / "brick"
    trio.run(make_brick, brick)
    done = fsck("--set-aside", brick)
    assert done.returncode == 0
    kept = brick / "set-aside-1"
    assert sorted(p.name for p in kept.iterdir()) == ["brick.json", "checkpoint", "segments"]
    assert str(kept) in done.stdout
    assert fsck(brick).returncode == 8, "nothing is left to check"
    assert fsck(kept).returncode == 0, "what was put away is a brick"


def test_exit_codes_of_what_cannot_be_done(tmp_path: Path) -> None:
    assert fsck(tmp_path).returncode == 8
    assert fsck().returncode == 16
    brick = tmp_path / "brick"
    trio.run(make_brick, brick)
    disk = DirectoryDisk(brick)
    disk.lock()
    try:
        busy = fsck(brick)
    finally:
        disk.close()
    assert busy.returncode == 8
    assert "in use" in busy.stderr
    (brick / "brick.json").unlink()
    (brick / "brick.json").mkdir()
    broken = fsck(brick)
    assert (broken.returncode, broken.stdout) == (8, "")
    assert broken.stderr.startswith("clusterfs fsck: [Errno 21]"), "no traceback"


async def fill(path: Path, options: Options, blocks: int) -> None:
    store = await Store.open(DirectoryDisk(path, reserve_bytes=0), bytes(32), options=options)
    for n in range(1, blocks + 1):
        name, data = stripe_object(1 << 52 | n, 0), n.to_bytes(8, "little") * (BLOCK_BYTES // 8)
        await store.admit(BLOCK_BYTES)
        store.replace(name, 0, Version(1, 1), (Write(0, 1),), data)
    await store.close()


def test_a_brick_of_more_segments_than_a_shell_allows_open_files(tmp_path: Path) -> None:
    brick = tmp_path / "brick"
    options = Options(segment_bytes=64 << 10, log_bytes=32 << 10, size_limit_bytes=16 << 20)
    trio.run(make_brick, brick, options)
    trio.run(fill, brick, options, 1000)
    assert len(list((brick / "segments").iterdir())) > 50
    found = fsck(brick, before="ulimit -S -n 40")
    assert found.stdout.startswith("clean: "), found
