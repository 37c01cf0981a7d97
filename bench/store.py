"""`python -m bench store`: what the store alone can do, beside its budgets.

  throughput      records/s and MiB/s with hashing, by record size and flush executors, on this
                  machine's disk and on one that takes 5 ms for every write and sync; elapsed time,
                  and CPU time of the store's thread in the best of 32 slices, which other
                  programs on the machine disturb least
  amplification   bytes written to the log for each byte of the user's, with and without cleaning
  replay          how fast the log is read again
  memory          of the process, for each TB of unique data
  packing         what compression of cold data saves and costs, on the files of /usr/lib

Prints Markdown; `--json FILE` writes the numbers too. `--quick` measures less, for a first look.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from rich.console import Console

from bench.store_disks import ForgetfulDisk, RamDisk, SlowDisk
from clusterfs.sim.cleaning import clean_all
from clusterfs.store.disk import Disk
from clusterfs.store.objects import (
    BLOCK_BYTES,
    STRIPE_BLOCKS,
    Change,
    ObjectId,
    Transaction,
    Version,
    Write,
    stripe_object,
)
from clusterfs.store.opening import Options
from clusterfs.store.packing import Codec
from clusterfs.store.store import Store

KEY = bytes(32)
MIB = 1 << 20
SIZES = {"4 KiB": 1, "64 KiB": 16, "1 MiB": 256}
EXECUTORS = (1, 2, 4)
SLOW_S = 0.005
SLICES = 32
# Fill, and what reference measurements of cost-benefit cleaning with two streams gave for 4 KiB
# records on 400 segments of 252 blocks: uniform (greedy, there the best) and 90/10.
FILLS = {0.7: (1.95, 1.56), 0.8: (2.89, 2.11), 0.9: (6.17, 4.23)}
Numbers = dict[str, Any]
NOISE = random.Random(1).randbytes(MIB)


class Writer:
    """Writes unique blocks to a file's stripes."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.written_bytes = 0
        self.cpu_s = 0.0
        self._versions: dict[ObjectId, Version] = {}
        self._sequence = 0
        self._stamp = 0

    def unique(self, blocks: int) -> bytes:
        """Return blocks that no other call returns."""
        parts = []
        for _ in range(blocks):
            self._stamp += 1
            at = self._stamp * 4099 % (MIB - BLOCK_BYTES)
            parts.append(self._stamp.to_bytes(8, "little") + NOISE[at : at + BLOCK_BYTES - 8])
        return b"".join(parts)

    async def write(self, firsts: list[int], blocks: int, payload: bytes) -> None:
        """Write `blocks` blocks at each of these places, as one transaction."""
        wanted: dict[int, list[Write]] = {}
        for first in firsts:
            wanted.setdefault(first // STRIPE_BLOCKS, []).append(
                Write(first % STRIPE_BLOCKS, blocks)
            )
        changes = []
        for stripe, writes in wanted.items():
            object_id = stripe_object(1, stripe)
            expected = self._versions.get(object_id, Version(0, 0))
            version = self._versions[object_id] = expected.after(1)
            changes.append(Change(object_id, 1, expected, version, tuple(writes)))
        self._sequence += 1
        transaction = Transaction(1, self._sequence, 1, tuple(changes))
        await self.store.admit_transaction(transaction)
        before_s = time.thread_time()
        self.store.apply(transaction, payload)
        self.cpu_s += time.thread_time() - before_s
        self.written_bytes += len(payload)
        if not self._sequence % 64:
            self.store.set_stable(1, self._sequence)
            await trio.lowlevel.checkpoint()


@asynccontextmanager
async def opened(disk: Disk, **options: Any) -> AsyncIterator[Store]:
    """Open a store; close it."""
    store = await Store.open(disk, KEY, options=Options(**options))
    try:
        yield store
    finally:
        await store.close()


# -- throughput


