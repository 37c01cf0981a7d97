"""Clones of images that are written in full, at the store: time, CPU, memory, and what comes after.

`python -m bench.clones DIRECTORY [--gib N ...]` makes, for each size in a process of its own, a
file whose blocks are a few chunks over and over (so a TiB of it takes some GB of disk: its maps),
clones it twice, changes each 16th stripe of the second clone, and deletes first the one, then the
other, then the file. The blocks are entered, not hashed; everything else is what a replica does.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import trio

from bench.scale import KEY, step
from clusterfs.store.disk import DirectoryDisk
from clusterfs.store.maps import MAP_BLOCKS
from clusterfs.store.objects import (
    ABSENT,
    BLOCK_BYTES,
    STRIPE_BLOCKS,
    Change,
    Delete,
    Operation,
    Share,
    Transaction,
    Write,
    stripe_object,
)
from clusterfs.store.opening import Options
from clusterfs.store.records import Placed, Replaced, ResolvedChange, encode
from clusterfs.store.store import Store

CHUNKS = 1024
STRIPES_A_GIB = 16
TOGETHER = 128  # stripes in a transaction, as the filesystem clones and deletes them
SOURCE, FIRST, SECOND = 1, 2, 3


class Image:
    """The images of one size in one store."""

    def __init__(self, store: Store, stripes: int, pages: int) -> None:
        self.store = store
        self._pages = pages
        self.stripes = stripes
        self._sequence = 0

    async def fill(self) -> None:
        """Write the source."""
        blocks = [number.to_bytes(8, "little") * 512 for number in range(1, CHUNKS + 1)]
        await self._apply(
            self._change(9, 0, Write(0, CHUNKS)), payload=b"".join(blocks), wait_bytes=CHUNKS * 5000
        )
        cids = self.store._state.cids(stripe_object(9, 0), 0, CHUNKS)  # noqa: SLF001
        placed = Placed(0, (cids * (STRIPE_BLOCKS // CHUNKS))[: self._pages * MAP_BLOCKS], b"")
        for stripe in range(self.stripes):
            await self.store.admit(1 << 18)
            name = stripe_object(SOURCE, stripe)
            version = self.store.version(name).after(1)
            record = Replaced(0, 0, 0, [ResolvedChange(name, 1, ABSENT, version, [placed])])
            self.store._log.append(encode(record), memoryview(b""))  # noqa: SLF001
            self.store._contents.enact(record)  # noqa: SLF001
            self.store._upkeep.poke_if_due()  # noqa: SLF001
        await self.store.sync()

    async def clone(self, target: int) -> None:
        """Clone the source."""
        for stripes in self._batches():
            changes = [self._change(SOURCE, stripe) for stripe in stripes]
            changes += [
                self._change(
                    target, stripe, Share(0, STRIPE_BLOCKS, stripe_object(SOURCE, stripe), 0)
                )
                for stripe in stripes
            ]
            await self._apply(*changes)
        await self.store.sync()

    async def change(self, image: int) -> None:
        """Write a block of each 16th stripe."""
        for stripe in range(0, self.stripes, 16):
            await self._apply(self._change(image, stripe, Write(5, 1)), payload=b"n" * BLOCK_BYTES)
        await self.store.sync()

    async def delete(self, image: int) -> None:
        """Delete an image."""
        for stripes in self._batches():
            await self._apply(*(self._change(image, stripe, Delete()) for stripe in stripes))
        await self.store.sync()

    def _batches(self) -> Iterator[range]:
        for first in range(0, self.stripes, TOGETHER):
            yield range(first, min(first + TOGETHER, self.stripes))

    def _change(self, image: int, stripe: int, *operations: Operation) -> Change:
        name = stripe_object(image, stripe)
        version = self.store.version(name)
        return Change(name, 1, version, version.after(1), operations)

    async def _apply(self, *changes: Change, payload: bytes = b"", wait_bytes: int = 0) -> None:
        if wait_bytes:
            await self.store.admit(wait_bytes)
        self._sequence += 1
        transaction = Transaction(1, self._sequence, 1, changes)
        await self.store.admit_transaction(transaction)
        self.store.apply(transaction, payload)
        self.store.set_stable(1, transaction.sequence)


async def measure(folder: Path, gib: int, pages: int) -> None:
    """Do all of it with one size."""
    store = await Store.open(
        DirectoryDisk(folder, reserve_bytes=0), KEY, options=Options(size_limit_bytes=1 << 40)
    )
    image = Image(store, gib * STRIPES_A_GIB, pages)
    with step(f"{gib} GiB: fill"):
        await image.fill()
    with step("checkpoint"):
        await store.checkpoint()
    for target, name in ((FIRST, "first clone"), (SECOND, "second clone")):
        with step(name):
            await image.clone(target)
        with step("checkpoint"):
            await store.checkpoint()
    print(store.usage()["logical_bytes"] >> 30, "GiB logical", flush=True)
    with step("write to each 16th stripe"):
        await image.change(SECOND)
    with step("checkpoint"):
        await store.checkpoint()
    for target, name in ((FIRST, "first clone"), (SECOND, "second clone"), (SOURCE, "source")):
        with step(f"delete the {name}"):
            await image.delete(target)
        with step("checkpoint"):
            await store.checkpoint()
    assert store.usage()["logical_bytes"] == CHUNKS * BLOCK_BYTES
    await store.close()


def main() -> None:
    """Measure each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--gib", type=int, nargs="+", default=[10, 100, 1024])
    parser.add_argument("--pages", type=int, default=64, help="MiB written in each stripe")
    options = parser.parse_args()
    options.directory.mkdir(exist_ok=True)
    if len(options.gib) == 1:
        folder = options.directory / f"{options.gib[0]}"
        folder.mkdir()
        trio.run(measure, folder, options.gib[0], options.pages)
        return
    for gib in options.gib:
        command = [sys.executable, "-m", "bench.clones", str(options.directory), "--gib", str(gib)]
        subprocess.run([*command, "--pages", str(options.pages)], check=True)


if __name__ == "__main__":
    main()
