"""The flush executors: 1 to 64 threads that write sealed logs at the same time, and sync for all.

The trio thread hands over sealed logs through one queue, and wakes an executor that is idle, the
one that was busy last. The executor whose turn it is takes the next log, completes its header (the
chain: the checksum of the log before, the highest durable id) and lets the next executor have its
turn while it writes. So the order of the logs is fixed before any is written, and writing overlaps.
Reports to the trio thread are in that order nevertheless: a log counts as written once it and all
before it are. Whoever completes the row up to a requested sync syncs, once for all who wait; what
it wrote just before is reported with the sync, unless another executor has something to report
meanwhile: each report wakes the trio thread.

A small log that comes while nothing else is under way goes to the disk's lane, if it has one, which
needs neither an executor nor the interpreter (lane.py). It is chained before it goes there, and
written and synced in one job; what comes meanwhile goes to the executors as ever.

Invariants:
  * logs are reported written, and become durable, in the order of their ids;
  * a sync covers every log handed over before it;
  * a log is chained to its predecessor before either is written;
  * after the first failed write or sync nothing more is taken up, nothing is retried, nothing more
    becomes durable, and the failure is reported once.
"""

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

import trio

from clusterfs.store.disk import Disk
from clusterfs.store.format import Header, finish_log
from clusterfs.store.lane import LANE_BYTES, LANE_SEGMENTS, Lane
from clusterfs.store.objects import BLOCK_BYTES
from clusterfs.store.tail import USER

EXECUTORS = 2
MAX_EXECUTORS = 64


