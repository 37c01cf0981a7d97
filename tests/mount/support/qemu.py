"""QEMU's tools for tests: run to their end, or kept open and told what to do line by line."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from clusterfs.cli.rehearsal import Machine

PATIENCE_S = 300.0
_PROMPT = b"qemu-io> "


def tool(*words: object, refused: bool = False) -> str:
    """Run a program; return what it said. It has to succeed, or with `refused` to fail."""
    command = [str(word) for word in words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    said = done.stdout + done.stderr
    assert bool(done.returncode) == refused, f"{command} ended with {done.returncode}: {said}"
    return said


def img(*words: object, refused: bool = False) -> str:
    return tool("qemu-img", *words, refused=refused)


def io(
    image: Path, form: str, *commands: str, mode: Sequence[str] = (), refused: bool = False
) -> str:
    """Open an image with qemu-io and give it these commands."""
    given = [word for command in commands for word in ("-c", command)]
    return tool("qemu-io", "-f", form, *mode, *given, image, refused=refused)


def clusterfs(*words: object) -> str:
    return tool(sys.executable, "-m", "clusterfs.cli.main", *words)


def eventually(so: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not so():
        assert time.monotonic() < end_s, what
        time.sleep(0.05)


class Shell:
    """A qemu-io that has an image open until it is told to quit, or killed."""

    def __init__(self, image: Path, form: str, *mode: str) -> None:
        command = ["qemu-io", "-f", form, *mode, str(image)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._read()

    def tell(self, *lines: str) -> str:
        """Give commands, one after the other; return what it says to the last."""
        said = ""
        for line in lines:
            assert self.process.stdin is not None
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
            said = self._read()
            assert "failed" not in said, said
        return said

    def _read(self) -> str:
        assert self.process.stdout is not None
        said = b""
        while not said.endswith(_PROMPT):
            some = os.read(self.process.stdout.fileno(), 4096)
            assert some, f"qemu-io ended: {said.decode()}"
            said += some
        return said.removesuffix(_PROMPT).decode()


@contextmanager
def shell(image: Path, form: str, *mode: str) -> Iterator[Shell]:
    made = Shell(image, form, *mode)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate()


@contextmanager
def machine(control: Path, *words: object) -> Iterator[Machine]:
    """Run a guest, or one that waits to be started; it ends with the context."""
    command = [
        *("qemu-system-x86_64", "-nodefaults", "-accel", "tcg", "-display", "none"),
        *("-qmp", f"unix:{control},server=on,wait=off", *map(str, words)),
    ]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        with Machine(process, control) as running:
            yield running
    finally:
        process.kill()
        process.communicate()


def disk(image: Path, form: str, cache: str = "none", aio: str = "threads") -> list[str]:
    """The options that give a guest this disk."""
    direct = "on" if cache in {"none", "directsync"} else "off"
    device = ",write-cache=off" if cache == "directsync" else ""
    node = f"driver={form},node-name=disk,discard=unmap,cache.direct={direct}"
    file = f"file.driver=file,file.filename={image},file.aio={aio},file.cache.direct={direct}"
    return ["-blockdev", f"{node},{file}", "-device", f"virtio-blk-pci,id=drive,drive=disk{device}"]
