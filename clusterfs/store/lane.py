"""A lane to the medium beside Python's threads: one write, and the syncs after it, at a time.

What it is for: a log that somebody waits for while nothing else is being written, which is what an
fsync of little data is. Then an executor (flush.py) mostly waits for the interpreter; the lane's
thread (_lane.c) does not need it. A lane reports through a descriptor that becomes readable.

Invariants: the content is not touched between `begin` and `finish`; a file is synced after what
was written by the same job, and after all that was written before `begin`.
"""

import os
from collections.abc import Collection, Mapping
from typing import Protocol

try:
    from clusterfs.store import _lane as native
except ImportError:  # this tree was never built: the executors do everything
    native = None  # type: ignore[assignment]

LANE_BYTES = 256 << 10  # what is larger takes longer than a change of threads
LANE_SEGMENTS = 16  # that one job may sync


class Lane(Protocol):
    """What does one job at a time without a thread of Python's; belongs to the trio thread."""

    def fileno(self) -> int:
        """Return the descriptor that is readable when the job is done."""

    def takes(self, segment: int) -> bool:
        """Tell whether jobs may write to this segment by now."""

    def begin(self, segment: int, offset: int, content: memoryview, sync: Collection[int]) -> None:
        """Write whole blocks to a segment, then sync these, all of which it `takes`."""

    def finish(self) -> OSError | bool:
        """Return True if the job is done, False if it is not yet, or why it failed."""

    def close(self) -> None:
        """Wait for the job, if there is one, and end; idempotent."""


class NativeLane:
    """The lane of a brick in a directory."""

    def __init__(self, files: Mapping[int, int]) -> None:
        """files: segment -> descriptor, of those that an executor has written to."""
        self._files = files
        self._lane = native.Lane()
        self.takes = files.__contains__
        self.fileno = self._lane.fileno
        self.close = self._lane.close

    def begin(self, segment: int, offset: int, content: memoryview, sync: Collection[int]) -> None:
        """Hand the job to the thread."""
        files = self._files
        self._lane.begin(files[segment], offset, content, tuple([files[number] for number in sync]))

    def finish(self) -> OSError | bool:
        """Take what the thread says."""
        failure = self._lane.finish()
        if failure:
            return OSError(failure, os.strerror(failure))
        return failure is not None


def open_lane(files: Mapping[int, int]) -> NativeLane | None:
    """Return a lane, None if this tree was never built."""
    return None if native is None else NativeLane(files)
