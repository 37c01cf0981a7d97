"""Dropping every cached page of a mount whose daemon does not answer. Imports no trio, no pyfuse3.

An invalidation waits for pages that are locked by READs in flight, and it goes through the range in
order: the first locked page hides everything behind it. The pages in flight themselves are
harmless (they hold no data yet; who reads them waits for the daemon), so a call that hangs is left
hanging on its thread, and its range is cut into sixteen that are tried apart, down to one page.
What remains in the end are only threads that wait for pages in flight.

Invariants: no call on the caller's own thread can hang; a range is done when its call returned or
when all its pieces are done or are single pages in flight.
"""

import queue
import threading
from collections.abc import Callable, Iterable

from clusterfs.fuse import notify
from clusterfs.fuse.beat import boottime_ns

_PAGE = 4096
_END = 1 << 44  # beyond the largest file
_PIECES = 16
_HANGS_AFTER_S = 0.02
_STACK_BYTES = 64 << 10

Range = tuple[int, int, int]  # inode, first byte, end


class Dropping:
    """One emergency: every page of `inodes` is to go."""

    def __init__(self, fd: int, inodes: Iterable[int], *, most_threads: int = 4000) -> None:
        self._fd = fd
        self._most_threads = most_threads
        self._todo: queue.SimpleQueue[Range] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._under_way: dict[threading.Thread, tuple[Range, int]] = {}
        self._given_up: set[threading.Thread] = set()
        self._unfinished = 0
        self._idle = threading.Event()
        self._stop = False
        for inode in inodes:
            self._add((inode, notify.ATTRIBUTES_ONLY, 0))
            self._add((inode, 0, _END))

    def run(self, give_up: Callable[[], bool]) -> bool:
        """Work until all is dropped but pages in flight; False if `give_up()` said so first."""
        previous = threading.stack_size(_STACK_BYTES * 4)
        try:
            self._start_thread()
            while self._unfinished:
                self._idle.wait(_HANGS_AFTER_S)
                self._cut_what_hangs()
                if give_up() or len(self._given_up) > self._most_threads:
                    return False
            return True
        finally:
            self._stop = True
            self._todo.put((0, 0, 0))
            threading.stack_size(previous)

    @property
    def hanging(self) -> int:
        """How many threads still wait for pages in flight."""
        return len(self._given_up)

    def _add(self, range_: Range) -> None:
        with self._lock:
            self._unfinished += 1
        self._todo.put(range_)

    def _start_thread(self) -> None:
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        me = threading.current_thread()
        while True:
            range_ = self._todo.get()
            if self._stop:
                return
            with self._lock:
                self._under_way[me] = (range_, boottime_ns())
            self._invalidate(range_)
            with self._lock:
                if me in self._given_up:
                    self._given_up.discard(me)
                    return
                del self._under_way[me]
                self._finish_one()

    def _invalidate(self, range_: Range) -> None:
        inode, first, end = range_
        length = 0 if end == _END or first < 0 else end - first
        notify.invalidate_inode(self._fd, inode, first, length)

    def _finish_one(self) -> None:
        self._unfinished -= 1
        if not self._unfinished:
            self._idle.set()

    def _cut_what_hangs(self) -> None:
        """Leave each hanging thread alone, put the pieces of its range in, and replace it."""
        with self._lock:
            before_ns = boottime_ns() - int(_HANGS_AFTER_S * 1e9)
            hanging = [t for t, (_, since_ns) in self._under_way.items() if since_ns < before_ns]
            ranges = [self._under_way.pop(thread)[0] for thread in hanging]
            self._given_up.update(hanging)
        for range_ in ranges:
            for piece in pieces(range_):
                self._add(piece)
            self._start_thread()
            with self._lock:
                self._finish_one()


def pieces(range_: Range) -> list[Range]:
    """Return sixteenths of a range, aligned to pages; nothing for a single page."""
    inode, first, end = range_
    size = end - first
    if first < 0 or size <= _PAGE:
        return []
    step = max(_PAGE, size // _PIECES)
    return [(inode, start, min(start + step, end)) for start in range(first, end, step)]
