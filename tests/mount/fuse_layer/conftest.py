"""A real mount of a filesystem in memory, served by a process that obeys the test."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SERVER = Path(__file__).with_name("server.py")
PATIENCE_S = 120.0


class Served:
    """The mount, and a line to the process behind it."""

    def __init__(self, directory: Path, report: Path) -> None:
        self.directory = directory
        self.report = report
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER), str(directory), str(report)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        hello = self._answer()
        self.daemon: int = hello["pid"]
        self.supervisor: int = hello["supervisor"]

    def ask(self, do: str, **arguments: Any) -> Any:
        self.tell(do, **arguments)
        return self._answer()

    def tell(self, do: str, **arguments: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self.process.stdin.flush()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the server ended"
        return json.loads(line)

    def signal_daemon(self, number: int) -> None:
        os.kill(self.daemon, number)

    def kill_daemon(self) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.daemon, signal.SIGKILL)

    def stop(self) -> None:
        self.kill_daemon()
        try:
            self.process.wait(PATIENCE_S)  # the supervisor unmounts
        finally:
            subprocess.run(["umount", "-l", self.directory], check=False, capture_output=True)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    directory = tmp_path / "mnt"
    directory.mkdir()
    served = Served(directory, tmp_path / "report")
    # A system call on a mount that hangs cannot be interrupted: its daemon's death ends it.
    watchdog = threading.Timer(3 * PATIENCE_S, served.kill_daemon)
    watchdog.start()
    try:
        yield served
    finally:
        watchdog.cancel()
        served.stop()


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Wait until the condition holds; fails the test if it takes unreasonably long."""
    deadline = time.clock_gettime(time.CLOCK_BOOTTIME) + PATIENCE_S
    while not (result := condition()):
        assert time.clock_gettime(time.CLOCK_BOOTTIME) < deadline, f"never: {what}"
        threading.Event().wait(0.01)
    return result


class Background:
    """A call on a thread: it may hang for as long as the test wants."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self.result = call()
        except OSError as error:
            self.error = error

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    @property
    def waits_in_the_kernel(self) -> bool:
        """Tell whether it waits for an answer, and not for a processor or for Python's lock."""
        try:
            function = Path(f"/proc/self/task/{self._thread.native_id}/wchan").read_text()
        except (FileNotFoundError, ProcessLookupError):  # it has ended, just now perhaps
            return False
        return not self.done and function != "0" and "futex" not in function

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def outcome(self) -> Any:
        self._thread.join(PATIENCE_S)
        assert self.done, "still hanging"
        if self.error:
            raise self.error
        return self.result


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[[Callable[[], Any], str], Any]:
    return eventually


@pytest.fixture
def background() -> Callable[[Callable[[], Any]], Background]:
    return Background


@pytest.fixture
def hanging() -> Callable[[Callable[[], Any]], Background]:
    """Repeat a call until it hangs; the one that does is returned."""

    def repeat(call: Callable[[], Any]) -> Background:
        def attempt() -> Background | None:
            made = Background(call)
            made.join(0.3)
            return made if made.waits_in_the_kernel else None

        found: Background = eventually(attempt, "a call hangs")
        return found

    return repeat
