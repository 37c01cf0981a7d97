"""The trio shell of the lock manager: awaitable locks over the pure core. Nothing is decided here.

Effects are carried out first in, first out, also when a BAST callback or `send` comes back in with
another call: the core has then finished its transition, and the outer call carries out the rest.

A waiter that is cancelled withdraws. If the grant was faster, a new lock is given back; a
conversion that was faster stays, see `Lockspace.convert`.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from itertools import chain, zip_longest
from math import inf

import trio

from dlm.core.dump import Pages, pages, summary
from dlm.core.lockspace import LockspaceCore
from dlm.effects import Answered, Complete, Effect, Heard, Notify, Send
from dlm.errors import WouldBlock
from dlm.events import (
    NONE,
    Acquire,
    Change,
    Enter,
    Event,
    Lock,
    Lose,
    Name,
    Nodes,
    Opened,
    Owner,
    Publish,
    Received,
    Release,
    Tick,
    Withdraw,
)
from dlm.messages import Message, Status, decode_all
from dlm.modes import Flags, Mode, is_down
from dlm.outbox import Outbox
from dlm.profiles import PROFILES
from dlm.ranges import Ranges
from dlm.trees import Trees
from dlm.uses import Blocking, Use

__all__ = ["Flags", "Lock", "Lockspace", "Mode", "Name", "Owner"]

NO_FLAGS = Flags(0)
_VALBLK = int(Flags.VALBLK)


class Lockspace:
    """One node's locks, for one incarnation of that node.

    Args:
        me: this node.
        incarnation: this start of it.
        send: passes an encoded message to a node; ordered, lossless while both are members.
        now: seconds, monotonic; for waiting times in dumps.
        lvb_bytes: the length of every value block; by default what the profile says.
        profile: by whose rules locks are granted: native (which are those of fs/dlm), fsdlm or
            o2dlm. `dlm.dialect` speaks their languages.

    `on_deadlock`, if set, is told the story of each deadlock that a lock of this node gives way in.
    """

    def __init__(
        self,
        me: int,
        incarnation: int,
        send: Callable[[int, bytes], None],
        now: Callable[[], float],
        *,
        lvb_bytes: int | None = None,
        profile: str = "native",
    ) -> None:
        self.profile = PROFILES[profile]
        self.value_bytes = lvb_bytes or self.profile.value_bytes
        self.profile.check_value_bytes(self.value_bytes)
        self._core = LockspaceCore(me, incarnation)
        self._core.here.rules = self.profile.rules
        self.outbox = Outbox(send, now)
        self._now = now
        self.on_deadlock: Callable[[str], None] | None = None
        self.ranges = Ranges(self._core.ranges, self._handle)
        self._effects: deque[Effect] = deque()
        self._carrying_out = False
        self._claimed: trio.Event | None = None  # somebody waits for names to be known
        self._armed_s = inf  # when `run` wakes up by itself
        self._alarm = trio.Event()
        self._received: Counter[type[Message]] = Counter()
        self._asked = self._converted = self._demoted = self._unlocked = self.batches_received = 0
        self.trees = Trees(self._core, self._handle)

    # -- told by the membership and by the mesh --------------------------------------------------

    def enter(self, epoch: int, members: Nodes, leaving: Nodes = NONE, before: int = -1) -> None:
        """Begin a lock epoch; see dlm.events.Enter."""
        self._handle(Enter(epoch, dict(members), dict(leaving), before))

    def deliver(self, sender: int, message: bytes) -> None:
        """Take a peer's message; raises BadMessage if it is none."""
        messages = decode_all(message)
        self.batches_received += 1
        with self.outbox:
            for decoded in messages:
                self._received[type(decoded)] += 1
                self._handle(Received(sender, decoded))

    async def run(self) -> None:
        """Let time pass until this node is removed.

        Without it no deadlock is found that is not found at once, and names made here are told to
        the directory only when somebody waits for that.
        """
        core = self._core
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.outbox.run)
            while not core.lost:
                self._armed_s, self._alarm = core.deadline_s, trio.Event()
                with trio.move_on_after(max(0.0, self._armed_s - self._now())):
                    await self._alarm.wait()
                if self._now() >= core.deadline_s:
                    self._handle(Tick())
            nursery.cancel_scope.cancel()

    def lose(self) -> None:
        """This incarnation was removed: every wait raises LockLost, every lock is void."""
        if not self._core.lost:
            self._handle(Lose())
            self._alarm.set()

    # -- used by whoever needs locks -------------------------------------------------------------

    async def lock(
        self,
        name: Name,
        mode: Mode,
        *,
        flags: Flags = NO_FLAGS,
        lvb: bytes | None = None,
        owner: Owner | str = "",
        blocking: Blocking | None = None,
    ) -> Lock:
        """Wait until this node holds a new lock on `name` in `mode`, and return it.

        Does not yield if it is granted at once (we master the root and nothing is in the way).

        Args:
            name: root and leaf, at most 256 bytes each.
            mode: what to allow others meanwhile.
            flags: VALBLK to receive the value block in `Lock.lvb`.
            lvb: what `Lock.lvb` is until a value block is received; none of a new lock is written.
            owner: who wants it. An Owner takes part in the search for deadlocks: the same one for
                all locks that one transaction holds and awaits. A text is for dumps only.
            blocking: called, on this thread, when the lock keeps somebody from a mode. That may
                happen before `lock` returns; `Lock.blocked_for` then remembers it, too.

        Raises:
            WouldBlock: NOQUEUE, and it is not free.
            DeadlockVictim: its owner waits for itself in a circle, and is to give way.
            LockCancelled: `cancel` was called.
            LockLost: this node was removed.
        """
        lock = self.prepare(name, owner, blocking)
        lock.lvb = lvb
        return await self.acquire(lock, mode, flags=flags)

    def prepare(
        self, name: Name, owner: Owner | str = "", blocking: Blocking | None = None
    ) -> Lock:
        """Return a lock for `acquire`, which others can then cancel while it waits."""
        return Lock(name, owner, Use(blocking))

    async def acquire(
        self, lock: Lock, mode: Mode, *, flags: Flags = NO_FLAGS, new: bool = False
    ) -> Lock:
        """Wait until a lock that was prepared is held; see `lock`, and with `new`, `lock_new`."""
        use = lock.context
        assert isinstance(use, Use)
        self._asked += 1
        self._handle(Acquire(lock, mode, int(flags), new=new))
        try:
            await use.finish(lock)
        except trio.Cancelled:
            self._abandon(lock, use)
            raise
        return lock

    async def lock_new(
        self,
        name: Name,
        mode: Mode,
        *,
        flags: Flags = NO_FLAGS,
        owner: Owner | str = "",
        blocking: Blocking | None = None,
    ) -> Lock:
        """Hold a new lock on a name whose root was made up here just now; see `lock`.

        No other node has heard of the root, so it is mastered here at once, without a message. The
        caller writes the name only where others need a lock to read it that we hold in CW, PW, EX.
        """
        return await self.acquire(self.prepare(name, owner, blocking), mode, flags=flags, new=True)

    async def lock_many(
        self,
        names: Sequence[Name],
        mode: Mode,
        *,
        flags: Flags = NO_FLAGS,
        owner: Owner | str = "",
        blocking: Sequence[Blocking] = (),
    ) -> list[Lock | None]:
        """Ask for new locks on all the names at once; return them in order, when all are decided.

        All that goes to one node goes in one message, and so do its answers. With NOQUEUE, None
        stands for a lock that is not free. Without it each is waited for while the others are held:
        mind the order in which others take them. Arguments as for `lock`, but `blocking` has one
        callback for each name, or none at all.

        Raises:
            LockCancelled: `cancel` was called; none is held.
            LockLost: this node was removed.
        """
        asked: list[tuple[Lock, Use]] = []
        with self.outbox:
            for name, callback in zip_longest(names, blocking):
                use = Use(callback)
                asked.append((Lock(name, owner, use), use))
                self._asked += 1
                self._handle(Acquire(asked[-1][0], mode, int(flags)))
        try:
            return [await self._granted(lock, use) for lock, use in asked]
        except BaseException:
            with self.outbox:
                for lock, use in asked:
                    self._abandon(lock, use)
            raise

    async def known(self, root: bytes) -> None:
        """Wait until the directory knows a root made here: before it is public without a lock."""
        claims = self._core.mastery.claims
        while claims.awaits(root) and not self._core.lost:
            self._handle(Publish())
            self._claimed = self._claimed or trio.Event()
            await self._claimed.wait()

    async def convert(
        self,
        lock: Lock,
        mode: Mode,
        *,
        flags: Flags = NO_FLAGS,
        lvb: bytes | None = None,
        shield: bool = False,
    ) -> None:
        """Change the mode of a held lock; weakening it does not wait, yield or fail.

        While a conversion waits, the lock is held in the old mode; but in CR when it goes between
        PR and CW, and in NL with CONVDEADLK. A cancelled wait leaves the conversion withdrawn, or
        done if the grant was faster: look at `lock.mode`; until that is settled, LockBusy is raised
        for other operations. (First it waits until a weakening that was put off is done.)

        Args:
            lock: held, with no operation under way.
            mode: the new mode.
            flags: VALBLK to move the value block, implied by `lvb`.
            lvb: the value block to write, where fs/dlm's table says that this conversion writes.
            shield: the wait for the grant cannot be cancelled, at less cost than a scope's; before
                anything is asked it can.

        Raises:
            WouldBlock: NOQUEUE, and it is not free.
            DeadlockVictim: another conversion waits for what we hold, and neither CONVDEADLK nor
                NODLCKWT was given; or as with `lock`. The lock is held as before.
            LockBusy: a conversion is under way.
            LockCancelled: `cancel` was called.
            LockLost: this node was removed.
        """
        while lock.granted is not None and self._core.ownership.must_wait(lock, mode, int(flags)):
            self._claimed = self._claimed or trio.Event()
            await self._claimed.wait()
        use = self._change(lock, mode, flags, lvb)
        self._converted += 1
        try:
            await use.finish(lock, shield=shield)
        except trio.Cancelled:
            self._handle(Withdraw(lock))
            raise

    def convert_down_nowait(
        self, lock: Lock, mode: Mode, lvb: bytes | None = None, *, flags: Flags = NO_FLAGS
    ) -> None:
        """Weaken a held lock (or leave its mode), at once and for certain; PW, EX write `lvb`.

        Raises:
            LockBusy: a conversion is under way.
            LockLost: this node was removed.
        """
        if lock.mode is mode and lvb is None and not flags and lock.requested is None:
            return
        assert lock.mode is None or lock.requested or is_down(lock.mode, mode), (lock, mode)
        self._change(lock, mode, flags, lvb, soon=lock.blocked_for is None)
        self._demoted += 1

    def unlock_nowait(
        self, lock: Lock, lvb: bytes | None = None, *, flags: Flags = NO_FLAGS
    ) -> None:
        """Drop a held lock, at once and for certain; PW and EX write `lvb`, if given.

        Raises:
            LockBusy: a conversion is under way.
            LockLost: this node was removed.
        """
        soon = lock.blocked_for is None
        self._handle(Release(lock, self._checked(flags, lvb), lvb), soon=soon)
        self._unlocked += 1

    def cancel(self, lock: Lock) -> None:
        """Let what `lock` waits for fail with LockCancelled, if it still waits."""
        self._handle(Withdraw(lock))

    def use(self, lock: Lock, owner: Owner) -> None:
        """Let `owner` count as a holder of a lock that is kept for whoever needs it here.

        A lock that was taken without an owner and that nobody uses is in nobody's way for good.
        """
        if lock.users is None:
            lock.users = {}
        assert owner not in lock.users, "used twice"
        lock.users[owner] = self._core.here.waits.next_stamp()

    def end_use(self, lock: Lock, owner: Owner) -> None:
        """End what `use` began."""
        assert lock.users is not None
        del lock.users[owner]

    def set_gate(self, gate: Callable[[bytes, int], bool]) -> None:
        """Let what a lost node may have held wait until what the locks protect has been mended.

        `gate(root, epoch)` tells whether whatever nodes that were lost up to that lock epoch did
        under the root is known to all who serve it. While it says no, a lock that such a node held
        in CW, PW or EX stays in others' way, and names that it may have mastered get no new master.
        Call `gate_opened` when an answer may have changed from no to yes.
        """
        self._core.here.gate = gate

    def gate_opened(self) -> None:
        """Let go on what waited for a gate."""
        self._handle(Opened())

    def set_maker_of(self, maker_of: Callable[[bytes], int | None]) -> None:
        """Let roots tell the incarnation that made them up (None: unknown): it is asked first."""
        self._core.here.maker_of = maker_of

    @property
    def settled(self) -> bool:
        """This node is a member, and nothing of the last change of members is still to be done."""
        return not self._core.here.frozen and not self._core.recovery.busy

    @property
    def epoch(self) -> int:
        """The lock epoch last entered."""
        return self._core.here.epoch

    def dump(self, *, only_busy: bool = False) -> dict[str, object]:
        """Return everything there is to know about this node's locks, msgpack-able.

        With `only_busy`, only what somebody waits for: quick, however many locks there are.
        """
        short, long = self.dump_in_pages(only_busy=only_busy)
        return short | {key: [*chain.from_iterable(found)] for key, found in long.items()}

    def dump_in_pages(
        self, *, only_busy: bool = False
    ) -> tuple[dict[str, object], dict[str, Pages]]:
        """Return the same in two parts: what is short, and the long lists in pages.

        A page is described when it is taken, so it may be taken at leisure, between other work:
        what has changed meanwhile is as it is then.
        """
        core = self._core
        operations = {"lock": self._asked, "convert": self._converted}
        operations |= {"demote": self._demoted, "unlock": self._unlocked}
        counters: dict[str, object] = {
            "sent": {kind.__name__: count for kind, count in self.outbox.said.items()},
            "received": {kind.__name__: count for kind, count in self._received.items()},
            "batches": {"sent": self.outbox.batches, "received": self.batches_received},
            "operations": operations,
        }
        return summary(core) | counters, pages(core, self._now(), only_busy=only_busy)

    def validate(self) -> None:
        """Assert the core's invariants; for tests."""
        self._core.validate()

    # -- below -----------------------------------------------------------------------------------

    def _change(
        self, lock: Lock, mode: Mode, flags: Flags, lvb: bytes | None, *, soon: bool = False
    ) -> Use:
        use = lock.context
        assert isinstance(use, Use)
        bits = self._checked(flags, lvb)
        self._handle(Change(lock, mode, bits, lvb), use, soon=soon)
        return use

    def _checked(self, flags: Flags, lvb: bytes | None) -> int:
        if lvb is None:
            return int(flags)
        assert len(lvb) == self.value_bytes, len(lvb)
        return int(flags) | _VALBLK

    async def _granted(self, lock: Lock, use: Use) -> Lock | None:
        try:
            await use.finish(lock)
        except WouldBlock:
            return None
        return lock

    def _abandon(self, lock: Lock, use: Use) -> None:
        """Nobody waits for this new lock any more; if it is granted all the same, give it back."""
        use.abandoned = True
        if use.status is None:
            self._handle(Withdraw(lock))
        elif lock.granted is not None:  # it came after the cancellation, before we ran
            self._handle(Release(lock))

    def _handle(self, event: Event, use: Use | None = None, *, soon: bool = False) -> None:
        """Let the core decide, then do what it asks for; `soon`: nobody waits for what it says."""
        core, waiting = self._core, self._effects
        effects = core.handle(event, self._now())
        if use is not None:
            use.status = None
        waiting += effects
        if core.deadline_s < self._armed_s:
            self._alarm.set()
        if self._claimed is not None:
            self._claimed.set()
            self._claimed = None
        if self.ranges.awaited is not None:
            self.ranges.acknowledged()
        if self._carrying_out:
            return
        self._carrying_out = True
        try:
            while waiting:
                effect = waiting.popleft()
                if type(effect) is Send:
                    self.outbox.put(effect.node, effect.message)
                elif type(effect) is Complete:
                    self._complete(effect)
                else:
                    self._carry_out(effect)
        finally:
            self._carrying_out = False
        self.outbox.close(soon=soon)

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, Answered):
            self.ranges.answered(effect.request)
        elif isinstance(effect, Heard):
            self.ranges.heard(effect.hearing)
        else:
            assert isinstance(effect, Notify)
            use = effect.lock.context
            assert isinstance(use, Use)
            use.notify(effect.lock, effect.mode)

    def _complete(self, effect: Complete) -> None:
        use = effect.lock.context
        assert isinstance(use, Use)
        if effect.status is Status.DEADLOCK and self.on_deadlock is not None:
            self.on_deadlock(effect.lock.deadlock)
        use.ended(effect.status)
        if use.abandoned and effect.status is Status.GRANTED and effect.lock.granted is not None:
            self._handle(Release(effect.lock))
