"""A brick of many millions of chunks: what opening, reading, scrubbing, cleaning and fsck take.

`python -m bench.scale DIRECTORY [--chunks N]` fills a brick with N different chunks, then does each
step in a process of its own and prints its time and memory. The bricks' segments are simulated: a
block of data is one number repeated, and only the number is kept (8 bytes for 4096), so 24 million
chunks, 98 GB, need 3 GB of disk. Everything else is the real thing: log, checkpoint, chunk table.
"""

import argparse
import os
import random
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
from xxhash import xxh3_64_intdigest

from clusterfs.store.checking import check_brick
from clusterfs.store.disk import DirectoryDisk
from clusterfs.store.objects import (
    ABSENT,
    BLOCK_BYTES,
    STRIPE_BLOCKS,
    Change,
    Discard,
    Transaction,
    Write,
    stripe_object,
)
from clusterfs.store.opening import Options
from clusterfs.store.records import Placed, Replaced, ResolvedChange, encode
from clusterfs.store.store import Store

KEY = bytes(32)
STEPS = ("fill", "open", "read", "scrub", "discard", "clean", "fsck")
WRITE_BLOCKS = 256
_NUMBER = 8
_REPEATED = BLOCK_BYTES // _NUMBER
_MIB = 1 << 20
_ODD, _MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1


