"""What the store costs: apply of 4 KiB and 1 MiB writes, reads from memory, sync, checkpoint.

Apply and reads are CPU time of the trio thread; sync and checkpoint are elapsed time.

Run as `python bench/micro/store_loop.py [DIRECTORY]`. Prints one line a measurement; with
`--profile` the functions behind the first one too.
"""

import cProfile
import os
import pstats
import shutil
import sys
import tempfile
import time
from pathlib import Path

import trio

from clusterfs.errors import WouldBlock
from clusterfs.store.disk import DirectoryDisk
from clusterfs.store.objects import (
    BLOCK_BYTES,
    STRIPE_BLOCKS,
    Change,
    Transaction,
    Version,
    Write,
    stripe_object,
)
from clusterfs.store.store import Store

KEY = bytes(32)
STRIPE = stripe_object(1, 0)
_READS = 1000


class Bench:
    """One store and one stripe that is written."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.version = Version(0, 0)
        self.sequence = 0

    def transaction(self, first: int, count: int) -> Transaction:
        """Return the next write."""
        expected, self.version = self.version, self.version.after(1)
        self.sequence += 1
        change = Change(STRIPE, 1, expected, self.version, (Write(first, count),))
        return Transaction(1, self.sequence, 1, (change,))

    async def writes(self, rounds: int, blocks: int, profile: cProfile.Profile | None) -> float:
        """Return the mean CPU time of one apply, in seconds, the waits between not counted."""
        pool = [os.urandom(blocks * BLOCK_BYTES) for _ in range(min(rounds, 4000))]
        spent_s = 0.0
        for number in range(rounds):
            first = number * blocks * 37 % (STRIPE_BLOCKS - blocks + 1)
            transaction = self.transaction(first, blocks)
            payload = pool[number % len(pool)] if number < len(pool) else os.urandom(len(pool[0]))
            await self.store.admit_transaction(transaction)
            if profile:
                profile.enable()
            start_s = time.thread_time()
            self.store.apply(transaction, payload)
            spent_s += time.thread_time() - start_s
            if profile:
                profile.disable()
            if number % 64 == 0:
                await trio.lowlevel.checkpoint()
        await self.store.sync()
        return spent_s / rounds

    async def reads(self, blocks: int) -> float:
        """Return the mean CPU time of one read from the page cache, in seconds."""
        spent_s, rounds, number = 0.0, 0, 0
        while rounds < _READS:
            number = (number + blocks) % 2048
            start_s = time.thread_time()
            try:
                self.store.read_nowait(STRIPE, number, blocks)
            except WouldBlock:  # others on this machine may drop its caches
                await self.store.read(STRIPE, 0, 2304)
                continue
            spent_s += time.thread_time() - start_s
            rounds += 1
        return spent_s / rounds

    async def synced_writes(self, rounds: int) -> float:
        """Return the mean time of one 4 KiB write and sync, one after the other."""
        start_s = time.perf_counter()
        for number in range(rounds):
            transaction = self.transaction(number, 1)
            await self.store.admit_transaction(transaction)
            await self.store.sync(self.store.apply(transaction, os.urandom(BLOCK_BYTES)))
        return (time.perf_counter() - start_s) / rounds


async def main(parent: str | None, *, profiled: bool) -> None:
    """Measure, print."""
    path = Path(tempfile.mkdtemp(prefix="clusterfs-bench-", dir=parent))
    try:
        store = await Store.open(DirectoryDisk(path), KEY)
        bench = Bench(store)
        profile = cProfile.Profile() if profiled else None
        print(f"apply 4 KiB         {await bench.writes(20000, 1, profile) * 1e6:8.1f} us")
        if profile:
            pstats.Stats(profile).sort_stats("tottime").print_stats(24)
        each_s = await bench.writes(200, 256, None)
        print(f"apply 1 MiB         {each_s * 1e3:8.2f} ms = {1 / each_s:.0f} MiB/s")
        print(f"write 4 KiB + sync  {await bench.synced_writes(2000) * 1e6:8.1f} us")
        for name, blocks in (("4 KiB", 1), ("64 KiB", 16), ("1 MiB", 256)):
            print(f"read {name:6} cached  {await bench.reads(blocks) * 1e6:8.1f} us")
        start_s = time.perf_counter()
        await store.checkpoint()
        print(f"checkpoint          {(time.perf_counter() - start_s) * 1e3:8.1f} ms")
        await store.close()
    finally:
        shutil.rmtree(path)


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--profile"]
    directory = arguments[0] if arguments else None
    trio.run(lambda: main(directory, profiled="--profile" in sys.argv))
