"""Disk images of QEMU on three nodes: every way of opening them, locks, discards and clones."""

import itertools
import json
import os
import random
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from clusterfs.cli.control import find_socket
from clusterfs.control import ask
from tests.mount.support.qemu import clusterfs, disk, eventually, img, io, machine, shell, tool

FORMATS = ("raw", "qcow2")
# QEMU has aio=native only with O_DIRECT, which is what these two modes open images with.
MODES = [
    *itertools.product(("none", "directsync"), ("threads", "native", "io_uring")),
    *itertools.product(("writeback",), ("threads", "io_uring")),
]
MIB = 1 << 20
STRIPES = 20  # of 64 MiB: one transaction clones up to 16 that exist


def made(folder: Path, form: str, size: str = "96M") -> str:
    """Make an image; return its name."""
    name = f"disk.{form}"
    img("create", "-q", "-f", form, folder / name, size)
    return name


def live_bytes(folder: Path) -> int:
    return int(ask(find_socket(str(folder.parent)), "df")["live_bytes"])


@pytest.mark.parametrize("form", FORMATS)
def test_what_one_node_writes_in_any_mode_another_reads_in_any(
    folders: list[Path], form: str
) -> None:
    name = made(folders[0], form)
    for turn, (cache, aio) in enumerate(MODES):
        writer, reader = folders[turn % 3] / name, folders[(turn + 1) % 3] / name
        mode = ("-t", cache, "-i", aio)
        one, two = 1 + 2 * turn, 2 + 2 * turn
        io(
            writer,
            form,
            f"aio_write -P {one} 0 1M",  # these three are under way at once
            f"aio_write -P {one} 63M 2M",  # across two stripes
            f"aio_write -P {one} 95M 1M",
            "aio_flush",
            f"write -P {two} 513k 3k",
            f"write -P {two} 65535k 512",
            f"writev -P {two} 2M 4k 512 60k",
            "flush",
            mode=mode,
        )
        expected = (
            *(f"read -P {one} 0 513k", f"read -P {two} 513k 3k", f"read -P {one} 516k 508k"),
            *(f"read -P {one} 63M 1023k", f"read -P {two} 65535k 512"),
            *(f"read -P {one} 67109376 1023k", f"read -P {one} 95M 1M"),
            *(f"read -P {two} 2M 66048",),
        )
        io(reader, form, *expected, mode=("-t", *MODES[-turn - 1][:1], "-i", MODES[-turn - 1][1]))
        said = io(reader, form, f"read -P {two} 0 4k", refused=True)
        assert "Pattern verification failed" in said, "what is wrong is found"
    img("check" if form == "qcow2" else "info", "-f", form, folders[2] / name)


@pytest.mark.parametrize("form", FORMATS)
def test_qemus_own_benchmark_writes_what_it_says(folders: list[Path], form: str) -> None:
    name = made(folders[0], form)
    for turn, (cache, aio) in enumerate(MODES):
        place = folders[turn % 3] / name
        common = ("bench", "-q", "-f", form, "-t", cache, "-i", aio, "-d", 32, "-c", 256)
        many = ("-s", "4k", "-S", "20k", "-o", turn * MIB)  # every fifth block
        img(*common, *many, "-w", f"--pattern={turn + 1}", "--flush-interval=64", place)
        img(*common, *many, place)
        other = folders[(turn + 2) % 3] / name
        checks = [f"read -P {turn + 1} {turn * MIB + n * 20480} 4k" for n in range(0, 256, 15)]
        io(other, form, *checks)


