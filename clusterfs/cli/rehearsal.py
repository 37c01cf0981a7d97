"""A migration of a guest between two mounts, with QEMU itself and an empty guest.

Two QEMUs on this machine have one image open, each through its own mount; the guest moves from the
first to the second. Shown are the calls of a real migration: the second does not lock while it
waits, the first unlocks, the second locks and reads the image's metadata anew. The guest is the
firmware looking for a disk to boot from, under emulation (no KVM needed).

QMP is one JSON object a line; see QEMU's docs/interop/qmp-spec.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from clusterfs.cli.image_checks import Finding, NotSo

PROGRAM = "qemu-system-x86_64"
TOOL = "qemu-img"
LIMIT_S = 120.0
_POLL_S = 0.05


def findings(first: Path, second: Path) -> Iterator[Finding]:
    """Try QEMU's own tools as far as they are installed."""
    name = "rehearsed migration"
    if not shutil.which(TOOL) or not shutil.which(PROGRAM):
        missing = TOOL if not shutil.which(TOOL) else PROGRAM
        yield Finding(name, "note", f"not tried: {missing} is not installed here")
        return
    image = f".doctor-{os.getpid()}.qcow2"
    try:
        tool("create", "-q", "-f", "qcow2", str(first / image), "64M")
        downtime_ms = migrate(first / image, second / image)
        tool("check", "-q", str(second / image))
        detail = f"the guest moved; it stood still for {downtime_ms} ms; its image is sound"
        yield Finding(name, "ok", detail)
    except NotSo as failure:
        yield Finding(name, "bad", str(failure))
    finally:
        (first / image).unlink(missing_ok=True)


def tool(*words: str) -> None:
    """Run qemu-img. Raises NotSo with what it said."""
    done = subprocess.run([TOOL, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotSo(f"{TOOL} {words[0]}: {done.stderr.strip()}")


def migrate(source: Path, target: Path) -> int:
    """Move a guest; return how many milliseconds it stood still. Raises NotSo."""
    with (
        tempfile.TemporaryDirectory(prefix="clusterfs-doctor-") as folder,
        guest(source, Path(folder) / "a") as leaving,
    ):
        channel = f"unix:{folder}/migration"
        if _opens(target):
            raise NotSo("a second QEMU can open the image of a running guest for writing")
        with guest(target, Path(folder) / "b", "-incoming", channel) as arriving:
            leaving.command("migrate", uri=channel)
            state = leaving.wait("query-migrate", {"completed", "failed", "cancelled"})
            if state["status"] != "completed":
                raise NotSo(f"QEMU's migration {state['status']}: {state.get('error-desc', '')}")
            arriving.wait("query-status", {"running", "paused", "prelaunch"})
            if _opens(source):
                raise NotSo("the guest that has moved does not lock its image")
            return int(state.get("downtime", 0))


def _opens(image: Path) -> bool:
    """Whether one more QEMU tool may open it for writing."""
    command = ["qemu-io", "-c", "read 0 512", str(image)]
    return not subprocess.run(command, capture_output=True, check=False).returncode


@contextlib.contextmanager
def guest(image: Path, control: Path, *more: str) -> Iterator["Machine"]:
    """Run a guest on an image; it ends with the context. Raises NotSo if it does not start."""
    node = f"driver=qcow2,node-name=disk,file.driver=file,file.filename={image},file.locking=on"
    command = [
        *(PROGRAM, "-nodefaults", "-accel", "tcg", "-m", "64", "-display", "none"),
        *("-blockdev", f"{node},file.cache.direct=on,cache.direct=on"),
        *("-device", "virtio-blk-pci,drive=disk"),
        *("-qmp", f"unix:{control},server=on,wait=off", *more),
    ]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        with Machine(process, control) as machine:
            yield machine
    finally:
        process.kill()
        process.wait()
        assert process.stderr
        process.stderr.close()


class Machine:
    """The QMP side of a running QEMU."""

    def __init__(self, process: subprocess.Popen[bytes], control: Path) -> None:
        self.process = process
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(LIMIT_S)
        end_s = time.monotonic() + LIMIT_S  # noqa: TID251  (a shell reads clocks)
        while True:
            try:
                self._socket.connect(str(control))
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end_s:  # noqa: TID251
                    self._socket.close()
                    raise self._ended() from None
                time.sleep(_POLL_S)
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        try:
            self._line()  # its greeting
            self.command("qmp_capabilities")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def command(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Give one command; return its answer, in an object if it is none. Raises NotSo."""
        request = {"execute": name, "arguments": arguments}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = json.loads(self._line())
            if "error" in answer:
                raise NotSo(f"QEMU refuses {name}: {answer['error']['desc']}")
            if "return" in answer:
                found = answer["return"]
                return found if isinstance(found, dict) else {"return": found}

    def _line(self) -> bytes:
        with contextlib.suppress(OSError):
            if line := self._lines.readline():
                return line
        raise self._ended()

    def _ended(self) -> NotSo:
        assert self.process.stderr
        self.process.kill()
        said = self.process.stderr.read().decode("utf-8", "replace").strip()
        return NotSo(f"{PROGRAM} does not run: {said or 'it says nothing'}")

    def wait(self, query: str, states: set[str]) -> dict[str, Any]:
        """Ask until the status is one of `states`; return the answer. Raises NotSo."""
        end_s = time.monotonic() + LIMIT_S  # noqa: TID251
        while True:
            answer = self.command(query)
            if answer.get("status") in states:
                return answer
            if time.monotonic() > end_s:  # noqa: TID251
                raise NotSo(f"{query} says {answer.get('status')} after {LIMIT_S:g} s")
            time.sleep(_POLL_S)
