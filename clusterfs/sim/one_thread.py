"""Stores without threads: what they would do on a thread happens in the one thread there is.

The flush executors take one job at a time after a seeded delay; everything else that would go to a
thread is done at once. So a run depends on its seed alone, and virtual time waits for nobody.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any
from unittest import mock

import trio

from clusterfs.store.flush import Flusher, Sealed

_WRITE_S = 0.002  # of a log, or a sync, at most
_NOBODY: SimpleQueue[None] = SimpleQueue()  # waits, for there is always a job


@contextmanager
def one_thread(rng: random.Random) -> Iterator[None]:
    """Let stores opened in this block do without threads, and trio schedule by the seed."""

    class SteppedFlusher(Flusher):
        """The executors as steps of trio's thread."""

        def set_executors(self, count: int) -> None:
            """Need none."""
            self.executors = count

        def write(self, log: Sealed, *, sync: bool = False) -> None:
            """Hand over a sealed log. The sync is a step of its own: power fails between, too."""
            super().write(log)
            trio.lowlevel.spawn_system_task(self._later)
            if sync:
                self.sync()

        def sync(self) -> None:
            """Ask that everything handed over so far becomes durable."""
            super().sync()
            trio.lowlevel.spawn_system_task(self._later)

        async def stop(self) -> None:
            """Finish what there is."""
            while self._jobs:
                self._serve(_NOBODY)

        async def _later(self) -> None:
            await trio.sleep(rng.random() * _WRITE_S)
            if self._jobs:
                self._serve(_NOBODY)

    with (
        mock.patch("clusterfs.store.store.Flusher", SteppedFlusher),
        mock.patch("trio.to_thread.run_sync", _at_once),
        mock.patch("trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING", new=True),
        mock.patch("trio._core._run._r", rng),
    ):
        yield


async def _at_once(function: Callable[..., Any], *arguments: Any, **_options: Any) -> Any:
    await trio.lowlevel.checkpoint()
    return function(*arguments)
