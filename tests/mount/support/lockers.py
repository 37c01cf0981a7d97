"""Programs for tests of file locks: each on a node's mount, told step by step what to lock."""

import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("locker.py")
ANSWER_S = 150.0


class Locker:
    """One program. `tell` waits for its answer; `begin` does not, `answer` then fetches it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self.process.pid
        self._answers: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put(json.loads(line))
        self._answers.put(None)

    def begin(self, *words: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()

    def answer(self, timeout_s: float = ANSWER_S) -> Any:
        return self._answers.get(timeout=timeout_s)

    def tell(self, *words: Any) -> Any:
        self.begin(*words)
        return self.answer()

    @property
    def answered(self) -> bool:
        return not self._answers.empty()

    def opened(self, path: Path, label: str = "f") -> "Locker":
        assert self.tell("open", label, str(path)) == 0
        return self

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def lockers() -> Iterator[Any]:
    """Return what makes Lockers, all of which end."""
    made: list[Locker] = []

    def make() -> Locker:
        made.append(Locker())
        return made[-1]

    try:
        yield make
    finally:
        for locker in made:
            locker.process.kill()
        for locker in made:
            locker.end()