class NumberDisk(DirectoryDisk):
    """A brick whose blocks of data are numbers, repeated; the real blocks lie in sparse files."""

    def create_segment(self, segment: int, size_bytes: int) -> None:
        """Create it without allocating anything, and the file of its numbers."""
        for path in (self._segments / f"{segment:08d}", self._numbers_path(segment)):
            with path.open("wb") as file:
                file.truncate(size_bytes if path.parent == self._segments else size_bytes // 512)

    def write(self, segment: int, offset: int, content: memoryview) -> None:
        """Keep the numbers of what is numbers, and the rest as it is."""
        whole = bytes(content)
        words = memoryview(whole).cast("Q")[::_REPEATED]
        numbers, first = array("Q"), offset // BLOCK_BYTES
        for at, number in zip(range(0, len(whole), BLOCK_BYTES), words, strict=True):
            if number and whole[at : at + BLOCK_BYTES] == block(number):
                numbers.append(number)
            else:
                numbers.append(0)
                super().write(segment, offset + at, content[at : at + BLOCK_BYTES])
        with self._numbers_path(segment).open("r+b") as file:
            file.seek(first * _NUMBER)
            file.write(numbers.tobytes())

    def read(self, segment: int, offset: int, length: int) -> bytes:
        """Make the blocks from their numbers."""
        first = offset // BLOCK_BYTES
        end = -(-(offset + length) // BLOCK_BYTES)
        fd = self._numbers_fd(segment)
        numbers = array("Q", os.pread(fd, (end - first) * _NUMBER, first * _NUMBER))
        pieces = [
            number.to_bytes(8, "little") * _REPEATED
            if number
            else os.pread(self._buffered_fd(segment), BLOCK_BYTES, (first + index) * BLOCK_BYTES)
            for index, number in enumerate(numbers)
        ]
        start = offset - first * BLOCK_BYTES
        return b"".join(pieces)[start : start + length]

    read_direct = read
    read_nowait = read

    def _numbers_path(self, segment: int) -> Path:
        folder = self.path / "numbers"
        folder.mkdir(exist_ok=True)
        return folder / f"{segment:08d}"

    def _numbers_fd(self, segment: int) -> int:
        known = self.__dict__.setdefault("_number_fds", {})
        if segment not in known:
            known[segment] = os.open(self._numbers_path(segment), os.O_RDONLY)
        fd: int = known[segment]
        return fd


def memory() -> tuple[float, float]:
    """Return this process's memory of its own, and the most it ever had in RAM, in MiB."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024, int(fields["VmHWM"].split()[0]) / 1024


@contextmanager
def step(what: str) -> Iterator[None]:
    """Print what a step took."""
    begun, cpu = time.monotonic(), time.process_time()
    before = memory()[0]
    yield
    took, used = time.monotonic() - begun, time.process_time() - cpu
    now, most = memory()
    print(
        f"{what:28} {took:9.2f} s {used:9.3f} s CPU   own memory {before:6.0f} -> {now:6.0f} MiB,"
        f" most in RAM {most:6.0f} MiB",
        flush=True,
    )


async def opened(folder: Path, limit: int = 1 << 50) -> Store:
    """Open the brick."""
    return await Store.open(
        NumberDisk(folder, reserve_bytes=0), KEY, options=Options(size_limit_bytes=limit)
    )


def block(number: int) -> bytes:
    """Return the block of a number."""
    return number.to_bytes(8, "little") * _REPEATED


async def fill(folder: Path, chunks: int) -> None:
    """Write all chunks, each once, to a new brick, or go on with one that has some."""
    with step("open a brick to fill"):
        store = await opened(folder)
    begun = store._state.chunks.count  # noqa: SLF001
    with step(f"write {chunks - begun:,} chunks"):
        for first in range(begun, chunks, WRITE_BLOCKS):
            await enter(store, first, first + 1)
        await store.sync()
    with step("close"):
        await store.close()


async def enter(store: Store, first: int, number: int) -> None:
    """Do what `write` does with blocks that are new, but for hashing and remembering each."""
    name = stripe_object(1, first // STRIPE_BLOCKS)
    contents, cid = store._contents, store._state.chunks.next_cid  # noqa: SLF001
    await store.admit(WRITE_BLOCKS * BLOCK_BYTES)
    version = store.version(name).after(1)
    blocks = [block(each) for each in range(number, number + WRITE_BLOCKS)]
    identities = array("Q", [each * _ODD & _MASK for each in range(2 * cid, 2 * cid + 512)])
    placed = Placed(
        first % STRIPE_BLOCKS, array("Q", range(cid, cid + WRITE_BLOCKS)), identities.tobytes()
    )
    record = Replaced(0, 0, 0, [ResolvedChange(name, 1, ABSENT, version, [placed])])
    payload = memoryview(b"".join(blocks))
    runs = store._log.append(encode(record), payload, [(0, len(payload))], cid)  # noqa: SLF001
    contents.enact(record, runs, list(map(xxh3_64_intdigest, blocks)), cid)
    store._upkeep.poke_if_due()  # noqa: SLF001


async def write(store: Store, first: int, number: int) -> None:
    """Write some blocks of a file, with numbers from `number` on."""
    name = stripe_object(1, first // STRIPE_BLOCKS)
    version = store.version(name)
    operation = Write(first % STRIPE_BLOCKS, WRITE_BLOCKS)
    change = Change(name, 1, version, version.after(1), (operation,))
    transaction = Transaction(1, store.position + 1, 1, (change,))
    payload = b"".join(map(block, range(number, number + WRITE_BLOCKS)))
    await store.admit_transaction(transaction)
    store.replace(name, 1, version.after(1), (operation,), payload)


async def reopen(folder: Path, _: int) -> None:
    """Open the brick and wait until the dedup window is full."""
    with step("open"):
        store = await opened(folder)
    with step("fill the dedup window"):
        before = -1
        while store.statistics()["hints"] != before:
            before = store.statistics()["hints"]
            await trio.sleep(0.5)
    print({k: v for k, v in store.statistics().items() if "hints" in k or "live" in k})
    with step("close"):
        await store.close()


async def read(folder: Path, chunks: int) -> None:
    """Read here and there, and in order."""
    store = await opened(folder)
    chooser = random.Random(1)
    with step("200,000 random reads"):
        for _ in range(200_000):
            number = chooser.randrange(chunks)
            name = stripe_object(1, number // STRIPE_BLOCKS)
            assert await store.read(name, number % STRIPE_BLOCKS, 1) == block(number + 1)
    with step("1,000,000 blocks in order"):
        for first in range(0, min(chunks, 1_000_000), WRITE_BLOCKS):
            name = stripe_object(1, first // STRIPE_BLOCKS)
            await store.read(name, first % STRIPE_BLOCKS, WRITE_BLOCKS)
    await store.close()


async def scrub(folder: Path, _: int) -> None:
    """Verify everything, as fast as it goes."""
    store = await opened(folder)
    with step("scrub"):
        store.start_scrub(1 << 40)
        while not store.scrub_progress()["passes"]:  # noqa: ASYNC110 - it tells nobody
            await trio.sleep(0.05)
    print(store.scrub_progress())
    await store.close()


async def discard(folder: Path, chunks: int) -> None:
    """Discard every second half MiB: each segment is half dead then."""
    store = await opened(folder)
    with step(f"discard {chunks // 2:,} blocks"):
        for first in range(0, chunks, WRITE_BLOCKS):
            name = stripe_object(1, first // STRIPE_BLOCKS)
            operation = Discard(first % STRIPE_BLOCKS, WRITE_BLOCKS // 2)
            await store.admit(BLOCK_BYTES)
            store.replace(name, 1, store.version(name).after(1), (operation,))
        await store.sync()
    await store.close()


async def clean(folder: Path, chunks: int) -> None:
    """Write to a brick that may not grow: it must clean."""
    segments = len(NumberDisk(folder, reserve_bytes=0).segments())
    store = await opened(folder, segments * Options().segment_bytes)
    chooser, written = random.Random(2), {}
    with step(f"clean; overwrite {chunks // 32:,} blocks"):
        for number in range(chunks + 1, chunks + 1 + chunks // 32, WRITE_BLOCKS):
            first = chooser.randrange(chunks // WRITE_BLOCKS) * WRITE_BLOCKS
            await write(store, first, number)
            written[first] = number
        upkeep = store._upkeep  # noqa: SLF001
        while upkeep._reclaiming.is_short() and await upkeep.gain(0):  # noqa: SLF001
            pass
    print({k: v for k, v in store.statistics().items() if k in {"relocated_blocks", "segments"}})
    with step("read them again"):
        for first, number in written.items():
            name = stripe_object(1, first // STRIPE_BLOCKS)
            found = await store.read(name, first % STRIPE_BLOCKS, WRITE_BLOCKS)
            assert found == b"".join(map(block, range(number, number + WRITE_BLOCKS)))
    await store.close()


async def fsck(folder: Path, _: int) -> None:
    """Check everything."""
    for quick in (True, False):
        with step("fsck --quick" if quick else "fsck"):
            report = check_brick(NumberDisk(folder, reserve_bytes=0), data=not quick)
        print(report.exit_code, report.problems[:3], report.facts)


def main() -> None:
    """Do the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--chunks", type=int, default=24_000_000)
    parser.add_argument("--only", choices=STEPS)
    options = parser.parse_args()
    options.directory.mkdir(exist_ok=True)
    for name in [options.only] if options.only else STEPS:
        if options.only:
            work = {"open": reopen}.get(name) or globals()[name]
            trio.run(work, options.directory, options.chunks)
        else:
            command = [sys.executable, "-m", "bench.scale", str(options.directory)]
            subprocess.run([*command, "--chunks", str(options.chunks), "--only", name], check=True)


if __name__ == "__main__":
    main()
