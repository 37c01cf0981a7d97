"""A cached lock: a cluster lock that stays here until another node wants it, with local users.

A CachedLock is one cluster lock (NL, PR or EX held here) and a local read-write lock in one:
shared users run together, an exclusive one alone, so an operation that awaits inside still has a
consistent inode. Pins are writeback: they run beside users, but the lock stays. As long as the
held level suffices a use costs two comparisons and no await.

When another node wants the lock (a BAST), new users wait, running ones finish, `give_up` drops what
the lock allowed to cache and writes back, then the lock is converted down or released. Those who
waited when it was granted get a turn before that, else two busy nodes would only pass it on.

Invariants (`validate`):
  * users > 0 need level >= PR, users == -1 and pins need EX, unless the node was lost meanwhile;
  * `_ready` > NL only while nobody is queued, nobody asked for the lock, and it is not given up;
  * one task at most works on a lock (acquires or gives up).
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Final

import trio

from clusterfs.errors import Interrupted
from clusterfs.fs import asking
from clusterfs.fs.lock_users import Contents, GiveUp, Use, Waiter, leave
from clusterfs.fs.ports import NO_FLAGS, Flags, Lock, Lockspace, Name
from dlm.errors import DeadlockVictim, LockLost
from dlm.modes import Mode

if TYPE_CHECKING:
    from clusterfs.fs.lock_cache import LockCache

NL: Final = Mode.NL
PR: Final = Mode.PR
EX: Final = Mode.EX

_TURN = 16  # waiters served after a grant although another node asks already


class CachedLock:
    """One cluster lock as this node keeps it."""

    __slots__ = (
        "__weakref__",
        "_acquiring",
        "_attention",
        "_blocking",
        "_cache",
        "_contents",
        "_flags",
        "_give_up",
        "_lock",
        "_ready",
        "_settled",
        "_turn",
        "_urgent",
        "_users",
        "_waiters",
        "_working",
        "level",
        "name",
        "pins",
        "revoked_at_s",
        "revoking",
        "stamp",
        "using",
    )

    def __init__(
        self,
        cache: "LockCache",
        name: Name,
        give_up: GiveUp | None = None,
        contents: Contents | None = None,
    ) -> None:
        self.name = name
        self.level = NL
        self.stamp = 0  # counts what was given up: equal stamps, nothing was missed
        self.pins = 0
        self.revoking = False
        self.revoked_at_s = float("-inf")
        self.using: dict[asking.Asker, int] = {}  # who is known to use it, and how often, for dumps
        self._cache = cache
        self._give_up = give_up
        self._contents = contents
        self._flags = Flags.VALBLK if contents is not None else NO_FLAGS
        self._lock: Lock | None = None
        self._users = 0
        self._waiters: deque[Waiter] = deque()
        self._urgent: deque[Waiter] = deque()  # page writeback: served before all others
        self._blocking = NL  # what other nodes want
        self._turn = 0
        self._ready = NL
        self._attention = False
        self._acquiring = False
        self._working = False
        self._settled: trio.Event | None = None

    # -- users

    def shared_nowait(self, level: Mode = PR) -> bool:
        """Become a shared user if that needs no waiting."""
        if self._ready >= level and self._users >= 0:
            self._users += 1
            return True
        return False

    def exclusive_nowait(self) -> bool:
        """Become the exclusive user if that needs no waiting."""
        if self._ready == EX and self._users == 0:
            self._users = -1
            return True
        return False

    def join_nowait(self) -> bool:
        """Become a shared user beside others although somebody waits for their end."""
        if self.level >= PR and self._users > 0:
            self._users += 1
            return True
        return False

    async def wait_shared(self, level: Mode = PR) -> None:
        """Become a shared user; `level` EX: others may not even read. Raises LockLost."""
        if not self.shared_nowait(level):
            await self._wait(Waiter(level, exclusive=False))

    async def wait_exclusive(self) -> None:
        """Become the exclusive user. Raises LockLost."""
        if not self.exclusive_nowait():
            await self._wait(Waiter(EX, exclusive=True))

    def release(self, *, share_on: bool = False, weaken: bool = False) -> None:
        """End one use; `share_on`: go on as a shared user of what was used exclusively.

        weaken: keep PR only, for who shares it from now on may do so for long.
        """
        assert self._users, "released more often than taken"
        if weaken and self.level == EX:
            with suppress(LockLost):
                self._lower(PR)
            self._attention = True  # look anew what may be used
        self._users = self._users - 1 if self._users > 0 else int(share_on)
        if self._attention:
            self._advance()

    def sharing(self) -> Use:
        """Return a context in which this is shared."""
        return Use(self, self.wait_shared)

    def excluding(self) -> Use:
        """Return a context in which this is exclusive."""
        return Use(self, self.wait_exclusive)

    def enter_use(self) -> asking.Asker | None:
        """Note who uses the lock from now on, until `leave_use`."""
        asker = asking.current()
        if asker is not None:
            self.using[asker] = self.using.get(asker, 0) + 1
        return asker

    def leave_use(self, asker: asking.Asker | None) -> None:
        """End what `enter_use` began."""
        if asker is not None:
            left = self.using[asker] - 1
            if left:
                self.using[asker] = left
            else:
                del self.using[asker]

    def require(self, level: Mode) -> None:
        """Raise LockLost if the lock was lost while its user awaited something."""
        if self.level < level:
            raise LockLost

    # -- locks that are not asked for one by one

    async def make(self, level: Mode = EX) -> None:
        """Hold a lock on a name that was made up here just now. Raises LockLost."""
        assert self.level == NL
        lockspace = self._cache.lockspace
        self.begin_work()
        lock = None
        try:
            lock = await lockspace.lock_new(
                self.name,
                level,
                flags=self._flags,
                owner=asking.label(asking.current()),
                blocking=self.blocked,
            )
        finally:
            self.end_work(lockspace, lock, level)
        self.require(level)

    def begin_work(self, *, exclusive: bool = False) -> Lock | None:
        """Let nobody else work on the lock, or use it, while it is asked for; returns it."""
        assert not self._working
        self._working = self._acquiring = True
        self._users = -1 if exclusive else self._users
        return self._lock

    def end_work(self, lockspace: Lockspace, lock: Lock | None, level: Mode) -> None:
        """Take what was granted at `level` in that lockspace, if anything, and go on."""
        self._working = self._acquiring = False
        if self._cache.lost:
            self.lose()
            return
        if lock is not None and lockspace is self._cache.lockspace:
            self._hold(lock, level)
        self._advance()

    # -- writeback beside users, even while the lock is being given up

    def pin_nowait(self) -> bool:
        """Keep EX here until `unpin`; False if it is not held or is on its way out."""
        if self.level < EX or (self._blocking and self._users == 0):
            return False
        self.pins += 1
        return True

    async def wait_writeback(self) -> None:
        """Become the exclusive user for page writeback, ahead of all others.

        It is served even while the lock is being given up, for that waits for it.
        """
        if self.level == EX and self._users == 0:
            self._users = -1
        else:
            await self._wait(Waiter(EX, exclusive=True), self._urgent)

    def unpin(self) -> None:
        """End one pin."""
        assert self.pins
        self.pins -= 1
        if not self.pins:
            self._settle()
        if self._attention:
            self._advance()

    async def wait_settled(self) -> None:
        """Wait until a running `give_up`, or all pins, have ended."""
        if self.revoking or self.pins:
            if self._settled is None:
                self._settled = trio.Event()
            await self._settled.wait()
        else:
            await trio.lowlevel.checkpoint()

    # -- state

    @property
    def contended(self) -> bool:
        """Whether another node asks for the lock right now."""
        return self._blocking > NL

    @property
    def idle(self) -> bool:
        """Whether nobody uses, waits for or works on the lock."""
        return not (self._users or self.pins or self._waiters or self._urgent or self._working)

    @property
    def users(self) -> int:
        """How many shared users there are; -1: one exclusive user."""
        return self._users

    def waiters(self) -> Iterator[Waiter]:
        """Return who waits, those to be served first at first."""
        yield from self._urgent
        yield from self._waiters

    def drop_idle(self) -> None:
        """Release an unused lock whose caches are gone."""
        assert self.idle
        if self._lock is not None:
            flags = Flags.IVVALBLK if self.level == EX and self._contents else NO_FLAGS
            with suppress(LockLost):  # as good as released
                self._cache.lockspace.unlock_nowait(self._lock, flags=flags)
        self._void()

    def lose(self) -> None:
        """Forget a lock that this node has no more."""
        self._void()
        for waiter in self.waiters():
            waiter.lost = True
            waiter.event.set()
        self._urgent.clear()
        self._waiters.clear()
        self._settle()

    def validate(self) -> None:
        """Check the invariants."""
        assert self._ready in (NL, self.level)
        assert not self._ready or not (self._attention or self.revoking)
        assert self._users >= -1
        assert self.pins >= 0
        assert (self._lock is None) == (self.level == NL) or self._acquiring
        assert self._attention or not (self._waiters or self._urgent or self._blocking)

    # -- work

    async def _wait(self, waiter: Waiter, queue: deque[Waiter] | None = None) -> None:
        if self._cache.lost:
            raise LockLost
        writeback = queue is not None
        queue = self._waiters if queue is None else queue
        queue.append(waiter)
        self._advance()
        if waiter.served:
            return
        try:
            with nullcontext() if writeback else asking.interruptibly():
                await waiter.event.wait()
        except (trio.Cancelled, Interrupted):
            self._withdraw(waiter, queue)
            raise
        if waiter.lost:
            raise LockLost

    def _withdraw(self, waiter: Waiter, queue: deque[Waiter]) -> None:
        if waiter in queue:
            queue.remove(waiter)
        elif waiter.served:
            self.release()
        self._advance()

    def _advance(self) -> None:
        """Serve whom the held level allows; start the work that the others need."""
        while self._urgent and self.level == EX and self._users == 0:
            self._users = self._urgent.popleft().serve(self._users)
        while self._waiters and self._may_serve(self._waiters[0]):
            self._turn = max(0, self._turn - 1)
            self._users = self._waiters.popleft().serve(self._users)
        self._attention = bool(self._waiters or self._urgent or self._blocking)
        self._ready = NL if self._attention or self.revoking else self.level
        if self.revoking and not self._used():
            self._settle()
        if not self._working and self._next_work():
            self._working = True
            self._cache.start(self._work)

    def _used(self) -> bool:
        """Tell whether the lock cannot go now; writeback that has to ask for more is no use."""
        return bool(self._users or self.pins or (self._urgent and self.level == EX))

    def _may_serve(self, waiter: Waiter) -> bool:
        if self.level < waiter.level or self.revoking:
            return False
        if self._blocking and not self._turn:
            return False
        return self._users == 0 if waiter.exclusive else self._users >= 0

    def _next_work(self) -> Callable[[], Awaitable[None]] | None:
        queue = self._urgent or self._waiters
        head = queue[0] if queue else None
        if self._blocking:
            served_first = self._turn and head is not None and head.level <= self.level
            return None if self._used() or served_first else self._release
        return self._acquire if head is not None and head.level > self.level else None

    async def _work(self) -> None:
        """Do what there is to do. If that is cancelled, the filesystem ends: nobody begins anew."""
        lockspace = self._cache.lockspace
        try:
            while (work := self._next_work()) and not self._cache.lost:
                await work()
                self._advance()
        except LockLost:
            if lockspace is self._cache.lockspace:
                self.lose()
        self._working = False
        if self._cache.lost:
            self.lose()
        else:
            self._advance()

    async def _acquire(self) -> None:
        lockspace, head = self._cache.lockspace, (self._urgent or self._waiters)[0]
        wanted = head.level
        self._acquiring = True
        try:
            if self._lock is None:
                lock = await lockspace.lock(
                    self.name,
                    wanted,
                    flags=self._flags,
                    owner=asking.label(head.asker),
                    blocking=self.blocked,
                )
            else:
                lock = self._lock
                await lockspace.convert(lock, wanted, flags=self._flags)
        except DeadlockVictim:
            self._blocking = EX  # both of us hold PR and want EX: give way, then queue anew
            return
        finally:
            self._acquiring = False
        if lockspace is not self._cache.lockspace:
            raise LockLost
        self._hold(lock, wanted)

    def _hold(self, lock: Lock, wanted: Mode) -> None:
        self._cache.held += self.level == NL
        self._lock = lock
        self.level = wanted
        if self._contents is not None and lock.lvb_sequence and lock.lvb_valid:
            assert lock.lvb is not None
            self._cache.values += 1
            self._contents.take_over(lock.lvb)
        self._turn = min(max(1, len(self._waiters)), _TURN)
        self._cache.grants += 1
        if self._blocking.compatible(wanted):
            self._blocking = NL

    def blocked(self, lock: Lock, mode: Mode) -> None:
        """Hear that another node wants `mode`."""
        if (lock is not self._lock and not self._acquiring) or self._cache.lost:
            return
        if self._acquiring or not mode.compatible(self.level):
            self._blocking = max(self._blocking, mode)
            self._advance()

    async def _release(self) -> None:
        """Give up as much as the other nodes ask for."""
        lockspace = self._cache.lockspace
        self.revoking = True
        try:
            while self.level > NL:
                blocking = self._blocking
                target = PR if self.level == EX and blocking.compatible(PR) else NL
                if self._give_up is not None:
                    await self._give_up(target)
                if lockspace is not self._cache.lockspace or self._cache.lost:
                    raise LockLost
                if self._used():
                    self._settled = self._settled or trio.Event()
                    await self._settled.wait()
                elif self._blocking == blocking:
                    self._lower(target)
                    break
        finally:
            self.revoking = False
            self._settle()
        self._blocking = NL

    def _lower(self, target: Mode) -> None:
        assert self._lock is not None
        lock = self._lock
        block, flags = leave(self._contents, self.level, target)
        self.stamp += 1
        self.level = target
        self.revoked_at_s = trio.current_time()
        self._cache.revokes += 1
        if target == NL:
            self._cache.held -= 1
            self._lock = None
            self._cache.lockspace.unlock_nowait(lock, block, flags=flags)
        else:
            self._cache.lockspace.convert_down_nowait(lock, target, block, flags=flags)

    def _void(self) -> None:
        self.stamp += 1
        self._cache.held -= self.level > NL
        self.level = self._ready = self._blocking = NL
        self._lock = None
        self._turn = 0
        self._attention = bool(self._waiters or self._urgent)

    def _settle(self) -> None:
        if self._settled is not None:
            self._settled.set()
            self._settled = None
