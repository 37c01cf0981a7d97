"""A brick on a real filesystem that somebody else fills to the last byte, and empties again."""

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from clusterfs.errors import OutOfSpace
from clusterfs.store.disk import DirectoryDisk
from clusterfs.store.objects import BLOCK_BYTES, Change, Delete, Transaction, Write, stripe_object
from clusterfs.store.opening import Options
from clusterfs.store.store import Store

MIB = 1 << 20
KEY = bytes(32)
OPTIONS = Options(segment_bytes=MIB, log_bytes=MIB // 8, checkpoint_bytes=4 * MIB, hints=1 << 10)
BLOCKS = 2000

pytestmark = pytest.mark.trio


@pytest.fixture
def filesystem(tmp_path: Path) -> Iterator[Path]:
    point = tmp_path / "small"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "clusterfs-test", point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", "--lazy", point], check=True)


def fill(path: Path) -> None:
    """Take all that is free."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        for size in (MIB, BLOCK_BYTES):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    assert os.statvfs(path.parent).f_bavail == 0


class Writer:
    """Overwrites blocks of one object at random."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.random = random.Random(1)
        self.sequence = 0
        self.expected: dict[int, bytes] = {}

    async def put(self, first: int, count: int = 1, part: int = 0) -> None:
        object_id = stripe_object(1, part)
        version = self.store.version(object_id)
        payload = self.random.randbytes(count * BLOCK_BYTES)
        change = Change(object_id, 1, version, version.after(1), (Write(first, count),))
        transaction = Transaction(1, self.sequence + 1, 1, (change,))
        await self.store.admit_transaction(transaction)
        self.store.apply(transaction, payload)
        self.sequence += 1
        if not part:
            for index in range(count):
                block = payload[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
                self.expected[first + index] = block

    async def check(self) -> None:
        for first, block in self.expected.items():
            assert await self.store.read(stripe_object(1, 0), first, 1) == block


async def test_a_brick_lives_through_a_filesystem_without_one_free_byte(filesystem: Path) -> None:
    path = filesystem / "brick"
    store = await Store.open(DirectoryDisk(path, reserve_bytes=8 * MIB), KEY, options=OPTIONS)
    writer = Writer(store)
    for first in range(0, BLOCKS, 20):
        await writer.put(first, 20)
    for part in (1, 2):
        await writer.put(0, 500, part)
    await store.checkpoint()
    fill(filesystem / "others")
    for number in range(3 * BLOCKS):  # twelve times what the table has room for meanwhile
        await writer.put(writer.random.randrange(BLOCKS))
        if number % 500 == 0:
            await store.sync()
            with contextlib.suppress(OutOfSpace):
                await store.checkpoint()
    assert store.failed is None
    left = (path / "ballast").stat().st_size if (path / "ballast").exists() else 0
    assert left == 0, "the table had to grow into it"
    await writer.check()
    version = store.version(stripe_object(1, 1))
    gone = Change(stripe_object(1, 1), 1, version, version.after(1), (Delete(),))
    before = store.space().live
    store.apply(Transaction(1, 10**6, 1, (gone,)))
    assert store.space().live < before
    await store.sync()
    with pytest.raises(OutOfSpace):  # noqa: PT012  which of them is refused is not the point
        for first in range(0, 10**5, 100):
            await writer.put(first, 100, part=3)
    (filesystem / "others").unlink()
    with trio.fail_after(150):
        while store.space().free < 8 * MIB:
            await trio.sleep(0.05)
    await writer.put(0, 200, part=4)
    await store.checkpoint()
    assert store.health() == []
    assert (path / "ballast").stat().st_size
    await writer.check()
    await store.close()
    again = await Store.open(DirectoryDisk(path, reserve_bytes=8 * MIB), KEY, options=OPTIONS)
    writer.store = again
    await writer.check()
    again.validate()
    await again.close()
