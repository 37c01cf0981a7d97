"""The scrub: every live chunk read from the medium and verified, little by little.

It goes through the chunk table page by page, in the order of cids: that is nearly the order of the
log, so the reads are long. They go past the page cache: what counts is the medium. At the end the
checkpoint's table is walked. What is damaged is noted for healing (see healing.py).

Where it is, what it found and that it is running is a fact of the store, written now and then:
after a restart it goes on. How fast it may read is its one limit.

Invariants:
  * a chunk that lived during the whole pass was verified by it, or noted as damaged;
  * one batch of at most 4 MiB is in memory.
"""

import errno
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import msgspec
import trio

from clusterfs.errors import BrickFailed, FilesystemError, SetupError
from clusterfs.store.chunks import PAGE_CIDS, ChunkTable, cids_of_page
from clusterfs.store.damage import Damage
from clusterfs.store.disk import Disk
from clusterfs.store.location import UNIT_BYTES, segment_of
from clusterfs.store.log import Log
from clusterfs.store.objects import BLOCK_BYTES
from clusterfs.store.reading import Wanted, wrong_chunks
from clusterfs.store.segments import Segments
from clusterfs.store.table import Table

FACT = "scrub"
_BATCH_PAGES = 16
_LOOK_AHEAD_PAGES = 4096
_NOTE_BYTES = 256 << 20
_TOO_MANY = 1 << 16  # damaged chunks: the medium is dying, to go on helps nobody
_RETRY_S = 0.2


class Pass(msgspec.Struct):
    """One pass over the brick, as the fact keeps it."""

    running: bool = False
    rate_bytes: int = 0  # a second
    page: int = 0  # the next one
    checked_chunks: int = 0
    checked_bytes: int = 0
    damaged: int = 0
    passes: int = 0  # complete ones, ever


