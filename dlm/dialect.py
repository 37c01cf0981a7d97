"""A lockspace in the words of fs/dlm or o2dlm: their calls, numbers and status blocks.

It does for programs written for one of the two what the stack glue of OCFS2 does in the kernel: one
set of calls over one lock manager. `Profile` has the words; this carries out what they say. Every
call ends with a status as the dialect numbers it, in the status block; none raises a LockError.

A lock belongs to a process, and ends with it: a dead process's value block is not to be trusted.
With PERSISTENT it stays as an orphan, and whoever asks for it with ORPHAN on this node has it.
"""

from collections.abc import Callable

import trio

from dlm.errors import LockBusy, LockError, NotOffered, WouldBlock
from dlm.events import Lock, Name, Owner
from dlm.modes import Flags, Mode
from dlm.node import Lockspace
from dlm.profiles import FSDLM, O2DLM, Profile

_VALUE = Flags.VALBLK | Flags.IVVALBLK
_HERE = Flags.CONVERT | Flags.CANCEL | Flags.PERSISTENT | Flags.ORPHAN  # not for the core

Blocking = Callable[[Mode], None]


class StatusBlock:
    """One lock as its user sees it (dlm_lksb, dlm_lockstatus)."""

    def __init__(self, value: bytes = b"", process: Owner | None = None) -> None:
        self.status = 0
        self.flags = 0
        self.value = value  # what is written, and what was read
        self.process = process
        self.lock: Lock | None = None
        self.persistent = False
        self.blocking: Blocking | None = None
        self.done: trio.Event | None = None  # an operation is under way

    @property
    def mode(self) -> Mode | None:
        """What is held."""
        return None if self.lock is None else self.lock.mode


class Dialect:
    """The two calls of a DLM.

    Args:
        space: whose profile says which dialect it is.
    """

    def __init__(self, space: Lockspace) -> None:
        assert space.profile in (FSDLM, O2DLM), "this profile has no words of its own"
        self._space = space
        self._profile: Profile = space.profile
        self._blocks: set[StatusBlock] = set()  # those of locks that are held or asked for
        self._orphans: list[StatusBlock] = []

    async def lock(self, block: StatusBlock, mode: int, flags: int, name: bytes = b"") -> int:
        """Take a new lock, or convert the block's with the flag CONVERT; return the status."""
        if block.done is not None:
            return self._profile.outcome(LockBusy("an operation is under way"))
        block.done = trio.Event()
        try:
            await self._lock(block, mode, flags, name)
            block.status = self._profile.success
        except LockError as error:
            block.status = self._profile.outcome(error)
        finally:
            if block.lock is not None and block.lock.granted is None:
                self._forget(block)
            block.done.set()
            block.done = None
        return block.status

    async def unlock(self, block: StatusBlock, flags: int = 0) -> int:
        """Drop the block's lock, or take back what it waits for with CANCEL; return the status."""
        profile = self._profile
        try:
            known = profile.to_flags(flags)
            if known & Flags.CANCEL:
                return await self._cancel(block)
            await trio.lowlevel.checkpoint()
            if block.lock is None or block.done is not None:
                raise LockBusy("not held")
            profile.check_release(known)
            self._space.unlock_nowait(
                block.lock,
                block.value if known & Flags.VALBLK else None,
                flags=known & Flags.IVVALBLK,
            )
        except LockError as error:
            return profile.outcome(error)
        self._forget(block)
        return profile.unlocked

    async def exited(self, process: Owner) -> None:
        """A process is gone: drop its locks, doubt what it may have written, keep PERSISTENT."""
        blocks = [block for block in self._blocks if block.process is process]
        for block in blocks:
            if block.done is not None and block.lock is not None:
                self._space.cancel(block.lock)
        for block in blocks:
            if block.done is not None:
                await block.done.wait()
        for block in blocks:
            if block.lock is None:
                continue
            if block.persistent:
                self._orphans.append(block)
            else:
                self._space.unlock_nowait(block.lock, flags=Flags.IVVALBLK)
                self._forget(block)

    def purge(self) -> None:
        """Drop all orphans."""
        for block in self._orphans:
            assert block.lock is not None
            self._space.unlock_nowait(block.lock)
            self._forget(block)
        self._orphans.clear()

    # -- below -----------------------------------------------------------------------------------

    async def _lock(self, block: StatusBlock, mode: int, flags: int, name: bytes) -> None:
        profile = self._profile
        try:
            wanted = Mode(mode)
        except ValueError:
            raise NotOffered(f"mode {mode}") from None
        local = flags & profile.local
        known = profile.to_flags(flags & ~local)
        if known & Flags.CONVERT:
            await self._convert(block, wanted, known)
        elif known & Flags.ORPHAN:
            self._adopt(block, wanted, name)
        else:
            profile.check_request(Name(name), wanted, known)
            block.persistent = bool(known & Flags.PERSISTENT)
            await self._request(block, Name(name), wanted, known, local=bool(local))
        assert block.lock is not None
        block.flags = profile.result_flags(block.lock, wanted)
        if known & Flags.VALBLK:
            value = profile.value(block.lock, self._space.value_bytes)
            block.value = block.value if value is None else value

    async def _request(
        self, block: StatusBlock, name: Name, mode: Mode, flags: Flags, *, local: bool
    ) -> None:
        if block.lock is not None:
            raise NotOffered("the block has a lock")
        self._blocks.add(block)

        def blocking(_lock: Lock, wanted: Mode) -> None:
            if block.blocking is not None:
                block.blocking(wanted)

        block.lock = self._space.prepare(name, block.process or "", blocking)
        await self._space.acquire(block.lock, mode, flags=flags & ~_HERE, new=local)

    async def _convert(self, block: StatusBlock, mode: Mode, flags: Flags) -> None:
        lock = block.lock
        if lock is None or lock.granted is None:
            raise NotOffered("nothing to convert")
        counting = self._profile.check_conversion(lock.granted, mode, flags)
        value = block.value if counting & _VALUE == Flags.VALBLK else None
        await self._space.convert(lock, mode, flags=counting & ~_HERE, lvb=value)

    def _adopt(self, block: StatusBlock, mode: Mode, name: bytes) -> None:
        named = [o for o in self._orphans if o.lock is not None and o.lock.name.root == name]
        for orphan in named:
            if orphan.mode is mode:
                self._orphans.remove(orphan)
                block.lock, orphan.lock = orphan.lock, None
                self._blocks.discard(orphan)
                self._blocks.add(block)
                return
        raise WouldBlock("its mode is another") if named else NotOffered("no such orphan")

    async def _cancel(self, block: StatusBlock) -> int:
        """Take back a wait. What it comes to is told to the one who waits; in o2dlm, here too."""
        profile, done = self._profile, block.done
        if done is None or block.lock is None:
            await trio.lowlevel.checkpoint()
            return profile.cancelled(waited=False)
        self._space.cancel(block.lock)
        if not profile.cancel_waits:
            await trio.lowlevel.checkpoint()
            return profile.cancelled(waited=True)
        await done.wait()
        return profile.cancelled(waited=block.status != profile.success)

    def _forget(self, block: StatusBlock) -> None:
        self._blocks.discard(block)
        block.lock = None
