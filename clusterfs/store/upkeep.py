"""What keeps the store going by itself: new segments, checkpoints, cleaning, the durable mark.

One task does these one after the other, whenever `poke` says something changed. Worker threads do
the slow parts; the trio thread is held only for the moments in between.

Invariants:
  * at most one checkpoint at a time;
  * what is changed in memory is bounded: while a checkpoint is written, changes may have to wait;
  * a failure of the medium makes the brick read-only and ends the task.
"""

import errno

import trio

from clusterfs.errors import BrickFailed, OutOfSpace
from clusterfs.store.checkpoint import Checkpoint, Image
from clusterfs.store.disk import Disk
from clusterfs.store.layers import Rubbish
from clusterfs.store.log import Log
from clusterfs.store.reclaiming import Reclaiming
from clusterfs.store.segments import RESERVE_DATA, Segments
from clusterfs.store.state import State

_READY_SEGMENTS = RESERVE_DATA + 2
_IDLE_S = 0.25
_MARK_AFTER_S = 0.01
_DIRTY_RECORDS = 100_000
_MOST_DIRTY_RECORDS = 200_000  # while a checkpoint is being written: then changes wait for it
_PIECE = 2000
_NO_ROOM = (errno.ENOSPC, errno.EMFILE, errno.ENFILE)  # now, but perhaps later


