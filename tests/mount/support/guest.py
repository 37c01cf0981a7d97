"""A guest with a kernel of Debian's, that writes numbered blocks to its disk and checks them.

The kernel is where scripts/setup put it; the initramfs is busybox, the drivers of the disk, and one
program (guest_writer.c). What the guest says is in a file for each QEMU that ran it.

Its memory is one file that all QEMUs map (x-ignore-shared): copying the memory of a guest under
emulation while it runs loses pages with Debian 12's QEMU, also on a local disk. Everything else of
the migration is as always.
"""

import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clusterfs.cli.rehearsal import Machine
from tests.mount.support.qemu import disk, eventually, machine

KERNELS = Path(sys.prefix) / "share" / "clusterfs-guest"
BUSYBOX = Path("/bin/busybox")
DRIVERS = (  # in the order in which they need each other
    *("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci"),
    "virtio_blk",
)
BLOCK, BLOCKS, STEP = 4096, 256, 768 << 10  # as in guest_writer.c
DISK = "192M"
_MASK = (1 << 64) - 1
_INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs none /dev
for driver in {}; do /bin/busybox insmod /$driver.ko; done
exec /writer
"""
_WORDS = "console=ttyS0 quiet panic=1 mitigations=off nokaslr audit=0 random.trust_cpu=on"


def kernel() -> Path:
    """Return the kernel's image."""
    found = sorted((KERNELS / "boot").glob("vmlinuz-*"))
    assert found, f"no kernel for guests in {KERNELS}: run scripts/setup"
    return found[-1]


def initramfs(folder: Path) -> Path:
    """Make the guest's root."""
    writer = folder / "writer"
    source = Path(__file__).with_name("guest_writer.c")
    subprocess.run(["gcc", "-O2", "-static", "-Wall", "-o", writer, source], check=True)
    drivers = KERNELS.glob(f"lib/modules/{kernel().name.partition('-')[2]}/kernel/drivers/**/*.ko")
    files = {path.name: path.read_bytes() for path in drivers if path.stem in DRIVERS}
    files["bin/busybox"] = BUSYBOX.read_bytes()
    files["writer"] = writer.read_bytes()
    files["init"] = _INIT.format(" ".join(DRIVERS)).encode()
    packed = b"".join([_entry("bin", 0o40755), _entry("dev", 0o40755)])
    packed += b"".join(_entry(name, 0o100755, content) for name, content in files.items())
    image = folder / "initramfs"
    image.write_bytes(packed + _entry("TRAILER!!!", 0))
    return image


def _entry(name: str, mode: int, content: bytes = b"") -> bytes:
    """Return a file as cpio's "newc" format has it (cpio(5))."""
    fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


class Guest:
    """What boots: the same for each QEMU that runs it, but for the mount its disk is on."""

    def __init__(self, folder: Path, form: str, cache: str, aio: str) -> None:
        self.folder, self.form, self.cache, self.aio = folder, form, cache, aio
        self.root = initramfs(folder)
        self.memory = folder / "memory"
        self.runs = 0

    @contextmanager
    def on(self, image: Path, *words: object) -> Iterator["Run"]:
        """Run it, or with `-incoming` wait for it, with this image."""
        self.runs += 1
        console = self.folder / f"console-{self.runs}"
        memory = f"memory-backend-file,id=memory,size=128M,share=on,mem-path={self.memory}"
        options = [
            *("-m", "128M", "-object", memory, "-machine", "pc,memory-backend=memory"),
            *("-kernel", kernel(), "-initrd", self.root, "-append", _WORDS),
            *("-serial", f"file:{console}", *disk(image, self.form, self.cache, self.aio)),
        ]
        with machine(self.folder / f"control-{self.runs}", *options, *words) as running:
            shared = {"capability": "x-ignore-shared", "state": True}
            running.command("migrate-set-capabilities", capabilities=[shared])
            yield Run(running, console)


class Run:
    """One QEMU with the guest."""

    def __init__(self, qemu: Machine, console: Path) -> None:
        self.qemu, self.console = qemu, console

    def said(self, word: str) -> list[int]:
        """Return the numbers that the guest has said with this word here."""
        text = self.console.read_text("ascii", "replace") if self.console.exists() else ""
        assert "BAD" not in text, text[-1000:]
        assert "FAILED" not in text, text[-1000:]
        assert "Kernel panic" not in text, text[-1000:]
        return [int(number) for number in re.findall(rf"{word} (\d+)\s*\n", text)]

    def wait_verified(self, rounds: int) -> int:
        """Wait until the guest has checked its whole disk so often from now; return the last."""
        before = len(self.said("verified"))
        eventually(self._has_verified(before + rounds), f"the guest stands still: {self.console}")
        return self.said("verified")[-1]

    def _has_verified(self, rounds: int) -> Callable[[], bool]:
        return lambda: len(self.said("verified")) >= rounds

    def migrate(self, target: "Run", channel: Path) -> None:
        """Move the guest to a QEMU that waits for it there."""
        self.qemu.command("migrate", uri=f"unix:{channel}")
        state = self.qemu.wait("query-migrate", {"completed", "failed", "cancelled"})
        assert state["status"] == "completed", state
        target.qemu.wait("query-status", {"running"})


def check_disk(image: Path, durable: int) -> None:
    """Compare a raw image with what the guest has said; it may have written more since."""
    least = dict.fromkeys(range(BLOCKS), 0)
    for number in range(1, durable + 1):
        least[_mix(number) % BLOCKS] = number
    with image.open("rb", buffering=0) as file:
        for place, expected in least.items():
            block = os.pread(file.fileno(), BLOCK, place * STEP)
            number = struct.unpack_from("<Q", block)[0]
            assert number >= expected, f"block {place} is {number}, was {expected}"
            if number:
                assert _mix(number) % BLOCKS == place, f"block {place} is {number}"
                words = [number, *(_mix(number * 512 + n) for n in range(1, 512))]
                assert block == struct.pack("<512Q", *words), f"block {place} is torn"


def _mix(number: int) -> int:
    number = (number + 0x9E3779B97F4A7C15) & _MASK
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & _MASK
    return number ^ (number >> 31)
