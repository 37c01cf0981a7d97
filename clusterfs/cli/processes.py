"""Processes that outlive the command that started them, named so that a reused pid is no mistake.

A process is its pid, the moment it started (clock ticks since boot) and the boot it belongs to.
Signals go through a pidfd that was checked after it was opened, so they reach that process or none.
"""

import os
import select
import signal
from collections import Counter
from pathlib import Path

import msgspec

_STATE_FIELD = 0  # of /proc/PID/stat, counted after the command name
_START_FIELD = 19


class Process(msgspec.Struct, frozen=True):
    """One run of a program."""

    pid: int
    started: int
    boot: str


def identify(pid: int) -> Process | None:
    """Return who has that pid now, or None."""
    fields = _stat(pid)
    if fields is None:
        return None
    return Process(pid, int(fields[_START_FIELD]), _boot())


def state(process: Process) -> str:
    """Return "running", "paused" or "gone"; one that only waits to be reaped is gone."""
    fields = _stat(process.pid)
    if fields is None or process.boot != _boot() or int(fields[_START_FIELD]) != process.started:
        return "gone"
    letter = fields[_STATE_FIELD]
    if letter in "ZX":
        return "gone"
    return "paused" if letter in "Tt" else "running"


def send(process: Process, number: signal.Signals) -> bool:
    """Signal exactly that process; False if it is gone."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if state(process) == "gone":
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def doing(process: Process) -> str:
    """Return what its threads do, as the kernel names it: "2 S futex_wait, 1 D jbd2_log_wait"."""
    counted: Counter[str] = Counter()
    for task in Path(f"/proc/{process.pid}/task").glob("[0-9]*"):
        try:
            letter = _fields(task / "stat")[_STATE_FIELD]
            place = (task / "wchan").read_text()
        except OSError:
            continue  # it ended meanwhile, or it is not ours to look into
        counted[f"{letter} {place.strip('0')}".strip()] += 1
    return ", ".join(f"{count} {what}" for what, count in counted.most_common()) or "gone"


def wait_gone(process: Process, timeout_s: float) -> bool:
    """Wait until that process has ended; False if it has not after `timeout_s`."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        if state(process) == "gone":
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    finally:
        os.close(descriptor)


class Family(msgspec.Struct, frozen=True):
    """A daemon and the supervisor that is its parent."""

    daemon: Process
    supervisor: Process


def family() -> Family:
    """Return this process as the daemon, and its parent."""
    daemon, supervisor = identify(os.getpid()), identify(os.getppid())
    assert daemon is not None
    assert supervisor is not None
    return Family(daemon, supervisor)


def record(path: Path, family: Family) -> None:
    """Write a pid file, whole or not at all."""
    staged = path.with_suffix(".new")
    staged.write_bytes(msgspec.json.encode(family) + b"\n")
    staged.replace(path)


def recorded(path: Path) -> Family | None:
    """Read a pid file; None if there is none or it is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Family)
    except (OSError, msgspec.DecodeError):
        return None


def _stat(pid: int) -> list[str] | None:
    try:
        return _fields(Path(f"/proc/{pid}/stat"))
    except (FileNotFoundError, ProcessLookupError):
        return None


def _fields(stat: Path) -> list[str]:
    """Return what follows the command name."""
    return stat.read_text("utf-8", "replace").rpartition(")")[2].split()


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
