"""What a brick must go through before it serves: superblock, checkpoint, replay, a new epoch.

`Opening.recover` runs on a worker thread, before anybody else uses the store. What it found is in
its attributes; the door takes them over.

Invariant: nothing is written to the brick before replay has succeeded.
"""

import msgspec

from clusterfs.errors import BrickDamaged, BrickFailed, SetupError
from clusterfs.store.checkpoint import Checkpoint
from clusterfs.store.chunks import PAGE_CIDS
from clusterfs.store.contents import Contents
from clusterfs.store.damage import Damage
from clusterfs.store.disk import Disk
from clusterfs.store.flush import EXECUTORS
from clusterfs.store.hints import Hints
from clusterfs.store.layers import Values
from clusterfs.store.objects import BLOCK_BYTES
from clusterfs.store.packing import Codec
from clusterfs.store.recovery import RESYNC, LogReader, Recovered, Recovery
from clusterfs.store.segments import Segments
from clusterfs.store.superblock import Superblock, enter_epoch, open_superblock

_MIN_SEGMENTS = 6
_OTHER_FILES = 256  # connections of peers and tools, the checkpoint


class Options(msgspec.Struct, frozen=True):
    """Sizes. Only segment_bytes is fixed once the brick exists."""

    segment_bytes: int = 64 << 20
    log_bytes: int = 1 << 20
    buffers: int = 16  # RAM buffers of log_bytes each
    size_limit_bytes: int | None = None  # None: what the filesystem has free, less a reserve
    open_files: int | None = None  # that this process may have: two a segment, and _OTHER_FILES
    executors: int = EXECUTORS  # threads that write; see Store.tune
    compression: Codec = "off"  # of what the cleaner moves
    checkpoint_bytes: int = 256 << 20  # log between two checkpoints
    hints: int = 8 << 20  # blocks in the dedup window, 12 bytes each
    cache_bytes: int = 64 << 20  # verified chunks in RAM

    def most_bytes(self, segment_bytes: int) -> int | None:
        """Return what all segments may take; None: as much as there is."""
        if self.open_files is None:
            return self.size_limit_bytes
        openable_bytes = (self.open_files - _OTHER_FILES) // 2 * segment_bytes
        return min(openable_bytes, self.size_limit_bytes or openable_bytes)


class Tuning(msgspec.Struct, frozen=True):
    """What may change while a store is open; None: it stays."""

    flush_executors: int | None = None
    compression: Codec | None = None


class Opening:
    """What `Store.open` finds out on its worker thread."""

    def __init__(self, disk: Disk, options: Options) -> None:
        self._disk = disk
        self._options = options

    def recover(self, *, store_id: str | None, cluster_id: str) -> None:
        """Read superblock, checkpoint and log; enter a new epoch.

        Raises SetupError, BrickDamaged.
        """
        try:
            self._recover(store_id, cluster_id)
        except OSError as error:
            raise SetupError(f"the brick's disk fails: {error}; nothing is concluded") from error

    def _recover(self, store_id: str | None, cluster_id: str) -> None:
        disk, options = self._disk, self._options
        disk.lock()
        superblock = open_superblock(
            disk, store_id=store_id, cluster_id=cluster_id, segment_bytes=options.segment_bytes
        )
        self.table = disk.open_table()
        try:
            self.inspect(superblock, self._limit(superblock.segment_bytes))
            disk.hold_open(disk.segments())
            disk.sync(sorted(self.recovered.touched))
            self._enter(superblock)
            disk.hold_ballast()
        except BrickFailed as error:
            self.table.close()
            raise BrickDamaged(str(error)) from error
        except BaseException:
            self.table.close()
            raise

    def _limit(self, size_bytes: int) -> int:
        """Return how many segments there may be."""
        disk, limit_bytes = self._disk, self._options.size_limit_bytes
        existing = len(disk.segments())
        self._check_files(max(existing, _MIN_SEGMENTS))
        if limit_bytes is None:
            limit_bytes = existing * size_bytes + disk.free_bytes()
        limit_bytes = min(limit_bytes, self._options.most_bytes(size_bytes) or limit_bytes)
        limit = max(existing, limit_bytes // size_bytes)
        if limit < _MIN_SEGMENTS:
            raise SetupError(
                f"the brick has room for {limit_bytes} bytes; it needs at least "
                f"{_MIN_SEGMENTS * size_bytes}"
            )
        return limit

    def _check_files(self, segments: int) -> None:
        most, needed = self._options.open_files, _OTHER_FILES + 2 * segments
        if most is not None and most < needed:
            raise SetupError(
                f"this process may have {most} files open, and the brick needs {needed}: raise the "
                "hard limit (`ulimit -Hn`, LimitNOFILE= of systemd)"
            )

    def inspect(self, superblock: Superblock, limit: int) -> None:
        """Read checkpoint and log into memory; writes nothing. `table` is open.

        Raises BrickDamaged, BrickFailed.
        """
        disk, size_bytes = self._disk, superblock.segment_bytes
        self.segments = Segments(
            size_bytes // BLOCK_BYTES, limit, self._options.log_bytes // BLOCK_BYTES
        )
        self.values = Values(self.table)
        self.contents = Contents(self.values)
        self.checkpoint = Checkpoint(self.table, self.values, self.contents, self.segments)
        self.reader = LogReader(disk, superblock.store_bytes, self.segments.size_blocks)
        if damage := self.table.damage():
            raise BrickDamaged(f"the checkpoint cannot be trusted: {damage}; {RESYNC}")
        tail, epoch = self.checkpoint.load()
        recovery = Recovery(disk, self.reader, self.contents, self.segments)
        self.recovered: Recovered = recovery.run(tail, epoch)

    def _enter(self, superblock: Superblock) -> None:
        chunks = self.contents.state.chunks
        self.first_cid = chunks.next_cid
        self.damage = Damage()
        self.hints = Hints(chunks, self._options.hints, self.damage)
        self.hints.fill(self._options.hints // PAGE_CIDS)
        self.superblock = enter_epoch(self._disk, superblock, self.recovered.epoch)