async def throughput(folder: Path, *, quick: bool) -> list[Numbers]:
    """Measure writes of each size with each number of executors on both disks."""
    rows = []
    total = (32 if quick else 192) * MIB
    for delay_s in (0.0, SLOW_S):
        for name, blocks in SIZES.items():
            for executors in EXECUTORS:
                nbytes = total // 4 if delay_s else total
                row = await _throughput(folder, delay_s, blocks, executors, nbytes)
                rows.append(
                    {"record": name, "executors": executors, "delay_ms": delay_s * 1e3} | row
                )
    return rows


async def _throughput(
    folder: Path, delay_s: float, blocks: int, executors: int, nbytes: int
) -> Numbers:
    path = folder / "brick"
    records = nbytes // (blocks * BLOCK_BYTES)
    async with opened(SlowDisk(path, delay_s), executors=executors) as store:
        writer = Writer(store)
        payloads = [writer.unique(blocks) for _ in range(records)]
        await writer.write([STRIPE_BLOCKS * 9], blocks, writer.unique(blocks))
        await store.sync()
        writer.cpu_s = 0.0
        start_s = time.perf_counter()
        slices_s, size = [], max(1, records // SLICES)
        for number, payload in enumerate(payloads):
            await writer.write([number * blocks], blocks, payload)
            if number % size == size - 1:
                slices_s.append(writer.cpu_s / size)
                writer.cpu_s = 0.0
        await store.sync()
        elapsed_s = time.perf_counter() - start_s
        cpu_s = min(slices_s)
    shutil.rmtree(path)
    return {
        "records_s": records / elapsed_s,
        "mib_s": nbytes / MIB / elapsed_s,
        "cpu_us": cpu_s * 1e6,
        "records_cpu_s": 1 / cpu_s,
        "mib_cpu_s": blocks * BLOCK_BYTES / MIB / cpu_s,
    }


# -- write amplification


async def amplification(*, quick: bool) -> list[Numbers]:
    """Measure log bytes for each byte written, in the steady state."""
    rows = [await _appended(16, synced=False), await _appended(16, synced=True)]
    rows.append(await _appended(1, synced=True))
    for fill, references in FILLS.items():
        for skew, reference in zip((0.0, 0.9), references, strict=True):
            row = await _overwritten(fill, skew, segments=100 if quick else 200)
            rows.append(row | {"reference": reference})
    return rows


async def _appended(blocks: int, *, synced: bool) -> Numbers:
    async with opened(RamDisk(), size_limit_bytes=1 << 30) as store:
        writer = Writer(store)
        before = store.statistics()["log_bytes_written"]
        for number in range(2048 // blocks):
            await writer.write([number * blocks], blocks, writer.unique(blocks))
            if synced:
                await store.sync()
        await store.sync()
        written = store.statistics()["log_bytes_written"] - before
    what = f"{blocks * BLOCK_BYTES >> 10} KiB writes" + (", each synced" if synced else "")
    return {"what": what, "log": written / writer.written_bytes}


async def _overwritten(fill: float, skew: float, *, segments: int) -> Numbers:
    """Overwrite single blocks at random until each was, on average, four times."""
    disk = RamDisk()
    options = {
        "segment_bytes": 2 * MIB,
        "size_limit_bytes": segments * 2 * MIB,
        "checkpoint_bytes": 32 * MIB,
        "log_bytes": MIB // 2,
        "hints": 1 << 12,
    }
    async with opened(disk, **options) as store:
        writer, source = Writer(store), random.Random(1)
        dense = store._segments.dense_blocks * segments  # noqa: SLF001
        live = min(int(dense * fill), store.space().total // BLOCK_BYTES)
        for first in range(0, live - 15, 16):
            await writer.write([first], 16, writer.unique(16))
        live -= live % 16
        hot = live // 10
        before, relocated, table = 0, 0, 0
        rounds = live * 4 // 16
        for number in range(rounds):
            if number == rounds // 2:
                found = store.statistics()
                before, relocated = found["log_bytes_written"], found["relocated_blocks"]
                table, writer.written_bytes = disk.table_bytes, 0
            places = (
                {
                    source.randrange(hot) if source.random() < skew else source.randrange(hot, live)
                    for _ in range(16)
                }
                if skew
                else {source.randrange(live) for _ in range(16)}
            )
            await writer.write(sorted(places), 1, writer.unique(len(places)))
        await store.sync()
        found, user = store.statistics(), writer.written_bytes
        return {
            "what": f"{fill:.0%} full, " + ("90/10" if skew else "uniform"),
            "fill": live / dense,
            "log": (found["log_bytes_written"] - before) / user,
            "moved": (found["relocated_blocks"] - relocated) * BLOCK_BYTES / user,
            "checkpoints": (disk.table_bytes - table) / user,
        }


# -- replay, memory, packing


async def replay(*, quick: bool) -> list[Numbers]:
    """Measure how fast logs of 4 KiB and of 64 KiB writes are read again."""
    rows = []
    for name, blocks in (("4 KiB", 1), ("64 KiB", 16)):
        disk = RamDisk()
        async with opened(disk, checkpoint_bytes=1 << 40, size_limit_bytes=4 << 30) as store:
            writer = Writer(store)
            for number in range((64 if quick else 384) * MIB // BLOCK_BYTES // blocks):
                await writer.write([number * blocks], blocks, writer.unique(blocks))
            await store.sync()
            nbytes = store.statistics()["log_bytes_written"]
            start_s, start_cpu_s = time.perf_counter(), time.process_time()
            # The dedup window is refilled beside the work, so it is none of this.
            async with opened(disk.killed(), size_limit_bytes=4 << 30, hints=1 << 8) as again:
                elapsed_s = time.perf_counter() - start_s
                cpu_s = time.process_time() - start_cpu_s
                assert again.statistics()["replayed_logs"]
        rows.append(
            {
                "what": f"log of {name} writes",
                "gb_s": nbytes / 1e9 / elapsed_s,
                "gb_cpu_s": nbytes / 1e9 / cpu_s,
            }
        )
    return rows


async def memory(*, quick: bool) -> list[Numbers]:
    """Write unique blocks until the dedup window is full, and more, in a process of its own."""
    count = (1 << 17) if quick else (3 << 19)
    command = [sys.executable, "-m", "bench.store", "--memory-of", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: ASYNC221
    rows: list[Numbers] = json.loads(done.stdout)
    return rows


async def _memory_of(folder: Path, count: int) -> list[Numbers]:
    rows: list[Numbers] = []
    before = _anonymous_bytes()
    async with opened(ForgetfulDisk(folder / "brick")) as store:
        writer = Writer(store)
        for first in range(0, count, 256):
            await writer.write([first], 256, writer.unique(256))
            if first + 256 in (count // 2, count):
                await store.checkpoint()
                grown = _anonymous_bytes() - before
                written = (first + 256) * BLOCK_BYTES
                rows.append({"unique_gb": written / 1e9, "resident_mib": grown / MIB})
    half, whole = rows
    slope = (whole["resident_mib"] - half["resident_mib"]) / (count // 2 * BLOCK_BYTES) * 1e12
    whole["gib_at_1_tb"] = (whole["resident_mib"] + max(0.0, slope)) / 1024
    return rows


def _anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    found = next(line for line in lines if line.startswith("RssAnon"))
    return int(found.split()[1]) * 1024


def _real_blocks(limit: int) -> Iterator[bytes]:
    """Yield blocks of the files in /usr/lib, as an image would hold them."""
    for path in sorted(Path("/usr/lib").rglob("*")):
        if limit <= 0:
            return
        if path.is_file() and not path.is_symlink() and path.stat().st_size > BLOCK_BYTES:
            content = path.read_bytes()
            for at in range(0, len(content), BLOCK_BYTES):
                limit -= BLOCK_BYTES
                yield content[at : at + BLOCK_BYTES].ljust(BLOCK_BYTES, b"\0")


async def packing(*, quick: bool) -> list[Numbers]:
    """Fill a store with real files, have the cleaner move all of it, and read all."""
    rows = []
    blocks = list(_real_blocks((16 if quick else 96) * MIB))
    codecs: tuple[Codec, ...] = ("off", "lz4", "zstd")
    for codec in codecs:
        async with opened(RamDisk(), segment_bytes=4 * MIB, compression=codec) as store:
            writer = Writer(store)
            for at in range(0, len(blocks) - 15, 16):
                await writer.write([at], 16, b"".join(blocks[at : at + 16]))
            await store.checkpoint()
            live = store.space().live
            start_cpu_s = time.process_time()
            await clean_all(store)
            cpu_s = time.process_time() - start_cpu_s
            await store.checkpoint()
            start_s = time.thread_time()
            for at in range(0, len(blocks) - 15, 16):
                await store.read(stripe_object(1, at // STRIPE_BLOCKS), at % STRIPE_BLOCKS, 16)
            read_s = time.thread_time() - start_s
            rows.append(
                {
                    "codec": codec,
                    "kept": store.space().live / live,
                    "clean_mib_cpu_s": live / MIB / cpu_s,
                    "read_mib_cpu_s": live / MIB / read_s,
                }
            )
    return rows


# -- the report

BUDGETS = {
    "records/s at 4 KiB (CPU time of the store's thread)": (">=", 60_000),
    "MiB/s at 64 KiB (CPU time of the store's thread)": (">=", 500),
    "amplification, 64 KiB writes": ("<=", 1.05),
    "amplification, 64 KiB synced writes": ("<=", 1.1),
    "amplification, 80 % full, 90/10": ("<=", 2.5),
    "replay, GB/s of CPU time (64 KiB writes)": (">=", 0.5),
    "GiB of memory for 1 TB of unique data": ("<=", 1.0),
}


def against_budgets(found: dict[str, list[Numbers]]) -> list[Numbers]:
    """Return each budget with what was measured."""
    fast = [row for row in found["throughput"] if not row["delay_ms"]]
    log = {row["what"]: row["log"] for row in found["amplification"]}
    measured = [
        max(row["records_cpu_s"] for row in fast if row["record"] == "4 KiB"),
        max(row["mib_cpu_s"] for row in fast if row["record"] == "64 KiB"),
        log["64 KiB writes"],
        log["64 KiB writes, each synced"],
        log["80% full, 90/10"],
        found["replay"][1]["gb_cpu_s"],
        found["memory"][1]["gib_at_1_tb"],
    ]
    rows = []
    for (name, (relation, budget)), value in zip(BUDGETS.items(), measured, strict=True):
        met = value >= budget if relation == ">=" else value <= budget
        rows.append(
            {"budget": name, "wanted": f"{relation} {budget:,}", "found": value, "met": met}
        )
    return rows


def markdown(title: str, rows: list[Numbers]) -> str:
    """Return rows as a table."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"### {title}", "", "| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    lines += ["| " + " | ".join(_shown(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
    return str(value)


PARTS = {"amplification": amplification, "replay": replay, "memory": memory, "packing": packing}


async def measure(folder: Path, *, quick: bool) -> dict[str, list[Numbers]]:
    """Run everything."""
    console = Console(stderr=True)
    found: dict[str, list[Numbers]] = {}
    for name in ("throughput", *PARTS):
        console.print(f"measuring {name} ...")
        if name == "throughput":
            found[name] = await throughput(folder, quick=quick)
        else:
            found[name] = await PARTS[name](quick=quick)
    return found


def main(arguments: list[str]) -> int:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(prog="bench store", description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the brick goes; a temporary folder")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="clusterfs-bench-", dir=options.folder))
    try:
        if options.memory_of:
            print(json.dumps(trio.run(_memory_of, folder, options.memory_of)))
            return 0
        found = trio.run(lambda: measure(folder, quick=options.quick))
    finally:
        shutil.rmtree(folder)
    found["budgets"] = against_budgets(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    for name, rows in found.items():
        print(markdown(name, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