class Sealed:
    """One log on its way to the disk. `checksum` is set before it is reported written."""

    __slots__ = (
        "block",
        "blocks",
        "checksum",
        "durable",
        "fragments",
        "id",
        "kind",
        "memory",
        "payload_blocks",
        "records",
        "segment",
        "stream",
        "synced",
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
        self.durable = 0  # what its header tells
        self.stream = USER
        self.synced = False  # a sync follows it


class Flusher:
    """The threads and their queue. What has no underscore belongs to the trio thread."""

    def __init__(
        self, disk: Disk, store_id: bytes, epoch: int, previous: int, durable: int
    ) -> None:
        self._disk = disk
        self._store_id = store_id
        self._epoch = epoch
        self._threads: list[threading.Thread] = []
        self._token: trio.lowlevel.TrioToken | None = None
        self.executors = EXECUTORS
        # Under _hands, held for a moment only: what is to be done, and who has nothing to do.
        self._hands = threading.Lock()
        self._jobs: deque[Sealed | str] = deque()
        self._idle: list[SimpleQueue[None]] = []
        # Under _turn: the end of the chain.
        self._turn = threading.Lock()
        self._previous = previous
        self._chained = durable
        # Under _books: what is on the disk.
        self._books = threading.Lock()
        self._early: dict[int, Sealed] = {}  # written before one of their predecessors
        self._unreported: list[Sealed] = []
        self._written = durable
        self._durable = durable
        self._unsynced: set[int] = set()
        self._sync_upto = 0
        self._syncing = False
        self._failed = False
        self._posted = 0  # reports that the trio thread has not seen yet
        # The lane, and the log that is in it.
        self._lane: Lane | None = None
        self._laned: Sealed | None = None
        self._lane_left = trio.lowlevel.ParkingLot()
        self.marked = durable  # the highest durable id that a written header tells
        self.syncs = self.lane_logs = 0

    def start(
        self,
        written: Callable[[list[Sealed]], None],
        durable: Callable[[int], None],
        failed: Callable[[OSError], None],
    ) -> None:
        """Start the threads; the callbacks run on the trio thread, in order."""
        self._token = trio.lowlevel.current_trio_token()
        self._report_written = written
        self._report_durable = durable
        self._report_failed = failed
        self.set_executors(self.executors)
        self._lane = lane = self._disk.lane()
        if lane is not None:
            trio.lowlevel.spawn_system_task(self._watch, lane)

    def set_executors(self, count: int) -> None:
        """Use so many threads from now on; what is handed over is not disturbed."""
        assert 0 < count <= MAX_EXECUTORS, count
        running = self.executors if self._threads else 0
        self.executors = count
        if self._token is None:
            return  # `start` will
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        for _ in range(running - count):
            self._hand_over("stop")
        for _ in range(count - running):
            thread = threading.Thread(target=self._run, name="clusterfs-flush", daemon=True)
            self._threads.append(thread)
            thread.start()

    def write(self, log: Sealed, *, sync: bool = False) -> None:
        """Hand over a sealed log; sync: as `sync` after it would do."""
        log.synced = sync
        if not self._take_lane(log):
            self._hand_over(log)

    def sync(self) -> None:
        """Ask that everything handed over so far becomes durable."""
        self._hand_over("sync")

    def _hand_over(self, job: Sealed | str) -> None:
        with self._hands:
            self._jobs.append(job)
            idle = self._idle.pop() if self._idle else None
        if idle is not None:
            idle.put(None)

    async def stop(self) -> None:
        """Let them finish what they have, then end the threads."""
        while self._laned is not None:
            await self._lane_left.park()
        if self._lane is not None:
            lane, self._lane = self._lane, None
            trio.lowlevel.notify_closing(lane.fileno())
            lane.close()
        for _ in range(self.executors):
            self._hand_over("stop")
        await trio.to_thread.run_sync(self._join)

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()

    # -- the lane

    def _take_lane(self, log: Sealed) -> bool:
        """Begin to write the log in the lane, if it may; tell whether it did."""
        lane = self._lane
        small = log.blocks * BLOCK_BYTES <= LANE_BYTES
        if lane is None or self._laned is not None or not small or not lane.takes(log.segment):
            return False
        if not self._turn.acquire(blocking=False):
            return False
        try:
            with self._books:
                alone = not self._jobs and self._written == log.id - 1 and not self._syncing
                if not alone or self._failed or len(self._unsynced) >= LANE_SEGMENTS:
                    return False
                self._chain(log)
                segments: set[int] = set()
                if log.synced:
                    self._sync_upto = max(self._sync_upto, log.id)
                    self._syncing = True
                    segments, self._unsynced = self._unsynced | {log.segment}, set()
        finally:
            self._turn.release()
        self._laned = log
        self.lane_logs += 1
        lane.begin(log.segment, log.block * BLOCK_BYTES, _content(log), segments)
        return True

    async def _watch(self, lane: Lane) -> None:
        """Report what the lane has done, until it is closed."""
        fileno = lane.fileno()
        try:
            while True:
                await trio.lowlevel.wait_readable(fileno)
                self._leave_lane(lane)
        except trio.ClosedResourceError:
            return
        finally:
            lane.close()

    def _leave_lane(self, lane: Lane) -> None:
        """If the lane is done with its log, tell what follows from it."""
        outcome, log = lane.finish(), self._laned
        if outcome is False or log is None:
            return
        self._laned = None
        self._lane_left.unpark_all()
        if isinstance(outcome, OSError):
            self._fail(outcome)
            return
        row: list[Sealed] = []
        durable = log.id if log.synced else 0
        with self._books:
            if log.synced:
                self._syncing = False
            if self._failed:
                return
            if log.synced:
                self._durable = log.id
                self.syncs += 1
            else:
                self._unsynced.add(log.segment)
            self._note_written(log)
            due = self._durable < self._sync_upto <= self._written
            if self._posted:  # in their order
                self._report(durable)
            else:
                row, self._unreported = self._unreported, []
        if due:
            self.sync()
        if row:
            self._reported(row, durable)

    # -- on an executor

    def _run(self) -> None:
        woken: SimpleQueue[None] = SimpleQueue()
        while self._serve(woken):
            pass

    def _serve(self, woken: "SimpleQueue[None]") -> bool:
        """Do the next job, or wait for one; False: it was the last."""
        job = self._take(woken)
        if job is None:
            woken.get()
            return True
        if job == "stop":
            return False
        try:
            if isinstance(job, Sealed):
                self._write(job)
            self._sync_if_due()
        except OSError as error:
            self._fail(error)
        return True

    def _take(self, woken: "SimpleQueue[None]") -> Sealed | str | None:
        """Return the next job, its place in the chain settled; None: there will be a wakeup."""
        with self._turn:
            with self._hands:
                if not self._jobs:
                    self._idle.append(woken)
                    return None
                job = self._jobs.popleft()
            if isinstance(job, Sealed) and not self._failed:
                self._chain(job)
            if job == "sync" or (isinstance(job, Sealed) and job.synced):
                with self._books:
                    self._sync_upto = max(self._sync_upto, self._chained)
            return job

    def _chain(self, log: Sealed) -> None:
        """Complete the header; under _turn, so in the order of the ids."""
        memory = _content(log)
        log.durable = self._durable
        header = Header(
            kind=log.kind,
            stream=log.stream,
            length_bytes=len(memory),
            store_id=self._store_id,
            epoch=self._epoch,
            id=log.id,
            previous=self._previous,
            durable=log.durable,
            segment=log.segment,
            block=log.block,
            fragments=log.fragments,
            record_bytes=len(log.records),
            payload_blocks=log.payload_blocks,
            checksum=0,
        )
        log.checksum = self._previous = finish_log(memory, header, log.records)
        self._chained = log.id

    def _write(self, log: Sealed) -> None:
        if self._failed:
            return
        self._disk.write(log.segment, log.block * BLOCK_BYTES, _content(log))
        with self._books:
            self._unsynced.add(log.segment)
            self._note_written(log)

    def _note_written(self, log: Sealed) -> None:
        """Under _books: count the logs whose predecessors are all written."""
        self._early[log.id] = log
        while (following := self._early.pop(self._written + 1, None)) is not None:
            self._unreported.append(following)
            self._written = following.id
            self.marked = following.durable

    def _sync_if_due(self) -> None:
        while True:
            with self._books:
                due = self._durable < self._sync_upto <= self._written
                if self._failed or self._syncing or not due:
                    self._report()
                    return
                self._syncing = True
                upto, segments = self._written, sorted(self._unsynced)
                self._unsynced.clear()
            self._disk.sync(segments)
            with self._books:
                self._syncing = False
                if self._over:
                    return
                self._durable = upto
                self.syncs += 1
                self._report(upto)

    @property
    def _over(self) -> bool:
        return self._failed

    def _fail(self, error: OSError) -> None:
        with self._books:
            if not self._failed:
                self._report()
                self._failed = True
                self._post(self._report_failed, error)

    def _report(self, durable: int = 0) -> None:
        """Under _books: report what is written, and up to what it is durable, if that is news."""
        row, self._unreported = self._unreported, []
        if not self._failed and (row or durable):
            self._post(self._reported, row, durable)

    def _deliver(self, report: Callable[..., None], arguments: tuple[object, ...]) -> None:
        """On the trio thread."""
        with self._books:
            self._posted -= 1
        report(*arguments)

    def _reported(self, row: list[Sealed], durable: int) -> None:
        """On the trio thread."""
        if row:
            self._report_written(row)
        if durable:
            self._report_durable(durable)

    def _post(self, report: Callable[..., None], *arguments: object) -> None:
        """Under _books."""
        assert self._token is not None
        try:
            self._token.run_sync_soon(self._deliver, report, arguments)
            self._posted += 1
        except trio.RunFinishedError:
            self._failed = True


def _content(log: Sealed) -> memoryview:
    """Return the bytes of the log as they are written."""
    return log.memory[: log.blocks * BLOCK_BYTES]
