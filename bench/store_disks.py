"""Disks to measure the store on: in RAM, slow, and forgetful."""

import time
from collections.abc import Iterable
from pathlib import Path

from clusterfs.sim.disk import Committed, Event, SimulatedDisk
from clusterfs.store.disk import DirectoryDisk


class RamDisk(SimulatedDisk):
    """Keeps segments in RAM, and no journal; counts what the table takes."""

    def __init__(self) -> None:
        super().__init__()
        self.table_bytes = 0

    def _record(self, event: Event) -> None:
        with self._mutex:
            self.medium.take(event)
            if isinstance(event, Committed):
                self.table_bytes += sum(len(k) + len(v or b"") for k, v in event.changes)

    def killed(self) -> "RamDisk":
        """Return the same brick for another process."""
        other = RamDisk()
        other.medium = self.medium
        return other


class SlowDisk(DirectoryDisk):
    """A directory behind a device that takes so long for each write and each sync."""

    def __init__(self, path: Path, delay_s: float) -> None:
        super().__init__(path, reserve_bytes=0)
        self._delay_s = delay_s

    def write(self, segment: int, offset: int, content: memoryview) -> None:
        """Write, slowly."""
        time.sleep(self._delay_s)
        super().write(segment, offset, content)

    def sync(self, segments: Iterable[int]) -> None:
        """Sync, slowly."""
        time.sleep(self._delay_s)
        super().sync(segments)


class ForgetfulDisk(DirectoryDisk):
    """Keeps the checkpoint but nothing of the log: for more data than there is room for."""

    def write(self, segment: int, offset: int, content: memoryview) -> None:
        """Do nothing."""

    def sync(self, segments: Iterable[int]) -> None:
        """Do nothing."""

    def create_segment(self, segment: int, size_bytes: int) -> None:
        """Do nothing."""

    def free_bytes(self) -> int:
        """Return plenty."""
        return 1 << 43