class Upkeep:
    """The store's own work."""

    def __init__(  # noqa: PLR0913  it brings the parts together
        self,
        disk: Disk,
        segments: Segments,
        state: State,
        log: Log,
        checkpoint: Checkpoint,
        reclaiming: Reclaiming,
        *,
        epoch: int,
        segment_bytes: int,
        size_limit_bytes: int | None,
        checkpoint_bytes: int,
    ) -> None:
        self._disk = disk
        self._segments = segments
        self._state = state
        self._log = log
        self._checkpoint = checkpoint
        self._reclaiming = reclaiming
        self._epoch = epoch
        self._segment_bytes = segment_bytes
        self._size_limit_bytes = size_limit_bytes
        self._refused_bytes = -1  # what was free when a segment could not be created
        self._checkpoint_bytes = checkpoint_bytes
        self._checkpointed_at = 0
        self._writing = False  # a checkpoint
        self._unfinished: Image | None = None  # a checkpoint for which there was no space
        self._poked = trio.Event()
        self._stopping = False
        self._stopped = trio.Event()
        self._busy = trio.Lock()
        self._begun = 0  # rounds of `tend`
        self._ended = 0
        self._progress = trio.lowlevel.ParkingLot()  # who waits for room in the segments

    def poke(self, wanted_blocks: int = 0) -> None:
        """Say that something may be due; somebody may wait for so much room."""
        reclaiming = self._reclaiming
        reclaiming.wanted_blocks = max(reclaiming.wanted_blocks, wanted_blocks)
        self._poked.set()

    def poke_if_due(self) -> None:
        """Say so if the log grew enough; cheap, after every append."""
        if (
            self._log.bytes_written - self._checkpointed_at >= self._checkpoint_bytes
            or len(self._segments.ready) < _READY_SEGMENTS
        ):
            self._poked.set()

    async def run(self) -> None:
        """Work until `stop` or until the brick fails."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._mark)
            await self._work()
            nursery.cancel_scope.cancel()

    async def _work(self) -> None:
        try:
            while not self._stopping:
                with trio.move_on_after(_IDLE_S):
                    await self._poked.wait()
                self._measure()
                if self._poked.is_set() or self._is_work_left():
                    self._poked = trio.Event()
                    await self.tend()
        except BrickFailed:
            pass  # everybody else learns it from the log
        except OSError as error:
            self._log.fail(error)
        finally:
            self._stopped.set()
            self._progress.unpark_all()

    async def _mark(self) -> None:
        """Have the last synced log witnessed as soon as no other follows it."""
        while True:
            await self._log.wait_unmarked()
            position = self._log.position
            await trio.sleep(_MARK_AFTER_S)
            if position == self._log.position:
                self._log.mark_durable()

    def _is_work_left(self) -> bool:
        return self._unfinished is not None or self._reclaiming.wants_to_pack()

    async def stop(self) -> None:
        """End the task between two pieces of work."""
        self._stopping = True
        self._poked.set()
        await self._stopped.wait()

    async def gain(self, wanted_blocks: int) -> bool:
        """Wait until there may be more room in the segments; False if there will be none."""
        begun, gained = self._begun, self._segments.gained
        self.poke(wanted_blocks)
        while self._segments.gained == gained:
            if self._ended > begun or self._stopped.is_set():
                return False  # a whole round since the call found nothing to gain
            await self._progress.park()
        return True

    async def tend(self) -> None:
        """Do what is due."""
        self._begun += 1
        try:
            await self.make_segments()
            if self._is_checkpoint_due():
                await self.take_checkpoint()
            await self._clean_while_due()
            await self.make_segments()
        except OutOfSpace:
            pass  # tried again when idle; see `short`
        self._reclaiming.wanted_blocks = 0
        self._ended = self._begun
        self._progress.unpark_all()

    def _measure(self) -> None:
        """Let there be as many segments as the filesystem has room for now."""
        segments, free = self._segments, self._disk.free_bytes()
        more = 0 if free <= self._refused_bytes else free // self._segment_bytes
        limit = segments.count + more
        if self._size_limit_bytes is not None:
            limit = min(limit, self._size_limit_bytes // self._segment_bytes)
        segments.limit = max(limit, segments.count)

    async def make_segments(self) -> None:
        """Create segments until enough are ready, or there may be no more."""
        segments = self._segments
        while self._wants_segments() and segments.count < segments.limit:
            number = segments.next_number
            try:
                await trio.to_thread.run_sync(
                    self._disk.create_segment, number, self._segment_bytes
                )
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    self._log.fail(error)
                    raise BrickFailed(f"cannot create segment {number}: {error}") from error
                segments.limit = segments.count  # others filled the filesystem, or opened files
                if error.errno == errno.ENOSPC:
                    self._refused_bytes = self._disk.free_bytes()
                return
            self._refused_bytes = -1
            segments.add(number)
            self._progress.unpark_all()

    def _wants_segments(self) -> bool:
        wanted = self._reclaiming.wanted_blocks + RESERVE_DATA * self._segments.size_blocks
        return (
            len(self._segments.ready) < _READY_SEGMENTS or self._log.segment_room_blocks() < wanted
        )

    def _is_checkpoint_due(self) -> bool:
        grown = self._log.bytes_written - self._checkpointed_at
        if grown >= self._checkpoint_bytes or self._state.dirty_count >= _DIRTY_RECORDS:
            return True
        if self._unfinished is not None:
            return True
        return grown > 0 and self._reclaiming.is_short() and self._reclaiming.dead() > 0

    async def _clean_while_due(self) -> None:
        reclaiming = self._reclaiming
        for _ in range(2 * self._segments.limit):
            if self._stopping or not (reclaiming.is_short() or reclaiming.wants_to_pack()):
                return
            victim, dead = reclaiming.victim(), reclaiming.dead()
            if dead and (victim is None or reclaiming.is_urgent() or reclaiming.is_enough(dead)):
                await self.take_checkpoint()
            elif victim is None:
                if not self._unchecked():
                    return
                await self.take_checkpoint()
            else:
                await self.make_segments()
                if not reclaiming.has_room(victim):
                    if not dead:
                        return
                    await self.take_checkpoint()
                    continue
                await reclaiming.clean(victim)
                self._progress.unpark_all()

    def _unchecked(self) -> bool:
        """Tell whether a used segment waits for a checkpoint before it can be cleaned."""
        checkpointed = self._segments.checkpointed_id
        return any(last > checkpointed for _, last in self._segments.used.values())

    @property
    def short(self) -> bool:
        """Tell whether a checkpoint waits for space on the brick's filesystem."""
        return self._unfinished is not None

    @property
    def behind(self) -> bool:
        """Tell whether too much changed since the checkpoint that is being written began."""
        return self._writing and self._state.dirty_count >= _MOST_DIRTY_RECORDS

    async def catch_up(self) -> None:
        """Wait until it is not `behind`."""
        while self.behind:
            await self._progress.park()

    async def take_checkpoint(self) -> None:
        """Write the state to the table.

        Raises BrickFailed; OutOfSpace if the filesystem is full: then the next call goes on.
        """
        async with self._busy:
            self._log.check()
            image = self._unfinished or self._freeze()
            if image is None:
                return  # nothing was logged since the store was opened
            await self._log.sync(image.last.id)
            await self._write(image)
            rubbish = self._checkpoint.finish(image)
            self._progress.unpark_all()
            await _throw_away(rubbish)

    def _freeze(self) -> Image | None:
        self._log.seal_all()
        last = self._log.last_sealed
        if last is None:
            return None
        self._checkpointed_at = self._log.bytes_written
        self._unfinished = self._checkpoint.freeze(last, self._log.tail, self._epoch)
        return self._unfinished

    async def _write(self, image: Image) -> None:
        self._writing = True
        try:
            await trio.to_thread.run_sync(self._write_out, image)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                await trio.to_thread.run_sync(self._disk.release_ballast)
                raise OutOfSpace(f"no room for a checkpoint: {error}") from error
            self._log.fail(error)
            raise BrickFailed(f"checkpoint: {error}") from error
        finally:
            self._writing = False
            self._progress.unpark_all()
        self._unfinished = None

    def _write_out(self, image: Image) -> None:
        self._checkpoint.write(image)
        self._disk.hold_ballast()


async def _throw_away(rubbish: Rubbish) -> None:
    """Free the entries in small pieces."""
    for content in rubbish:
        while content:
            for _ in range(min(len(content), _PIECE)):
                content.popitem()
            await trio.lowlevel.checkpoint()
