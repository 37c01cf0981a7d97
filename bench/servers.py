"""Servers of other filesystems for a while: in a namespace of their own, and ended afterwards."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ADDRESS = "10.211.55.1"  # nobody's but the namespace's
COPIES = 3
WAIT_S = 60.0


@contextlib.contextmanager
def namespace(purpose: str) -> Iterator[list[str]]:
    """Make a network namespace; yield the words that run a command in it, in the usual mounts."""
    name = f"bench-{purpose}-{os.getpid()}"
    run(["ip", "netns", "add", name])
    try:
        inside = ["nsenter", f"--net=/run/netns/{name}"]
        run([*inside, "ip", "link", "set", "lo", "up"])
        run([*inside, "ip", "address", "add", f"{ADDRESS}/32", "dev", "lo"])
        yield inside
    finally:
        run(["ip", "netns", "delete", name])


@contextlib.contextmanager
def mounted(command: list[str], place: Path) -> Iterator[Path]:
    """Run a mount in the foreground; yield its root once it is one."""
    running: list[subprocess.Popen[bytes]] = []

    def is_mounted() -> bool:
        if not running or running[-1].poll() is not None:  # its server did not listen yet
            running.append(subprocess.Popen(command, stdout=sys.stderr))
        return place.is_mount()

    try:
        wait_for(is_mounted, f"{place} is mounted")
        yield place
        run(["umount", str(place)])
    finally:
        end(running[-1])


def run(command: list[str]) -> None:
    """Run it. Raises CalledProcessError."""
    subprocess.run(command, check=True, stdout=sys.stderr)


def retried(command: list[str]) -> None:
    """Run it until it succeeds: a server that was just started may not listen yet."""
    wait_for(
        lambda: subprocess.run(command, check=False, capture_output=True).returncode == 0,
        " ".join(command),
    )


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Return once `condition` holds; fail after a minute."""
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s, f"in vain: {what}"
        time.sleep(0.2)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server that we started."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(30)
    process.kill()
    process.wait()
