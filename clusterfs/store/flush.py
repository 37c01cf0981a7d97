"""The flush thread: it writes sealed logs in order and syncs once for all who wait.

One plain thread takes jobs from a queue and reports to the trio thread. It alone knows the chain:
the checksum of the last written log and the highest durable id go into the next header.

Invariants:
  * logs are written, and reported, in the order of their ids;
  * a sync covers every log handed over before it;
  * after the first failed write or sync nothing is written any more, nothing is retried, and the
    failure is reported once.
"""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

import trio

from clusterfs.store.disk import Disk
from clusterfs.store.format import Header, finish_log
from clusterfs.store.objects import BLOCK_BYTES


class Sealed:
    """One log on its way to the disk. `checksum` is set once it is written."""

    __slots__ = (
        "block",
        "blocks",
        "checksum",
        "fragments",
        "id",
        "kind",
        "memory",
        "payload_blocks",
        "records",
        "segment",
    )

    def __init__(self, log_id: int, segment: int, block: int, memory: memoryview) -> None:
        self.id = log_id
        self.segment = segment
        self.block = block
        self.memory = memory  # the whole RAM buffer
        self.records = bytearray()
        self.fragments = 0
        self.payload_blocks = 0
        self.blocks = 0  # set when it is sealed
        self.kind = 0
        self.checksum = 0


class Flusher:
    """The thread and its queue. All but `_run` and below belongs to the trio thread."""

    def __init__(
        self, disk: Disk, store_id: bytes, epoch: int, previous: int, durable: int
    ) -> None:
        self._disk = disk
        self._store_id = store_id
        self._epoch = epoch
        self._previous = previous
        self._durable = durable
        self._written = durable
        self._unsynced: set[int] = set()
        self._failed = False
        self._jobs: SimpleQueue[Sealed | str] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="clusterfs-flush", daemon=True)
        self.marked = durable  # the highest durable id that a written header tells
        self.syncs = 0

    def start(
        self,
        written: Callable[[list[Sealed]], None],
        durable: Callable[[int], None],
        failed: Callable[[OSError], None],
    ) -> None:
        """Start the thread; the callbacks run on the trio thread, in order."""
        self._token = trio.lowlevel.current_trio_token()
        self._report_written = written
        self._report_durable = durable
        self._report_failed = failed
        self._thread.start()

    def write(self, log: Sealed) -> None:
        """Hand over a sealed log."""
        self._jobs.put(log)

    def sync(self) -> None:
        """Ask that everything handed over so far becomes durable."""
        self._jobs.put("sync")

    async def stop(self) -> None:
        """Let it finish what it has, then end the thread."""
        self._jobs.put("stop")
        await trio.to_thread.run_sync(self._thread.join)

    def _run(self) -> None:
        while True:
            jobs = [self._jobs.get()]
            while jobs[-1] != "stop":
                try:
                    jobs.append(self._jobs.get_nowait())
                except Empty:
                    break
            try:
                self._do(jobs)
            except OSError as error:
                self._failed = True
                self._post(self._report_failed, error)
            if jobs[-1] == "stop":
                return

    def _do(self, jobs: list[Sealed | str]) -> None:
        if self._failed:
            return
        syncing = "sync" in jobs
        for job in jobs:
            if isinstance(job, Sealed):
                self._write(job)
                self._post(self._report_written, [job])
        if syncing:
            self._disk.sync(sorted(self._unsynced))
            self._unsynced.clear()
            self._durable = self._written
            self.syncs += 1
            self._post(self._report_durable, self._durable)

    def _write(self, log: Sealed) -> None:
        memory = log.memory[: log.blocks * BLOCK_BYTES]
        header = Header(
            kind=log.kind,
            length_bytes=len(memory),
            store_id=self._store_id,
            epoch=self._epoch,
            id=log.id,
            previous=self._previous,
            durable=self._durable,
            segment=log.segment,
            block=log.block,
            fragments=log.fragments,
            record_bytes=len(log.records),
            payload_blocks=log.payload_blocks,
            checksum=0,
        )
        log.checksum = self._previous = finish_log(memory, header, log.records)
        self._disk.write(log.segment, log.block * BLOCK_BYTES, memory)
        self._unsynced.add(log.segment)
        self._written = log.id
        self.marked = self._durable

    def _post(self, report: Callable[..., None], argument: object) -> None:
        try:
            self._token.run_sync_soon(report, argument)
        except trio.RunFinishedError:
            self._failed = True
