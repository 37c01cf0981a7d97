"""`python -m bench peers`: the chunk store beside BorgBackup's repository, on the same two images.

Two ext4 images are made of Debian packages (downloaded with apt-get, unpacked, not installed); the
second has those of the first and more, at other places in the image. Both programs get both images,
in 4 KiB blocks of fixed places, without compression and with lz4, on the same disk; then both are
asked for everything again, and the bytes are compared. Borg runs as its user would run it; its time
includes starting Python, which is small beside the work. Each synchronises its files at the end.

Prints Markdown; `--json FILE` writes the numbers too. Needs borgbackup and e2fsprogs.
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import trio
from rich.console import Console

from bench.store import KEY, MIB, Writer, markdown
from clusterfs.sim.cleaning import clean_all
from clusterfs.store.disk import DirectoryDisk
from clusterfs.store.objects import BLOCK_BYTES, STRIPE_BLOCKS, ObjectId, stripe_object
from clusterfs.store.opening import Options
from clusterfs.store.packing import Codec
from clusterfs.store.store import Store

FIRST = ("perl-modules-5.36", "vim-runtime", "git", "libpython3.11-stdlib")
MORE = ("python3-numpy", "gcc-12-base", "openssl", "bash")
AT_ONCE = 64  # blocks for each record, as a filesystem would write them back
Numbers = dict[str, Any]


def main(arguments: list[str]) -> int:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(prog="bench peers", description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where the work goes; a temporary folder")
    options = parser.parse_args(arguments)
    for program in ("borg", "mke2fs", "apt-get", "dpkg-deb"):
        if not shutil.which(program):
            raise SystemExit(f"bench peers needs {program}: apt install borgbackup e2fsprogs")
    folder = Path(tempfile.mkdtemp(prefix="clusterfs-bench-", dir=options.folder))
    try:
        rows = measure(folder, Console(stderr=True))
    finally:
        shutil.rmtree(folder)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    print(markdown("Two images of Debian packages", rows))
    return 0


def measure(folder: Path, console: Console) -> list[Numbers]:
    """Return a row for each program and compression."""
    console.print("making the images ...")
    images = make_images(folder)
    logical = sum(image.stat().st_size for image in images)
    rows = []
    for codec in ("off", "lz4"):
        for name, run in (("clusterfs store", ours), ("borg", borg)):
            console.print(f"{name}, compression {codec} ...")
            row = run(folder / f"{name.split()[0]}-{codec}", images, codec)
            row["of logical"] = row["stored MiB"] * MIB / logical
            rows.append({"program": name, "compression": codec} | row)
    return rows


def make_images(folder: Path) -> list[Path]:
    """Return two images; what is in both is in other places."""
    packages = folder / "packages"
    packages.mkdir()
    subprocess.run(
        ["apt-get", "download", "-q", *FIRST, *MORE],
        cwd=packages,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    images = []
    for number, names in enumerate((FIRST, (*MORE, *FIRST))):
        tree = folder / f"tree{number}"
        for name in names:
            (package,) = packages.glob(f"{name}_*.deb")
            subprocess.run(["dpkg-deb", "-x", package, tree], check=True)
        image = folder / f"image{number}"
        command = ["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", tree, image, "512M"]
        subprocess.run(command, check=True)
        shutil.rmtree(tree)
        images.append(image)
    return images


# -- this store


def ours(place: Path, images: list[Path], codec: Codec) -> Numbers:
    """Write the images into a store, read them back."""
    place.mkdir()
    return trio.run(_ours, place, images, codec)


async def _ours(place: Path, images: list[Path], codec: Codec) -> Numbers:
    options = Options(segment_bytes=64 * MIB, compression=codec)
    store = await Store.open(DirectoryDisk(place), KEY, options=options)
    try:
        writing = Meter()
        writer = Writer(store)
        for number, image in enumerate(images):
            await _put(writer, number, image)
        await store.sync()
        numbers = writing.numbers("write")
        if codec != "off":  # the cleaner packs what is cold: let it see everything once
            packing = Meter()
            await store.checkpoint()
            await clean_all(store)
            await store.checkpoint()
            numbers |= packing.numbers("pack")
        reading = Meter()
        for number, image in enumerate(images):
            assert await _digest(store, number, image.stat().st_size) == _file_digest(image)
        return numbers | reading.numbers("read") | {"stored MiB": store.space().live / MIB}
    finally:
        await store.close()


async def _put(writer: Writer, number: int, image: Path) -> None:
    base = number * (1 << 20)
    with image.open("rb") as file:
        first = 0
        while content := file.read(AT_ONCE * BLOCK_BYTES):
            if content.count(0) < len(content):  # holes are not written by anybody
                await writer.write([base + first], len(content) // BLOCK_BYTES, content)
            first += AT_ONCE


async def _digest(store: Store, number: int, size: int) -> bytes:
    digest = hashlib.sha256()
    base = number * (1 << 20)
    for first in range(base, base + size // BLOCK_BYTES, AT_ONCE):
        place: ObjectId = stripe_object(1, first // STRIPE_BLOCKS)
        count = min(AT_ONCE, base + size // BLOCK_BYTES - first)
        if store.version(place).counter:
            digest.update(await store.read(place, first % STRIPE_BLOCKS, count))
        else:
            digest.update(bytes(count * BLOCK_BYTES))
    return digest.digest()


# -- Borg


def borg(place: Path, images: list[Path], codec: Codec) -> Numbers:
    """Write the images into a repository, extract them again."""
    home = place.with_suffix(".home")
    out = place.with_suffix(".out")
    for folder in (home, out):
        folder.mkdir()
    environment = os.environ | {
        "BORG_BASE_DIR": str(home),
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
    }

    def run(*words: str | Path, cwd: Path = place.parent) -> None:
        subprocess.run(["borg", *words], check=True, env=environment, cwd=cwd)

    run("init", "-e", "none", place)
    compression = "none" if codec == "off" else codec
    writing = Meter()
    names = [image.name for image in images]
    chunker = f"fixed,{BLOCK_BYTES}"
    run("create", "-C", compression, "--chunker-params", chunker, f"{place}::both", *names)
    os.sync()
    numbers = writing.numbers("write")
    reading = Meter()
    run("extract", f"{place}::both", cwd=out)
    numbers |= reading.numbers("read")
    for image in images:
        assert _file_digest(out / image.name) == _file_digest(image)
    stored = sum(path.stat().st_size for path in (place / "data").rglob("*") if path.is_file())
    shutil.rmtree(out)
    return numbers | {"stored MiB": stored / MIB}


class Meter:
    """Elapsed time, and processor time of this process and those that it waited for."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), self._cpu_s()

    def numbers(self, what: str) -> Numbers:
        """Return both since it was made."""
        elapsed_s = time.perf_counter() - self._start[0]
        return {f"{what} s": elapsed_s, f"{what} CPU s": self._cpu_s() - self._start[1]}

    def _cpu_s(self) -> float:
        own, others = (
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