class Scrubber:
    """The store's scrub. `run` is a task of its own."""

    def __init__(  # noqa: PLR0913, PLR0917 - it brings the parts together
        self,
        disk: Disk,
        table: Table,
        chunks: ChunkTable,
        segments: Segments,
        log: Log,
        damage: Damage,
        stored: bytes,
        keep: Callable[[bytes], object],
    ) -> None:
        self._disk = disk
        self._table = table
        self._chunks = chunks
        self._segments = segments
        self._log = log
        self._damage = damage
        self._keep = keep
        self._pass = msgspec.msgpack.decode(stored, type=Pass) if stored else Pass()
        self._noted_bytes = self._pass.checked_bytes
        self._ahead: deque[int] = deque()  # pages that exist, from where it is on
        self._wake = trio.Event()
        self._stopped = False
        self._last_rate = 0.0

    def start(self, rate_bytes: int) -> None:
        """Start a pass, or let one that runs or was stopped go on, at so many bytes a second."""
        if not self._pass.page:
            self._ahead.clear()
            self._pass = Pass(passes=self._pass.passes)
            self._noted_bytes = 0
        self._pass.rate_bytes = rate_bytes
        self._pass.running = True
        self._note()
        self._wake.set()

    def stop(self) -> None:
        """Stop; the next start goes on from here."""
        self._pass.running = False
        self._note()

    def close(self) -> None:
        """End the task; a pass that runs goes on after the next start of the store."""
        self._stopped = True
        if self._pass.running:
            self._note()
        self._wake.set()

    def progress(self) -> dict[str, int | float | bool | None]:
        """Return where it is."""
        at, total_bytes = self._pass, self._chunks.live_total * UNIT_BYTES
        last = max(1, self._chunks.next_cid // PAGE_CIDS)
        part = min(1.0, at.page / last)
        left_bytes = total_bytes * (1 - part)
        rate = self._last_rate or at.rate_bytes
        return {
            "running": at.running,
            "rate_bytes": at.rate_bytes,
            "part": part,
            "checked_chunks": at.checked_chunks,
            "checked_bytes": at.checked_bytes,
            "total_bytes": total_bytes,
            "damaged": at.damaged,
            "eta_s": left_bytes / rate if at.running and rate else None,
            "passes": at.passes,
        }

    async def run(self) -> None:
        """Scrub whenever it is wanted, until `close`."""
        while not self._stopped:
            if not self._pass.running:
                self._wake = trio.Event()
                await self._wake.wait()
                continue
            begun = trio.current_time()
            try:
                done_bytes = await self._batch()
            except BrickFailed:  # the checkpoint rotted: the log tells everybody
                self._pass.running = False
                continue
            if done_bytes is None:
                await self._finish()
                continue
            self._pass.checked_bytes += done_bytes
            if self._pass.checked_bytes - self._noted_bytes >= _NOTE_BYTES:
                self._note()
            wait_s = done_bytes / max(1, self._pass.rate_bytes) - (trio.current_time() - begun)
            self._wake = trio.Event()
            with trio.move_on_after(max(0.0, wait_s)):
                await self._wake.wait()
            took_s = trio.current_time() - begun
            if done_bytes and took_s > 0:
                self._last_rate = done_bytes / took_s

    async def _batch(self) -> int | None:
        """Verify some pages; return how many bytes were read, None at the end."""
        numbers = self._next_pages()
        if not numbers:
            return None
        wanted: list[Wanted] = []
        for number in numbers:
            page = self._chunks.page(number)
            if page is None:
                continue  # all of it died since it was looked up
            for cid, _ in cids_of_page(number, page):
                location = page.locations[cid % PAGE_CIDS]
                if self._log.in_memory(location) is None:
                    wanted.append((cid, location, page.checksums[cid % PAGE_CIDS]))
        pinned = [segment_of(location) for _, location, _ in wanted]
        for segment in pinned:
            self._segments.pin(segment)
        try:
            wrong = await trio.to_thread.run_sync(wrong_chunks, self._disk.read_direct, wanted)
        finally:
            for segment in pinned:
                self._segments.unpin(segment)
        self._judge(wanted, set(wrong))
        self._pass.page = numbers[-1] + 1
        self._pass.checked_chunks += len(wanted)
        return len(wanted) * BLOCK_BYTES

    def _next_pages(self) -> list[int]:
        """Return the next pages.

        Which exist is looked up for many at once: that has to look at all that are changed in
        memory. No page comes into being between others: the numbers of new chunks only grow.
        """
        ahead, at = self._ahead, self._pass.page
        while ahead and ahead[0] < at:
            ahead.popleft()
        if not ahead:
            ahead.extend(self._chunks.numbers(at, _LOOK_AHEAD_PAGES))
        return [ahead.popleft() for _ in range(min(_BATCH_PAGES, len(ahead)))]

    def _judge(self, wanted: list[Wanted], wrong: set[int]) -> None:
        """Note those that are wrong and still where they were read."""
        where = {cid: location for cid, location, _ in wanted if cid in wrong}
        now = {cid: self._chunks.find(cid) for cid in where}
        damaged = [c for c, found in now.items() if found is not None and found[0] == where[c]]
        self._damage.note(damaged)
        self._pass.damaged += len(damaged)
        if len(self._damage) > _TOO_MANY:
            self.stop()

    async def _finish(self) -> None:
        try:
            damage = await trio.to_thread.run_sync(self._table.damage)
        except SetupError:
            damage = None  # it could not be looked at: the next pass tries again
        if damage and not self._stopped:
            text = f"the checkpoint cannot be trusted: {damage}; synchronise the brick anew"
            self._log.fail(OSError(errno.EIO, text))
        passes = self._pass.passes + 1
        self._pass = Pass(
            passes=passes,
            checked_chunks=self._pass.checked_chunks,
            checked_bytes=self._pass.checked_bytes,
            damaged=self._pass.damaged,
        )
        self._note()

    def _note(self) -> None:
        self._noted_bytes = self._pass.checked_bytes
        with suppress(FilesystemError):  # the log is full or failed: it starts a bit earlier then
            self._keep(msgspec.msgpack.encode(self._pass))
