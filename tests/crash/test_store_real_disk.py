"""A store on a filesystem and a device of its own: killed, and its unsynced blocks lost or garbled.

A child process writes to a brick on a loop device and says what it has synced. It is killed; then
the image is changed as a disk may be that lost its power: each 4 KiB block of the logs that no sync
covered is kept, zeroed or garbage, and everything after some point is cut off. What was said to be
synced must be there, everything after it up to some point, and fsck finds nothing.
"""

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from clusterfs.errors import SetupError
from clusterfs.store.checking import check_brick
from clusterfs.store.disk import DirectoryDisk
from clusterfs.store.format import parse_header
from clusterfs.store.objects import BLOCK_BYTES, Put, Version, Write, stripe_object
from clusterfs.store.opening import Options
from clusterfs.store.store import Store

KEY = bytes(32)
OPTIONS = Options(
    segment_bytes=1 << 20, log_bytes=1 << 17, size_limit_bytes=96 << 20, checkpoint_bytes=4 << 20
)
OBJECTS, PLACES, ACKNOWLEDGED = 5, 40, 25
SEED = int(os.environ.get("CLUSTERFS_SEED", "0"))
SEEDS = range(SEED, SEED + (30 if os.environ.get("CLUSTERFS_EXHAUSTIVE") else 2))


def content(step: int) -> bytes:
    return random.Random(step).randbytes(BLOCK_BYTES * (1 + step % 3))


async def write_for_ever(brick: Path, seed: int) -> None:
    """Write step after step; print each that is synced, with the log's position, then go on."""
    store = await Store.open(DirectoryDisk(brick, reserve_bytes=0), KEY, options=OPTIONS)
    chooser, step, acknowledged = random.Random(seed), 0, 0
    while True:
        for _ in range(chooser.randrange(1, 30)):
            step += 1
            name = stripe_object(step % OBJECTS, 0)
            version = Version(1, store.version(name).counter + 1)
            data = content(step)
            write = Write(step % PLACES * 3, len(data) // BLOCK_BYTES)
            await store.admit(len(data) + 4096)
            store.replace(name, 1, version, (write, Put(b"step", b"%d" % step)), data)
            if chooser.random() < 0.3:
                store._log.seal()
        if acknowledged < ACKNOWLEDGED:
            await store.sync()
            acknowledged += 1
            print(step, store.position, flush=True)  # noqa: T201
        elif chooser.random() < 0.2:
            while store._log.backlog:  # all of it is written, none of it is synced
                await trio.sleep(0.001)
            print("unsynced", flush=True)  # noqa: T201
            await trio.sleep_forever()


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[None]:
    """Mount the image's filesystem through a loop device; both end with the block."""
    command = ["losetup", "--find", "--show", str(image)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        subprocess.run(["mount", "-t", "ext4", device, str(folder)], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", str(folder)], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def killed_after(brick: Path, seed: int) -> tuple[int, int]:
    """Run the writer, kill it, return the last step and position it said were synced."""
    command = [sys.executable, __file__, str(brick), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            lines = list(iter(child.stdout.readline, "unsynced\n"))
        finally:
            child.send_signal(signal.SIGKILL)
    step, position = map(int, lines[-1].split())
    return step, position


def unsynced(brick: Path, position: int) -> Iterator[tuple[Path, int]]:
    """Yield (segment file, offset) of each 4 KiB block of the logs above that position."""
    for path in sorted((brick / "segments").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            header = parse_header(data[at : at + BLOCK_BYTES], data[at + 16 : at + 32])
            if header is None:
                at += BLOCK_BYTES
                continue
            if header.id > position:
                yield from ((path, at + n) for n in range(0, header.length_bytes, BLOCK_BYTES))
            at += header.length_bytes


def place_in_image(path: Path, offset: int) -> int:
    """Return where on its device a block of a file is."""
    listing = subprocess.run(
        ["filefrag", "-v", "-b4096", str(path)], check=True, capture_output=True, text=True
    ).stdout
    block = offset // BLOCK_BYTES
    for line in re.findall(r"^ *\d+: +(\d+)\.\. +(\d+): +(\d+)\.\.", listing, re.MULTILINE):
        first, last, physical = map(int, line)
        if first <= block <= last:
            return (physical + block - first) * BLOCK_BYTES
    raise AssertionError(f"{path} has no block {block}")


def lose_power(image: Path, places: list[int], chooser: random.Random) -> None:
    """Keep, zero or garble the blocks at these places; cut off all after some point."""
    cut = chooser.randrange(len(places) + 1)
    with image.open("r+b") as file:
        for index, place in enumerate(places):
            fate = chooser.choice(("kept", "kept", "zeroed", "garbage"))
            if index >= cut or fate == "zeroed":
                file.seek(place)
                file.write(bytes(BLOCK_BYTES))
            elif fate == "garbage":
                file.seek(place + 512 * chooser.randrange(8))
                file.write(chooser.randbytes(512))


async def check(brick: Path, acknowledged: int) -> None:
    """Open the brick and compare."""
    store = await Store.open(DirectoryDisk(brick, reserve_bytes=0), KEY, options=OPTIONS)
    try:
        steps = [int(store.get(stripe_object(n, 0), b"step") or b"0") for n in range(OBJECTS)]
        last = max(steps)
        assert last >= acknowledged, "what was synced is gone"
        expected: dict[tuple[int, int], bytes] = {}
        for step in range(1, last + 1):
            data = content(step)
            for index in range(len(data) // BLOCK_BYTES):
                at = (step % OBJECTS, step % PLACES * 3 + index)
                expected[at] = data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
        for (number, block), data in expected.items():
            assert await store.read(stripe_object(number, 0), block, 1) == data, (number, block)
        store.validate()
    finally:
        await store.close()


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_killed_store_whose_device_lost_what_was_not_synced(
    seed: int, tmp_path: Path
) -> None:
    image, folder, brick = tmp_path / "image", tmp_path / "mnt", tmp_path / "mnt" / "brick"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(160 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "4096", str(image)], check=True)
    chooser = random.Random(seed)
    with mounted(image, folder):
        brick.mkdir()
        step, position = killed_after(brick, seed)
        os.sync()  # the filesystem's own metadata is not what is tested here
        places = [place_in_image(*block) for block in unsynced(brick, position)]
        assert len(places) > 5
    lose_power(image, places, chooser)
    with mounted(image, folder):
        report = check_brick(DirectoryDisk(brick, reserve_bytes=0))
        assert report.exit_code == 0, report.problems
        await check(brick, step)
        assert check_brick(DirectoryDisk(brick, reserve_bytes=0)).exit_code == 0
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        with pytest.raises(SetupError, match="Read-only"):
            await Store.open(DirectoryDisk(brick, reserve_bytes=0), KEY, options=OPTIONS)
        report = check_brick(DirectoryDisk(brick, read_only=True))
        assert report.exit_code == 0, report.problems


if __name__ == "__main__":
    trio.run(write_for_ever, Path(sys.argv[1]), int(sys.argv[2]))
