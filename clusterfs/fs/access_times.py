"""Access times: noted in memory by who reads, stored later, when it is cheap.

relatime, as Linux has it: a read counts if the access time is not later than the last change of
contents and attributes, or a day old. So of all the reads that follow a write the first one counts.

What counts goes into the cached record, and `Inode.accessed_ns` remembers it. This node's stat
shows it at once. It reaches the store, and the other nodes,
  * with whatever this node next commits of the inode, and with the value block of its lock;
  * else by a transaction of its own after `delay_s`: only if nobody else has the inode locked, so
    that no reader loses its caches; after FORCED times that, in any case.

Invariants:
  * it never makes an access time go back, and never takes the place of one that utimes has set: it
    is dropped if the inode changed after the read (utimes counts as a change);
  * it is not data: a loss of the node, an eviction or a full volume may lose it.
"""

from collections.abc import Callable
from functools import partial

import structlog
import trio

from clusterfs.errors import FilesystemError
from clusterfs.fs.attributes import Record
from clusterfs.fs.gate import Gate
from clusterfs.fs.inodes import Inode
from clusterfs.fs.lock_cache import LockCache
from clusterfs.fs.locks import PR
from clusterfs.fs.transactions import Edit, Transactions

log = structlog.get_logger()

DAY_NS = 86_400 * 10**9
FORCED = 4  # delays, after which others have to give the inode up
_MOST = 20_000  # inodes that wait; more are not sent by themselves
_PAUSE_S = 0.005  # between two of them: this is not urgent


class AccessTimes:
    """Notes reads, and stores what they made of access times."""

    def __init__(
        self,
        gate: Gate,
        locks: LockCache,
        transactions: Transactions,
        now_ns: Callable[[], int],
        delay_s: float | None,
    ) -> None:
        """Make one; `delay_s` None: reads change nothing (noatime)."""
        self._gate = gate
        self._locks = locks
        self._transactions = transactions
        self._now_ns = now_ns
        self._delay_s = delay_s
        self._waiting: dict[Inode, float] = {}  # since when, the longest first
        self._news = trio.Event()
        self.sent = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def note(self, inode: Inode) -> None:
        """Note a read of an inode whose lock is held and whose record is loaded."""
        record = inode.record
        if self._delay_s is None or record is None:
            return
        now_ns = self._now_ns()
        if not counts(record, now_ns):
            return
        record.atime_ns = inode.accessed_ns = now_ns
        if inode not in self._waiting and len(self._waiting) < _MOST:
            self._waiting[inode] = trio.current_time()
            self._news.set()

    async def run(self) -> None:
        """Send what waits, for ever."""
        if self._delay_s is None:
            return
        while True:
            await self._news.wait()
            await trio.sleep(self._delay_s)
            self._news = trio.Event()
            for inode, since_s in list(self._waiting.items()):
                late = trio.current_time() - since_s > FORCED * self._delay_s
                await self._try(inode, forced=late)
                await trio.sleep(_PAUSE_S)
            if self._waiting:
                self._news.set()

    async def send_all(self) -> None:
        """Send what may be sent at once: the mount ends."""
        for inode in list(self._waiting):
            await self._try(inode, forced=False)

    async def _try(self, inode: Inode, *, forced: bool) -> None:
        """Send one; it waits no more, unless others hold it."""
        done = True
        try:
            if wants_sending(inode):
                done = await self._gate.run(partial(self._send, inode, forced), internal=True)
        except FilesystemError as failure:  # it is gone, or there is no room: it was no data
            log.debug("access time not stored", inode=inode.number, reason=repr(failure))
        if done:
            self._waiting.pop(inode, None)

    async def _send(self, inode: Inode, forced: bool) -> bool:  # noqa: FBT001  through partial
        if forced:
            await inode.lock.wait_exclusive()
        elif not await self._locks.exclude_free(inode.lock):
            return False
        try:
            if wants_sending(inode):
                record = await self._transactions.load(inode)
                await self._transactions.commit(Edit(inode, record.changed()))
                self.sent += 1
        finally:
            inode.lock.release()
        return True


def counts(record: Record, now_ns: int) -> bool:
    """Tell whether a read now changes the access time (relatime)."""
    accessed_ns = record.atime_ns
    return (
        accessed_ns <= record.mtime_ns
        or accessed_ns <= record.ctime_ns
        or now_ns - accessed_ns >= DAY_NS
    )


def wants_sending(inode: Inode) -> bool:
    """Tell whether an inode has an access time that only its own transaction will store."""
    return (
        bool(inode.accessed_ns)
        and inode.record is not None
        and inode.lock.level >= PR
        and not inode.needs_flush
        and not inode.gone
    )