def test_images_are_converted_compared_resized_and_mapped(folders: list[Path]) -> None:
    one, two, three = folders
    raw, qcow2 = made(one, "raw"), "copy.qcow2"
    content = one / "content"
    content.write_bytes(random.Random(4).randbytes(3 * MIB))
    io(one / raw, "raw", f"write -s {content} 1M 3M", f"write -s {content} 70M 3M")
    img("convert", "-f", "raw", "-O", "qcow2", "-t", "none", "-T", "none", two / raw, two / qcow2)
    assert "identical" in img("compare", "-f", "raw", "-F", "qcow2", three / raw, three / qcow2)
    img("convert", "-f", "raw", "-O", "raw", "-C", two / raw, two / "shared.raw")
    assert "identical" in img("compare", "-f", "raw", "-F", "raw", three / raw, one / "shared.raw")
    io(one / "shared.raw", "raw", "write -P 3 71M 4k")
    said = img("compare", "-f", "raw", "-F", "raw", two / raw, two / "shared.raw", refused=True)
    assert "Content mismatch at offset 74448896" in said
    expected = [(0, False), (1, True), (4, False), (70, True), (73, False)]
    for folder, (name, form) in itertools.product(folders, [(raw, "raw"), (qcow2, "qcow2")]):
        extents = json.loads(img("map", "-f", form, "--output=json", folder / name))
        found = [(extent["start"] // MIB, extent["data"]) for extent in extents]
        assert found == expected, (folder, name)
    for name, form in ((raw, "raw"), (qcow2, "qcow2")):
        img("resize", "-q", "-f", form, one / name, "160M")
        io(two / name, form, "write -P 5 159M 1M")
        img("resize", "-q", "-f", form, "--shrink", three / name, "71M")
        info = json.loads(img("info", "-f", form, "--output=json", one / name))
        assert info["virtual-size"] == 71 * MIB
        io(one / name, form, "read 71M 4k", refused=True)
    img("check", "-f", "qcow2", two / qcow2)


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_discarded_is_free_again(folders: list[Path], form: str) -> None:
    name = made(folders[0], form)
    content = folders[0] / "content"
    content.write_bytes(random.Random(form).randbytes(16 * MIB))
    mode = ("-t", "none", "-d", "unmap")
    io(folders[0] / name, form, f"write -s {content} 0 16M", "flush", mode=mode)
    content.unlink()
    before = live_bytes(folders[1])
    io(folders[1] / name, form, "discard 4M 8M", "flush", mode=mode)
    room = 7 * MIB  # of 8: the tables of qcow2, and what other tests still clear away
    eventually(lambda: live_bytes(folders[2]) <= before - room, "discarding frees nothing")
    io(folders[2] / name, form, "read -P 0 4M 8M")
    extents = json.loads(img("map", "-f", form, "--output=json", folders[2] / name))
    found = [(extent["start"] // MIB, extent["data"]) for extent in extents]
    assert found == [(0, True), (4, False), (12, True), (16, False)]
    io(folders[2] / name, form, "write -z -u 0 4M", "flush", mode=mode)
    eventually(lambda: live_bytes(folders[0]) <= before - room - 4 * MIB, "zeroes take room")
    shown = json.loads(clusterfs("df", folders[1].parent, "--json"))["live_bytes"]
    assert shown <= before - room - 4 * MIB


def refused_everywhere(images: list[Path], form: str) -> None:
    """Nothing that needs the image for itself opens it, on any node."""
    for image in images:
        assert "lock" in io(image, form, "write 0 4k", refused=True)
    other = images[1]
    assert "lock" in img("resize", "-f", form, other, "+1M", refused=True)
    if form != "raw":  # QEMU lets anybody read a raw image
        assert "lock" in img("info", "-f", form, other, refused=True)
        img("info", "-f", form, "--force-share", other)
    command = ("qemu-system-x86_64", "-nodefaults", "-accel", "tcg", "-display", "none", "-S")
    assert 'Failed to get "write" lock' in tool(*command, *disk(other, form), refused=True)


@pytest.mark.parametrize("form", FORMATS)
def test_an_image_in_use_is_refused_until_its_user_is_killed(
    folders: list[Path], form: str, tmp_path: Path
) -> None:
    name = made(folders[0], form)
    images = [folder / name for folder in folders]
    for turn, cache in enumerate(("none", "writeback")):
        words = ("-S", *disk(images[turn], form, cache))
        with machine(tmp_path / f"control-{turn}", *words) as user:
            for command in (f"write -P {turn + 1} 0 1M", "flush"):
                line = f'qemu-io -d /machine/peripheral/drive/virtio-backend "{command}"'
                said = user.command("human-monitor-command", **{"command-line": line})
                assert said == {"return": ""}, said
            refused_everywhere(images, form)
            user.process.kill()
            user.process.wait()
            again = ("qemu-io", "-f", form, "-c", f"read -P {turn + 1} 0 1M", "-c", "write 8M 4k")
            for image in images[::-1]:  # the kernel closes its files a moment later
                command = [*again, str(image)]
                eventually(partial(succeeds, command), f"{image} stays locked")
    with shell(images[2], form, "-r") as first, shell(images[0], form, "-r") as second:
        assert "read 4096/4096" in first.tell("read 0 4k") + second.tell("read 0 4k")


def succeeds(command: list[str]) -> bool:
    return not subprocess.run(command, capture_output=True, check=False).returncode


class Counter(threading.Thread):
    """Writes number after number, each to a place of its own, each durable before the next."""

    def __init__(self, image: Path, form: str) -> None:
        super().__init__(daemon=True)
        self.image, self.form = image, form
        self.written = 0
        self.stopping = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with shell(self.image, self.form, "-t", "none") as user:
                while not self.stopping.is_set():
                    number = self.written + 1
                    user.tell(f"write -P {number % 255 + 1} {place(number)} 4k", "flush")
                    self.written = number
        except BaseException as failure:  # noqa: BLE001  raised by the test
            self.failure = failure

    def has_written(self, count: int) -> Callable[[], bool]:
        return lambda: self.written >= count or self.failure is not None


def place(number: int) -> int:
    """Where a number goes: in turn to both ends of a raw image, each to a cluster of qcow2."""
    return (number % 2) * 64 * STRIPES * MIB + number * 65536


@pytest.mark.parametrize("form", FORMATS)
def test_a_clone_of_an_image_in_use_is_what_a_power_cut_would_leave(
    folders: list[Path], form: str, tmp_path: Path
) -> None:
    image = folders[0] / made(folders[0], form, f"{64 * (STRIPES + 2)}M")
    # Something in every stripe of a raw image: cloning it takes more than one transaction.
    io(image, form, *(f"write -P 9 {64 * n + 50}M 4k" for n in range(1, STRIPES)), "flush")
    counter = Counter(image, form)
    counter.start()
    known: list[int] = []
    try:
        for turn in range(3):
            eventually(counter.has_written(20 * (turn + 1)), "nothing is written")
            known.append(counter.written)
            clusterfs("clone", folders[1] / image.name, folders[1] / f"clone-{turn}")
        eventually(counter.has_written(counter.written + 10), "nothing is written any more")
    finally:
        counter.stopping.set()
        counter.join()
    assert counter.failure is None, counter.failure
    for turn, least in enumerate(known):
        clone = folders[2] / f"clone-{turn}"
        if form == "qcow2":
            sound_enough(clone)
        found = prefix(clone, form, counter.written, tmp_path)
        assert least <= found < counter.written, (turn, least, found, counter.written)
        io(clone, form, "write -P 255 200M 64k", "flush")
        io(clone, form, f"read -P 9 {64 * (STRIPES - 1) + 50}M 4k")
    assert prefix(folders[1] / image.name, form, counter.written, tmp_path) == counter.written
    if form == "qcow2":
        img("check", "-f", form, image)


def sound_enough(image: Path) -> None:
    """A guest that is cut off leaves clusters that nobody uses, and nothing worse."""
    command = ["qemu-img", "check", "--output=json", "-f", "qcow2", str(image)]
    found = json.loads(subprocess.run(command, capture_output=True, check=False).stdout)
    assert not found.get("corruptions", 0) + found["check-errors"], found


def prefix(image: Path, form: str, most: int, folder: Path) -> int:
    """Return the last number that is there; all before it are, and none after it."""
    raw = image
    if form != "raw":
        raw = folder / "content"
        img("convert", "-f", form, "-O", "raw", image, raw)
    with raw.open("rb", buffering=0) as file:
        found = [os.pread(file.fileno(), 4096, place(number)) for number in range(1, most + 1)]
    written = [bytes([number % 255 + 1]) * 4096 for number in range(1, most + 1)]
    count = sum(one == other for one, other in zip(found, written, strict=True))
    expected = written[:count] + [bytes(4096)] * (most - count)
    assert found == expected, [(one[:1], other[:1]) for one, other in zip(found, expected)]  # noqa: B905
    return count


def test_clones_of_one_image_take_its_room_in_the_chunk_cache_once(
    folders: list[Path], tmp_path: Path
) -> None:
    """What 1, 4 and 16 guests of one image read at their start: only the first two reads miss."""
    blocks, storms = 1024, (1, 4, 16)
    content = random.Random(16).randbytes(blocks * 4096)
    with (folders[0] / "image").open("wb") as file:
        file.write(content)
        os.fsync(file.fileno())
    for number in range(max(storms)):
        with (
            open(folders[0] / "image") as image,
            open(folders[0] / f"clone-{number}", "w") as clone,
        ):
            assert os.copy_file_range(image.fileno(), clone.fileno(), len(content)) == len(content)
    socket = find_socket(str(folders[1].parent))

    def cache() -> tuple[int, int, int]:
        store = ask(socket, "statistics")["statistics"]["store"]
        return store["cached_chunks"], store["cache_misses"], store["cache_hits"]

    before, started = cache(), 0
    mode = ("-t", "none", "-i", "native")
    for clones in storms:
        for number in range(started, clones):
            copy = tmp_path / "copy"
            clone_here = folders[1] / f"clone-{number}"
            img("convert", "-f", "raw", "-O", "raw", "-T", "none", clone_here, copy)
            assert copy.read_bytes() == content
        started = clones
        kept, missed, hit = (new - old for new, old in zip(cache(), before, strict=True))
        assert kept <= blocks, f"each chunk is there once, of {clones} clones"
        assert missed <= 2 * blocks, "a full cache takes what is read for the second time"
        assert hit >= (clones - 2) * blocks
    io(folders[1] / "clone-3", "raw", "read 0 4M", mode=mode)
    kept, missed, _ = (new - old for new, old in zip(cache(), before, strict=True))
    assert kept <= blocks
    assert missed <= 2 * blocks
