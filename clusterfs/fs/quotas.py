"""Directory quotas: what is below a directory is limited in bytes and files, exactly.

An inode's record names the quota that it belongs to (`quota`: the number of the quota's directory,
handed down to what is made in a directory); where that is 0 nothing here is asked. A node that
makes something or lets a file grow uses its share of the quota (quota_ledger.py) and sends no
message while that lasts. What is written is charged when it is accepted into memory.

Two locks for each quota, taken before any inode's, `q` before `u`:

    q   PR while this node has a share. EX: nobody else has one, so what is used is known exactly,
        and no name and no size below the directory changes meanwhile
    u   EX to change the ledger

When the share does not suffice, the operation ends with ShareWanted, before it has changed
anything. The gate (gate.py) then takes more, with no other lock held, and runs it again. Only who
holds `q` in EX says QuotaExceeded, after everybody's share came back.

If it is not known what a share was used for, because its node is gone or a transaction's outcome is
unknown, the tree is counted by whoever next holds `q` in EX.

Invariants:
  * what is used plus all shares is at most the limit, unless the limit was lowered below it, or a
    node that was out of the cluster came back with data that it had accepted before;
  * an operation that changes names, or gives something back, uses `q` until it is done.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext

import structlog
import trio
import trio.lowlevel

from clusterfs.errors import FilesystemError, OutOfSpace, QuotaExceeded, Unavailable
from clusterfs.fs import quota_ledger
from clusterfs.fs.gate import ShareWanted
from clusterfs.fs.inodes import Inodes
from clusterfs.fs.keys import ENTRY
from clusterfs.fs.lock_cache import LockCache
from clusterfs.fs.locks import NL, PR
from clusterfs.fs.ports import Mode, Name, Volume
from clusterfs.fs.quota_counting import Counting
from clusterfs.fs.quota_ledger import MARKED, NOBODY, NOTHING, Amount, Ledger, counted
from clusterfs.fs.transactions import Edit, Transactions
from clusterfs.store.objects import (
    ABSENT,
    MARK,
    Change,
    Put,
    Remove,
    Version,
    stripe_object,
)
from dlm.errors import LockLost

log = structlog.get_logger()

_PARTS = 8  # a node takes this part of what is left
_PATIENCE_S = 5.0  # for files without a name to be deleted, before somebody is refused
_LOOK_S = 0.05
_PAGE = 1024


class Quota:
    """One quota as this node knows it."""

    def __init__(
        self,
        number: int,
        volume: Volume,
        locks: LockCache,
        count: Callable[[int], "Counting"],
    ) -> None:
        self.number = number
        self._volume = volume
        self._counting = count(number)
        self.object_id = stripe_object(number, 0)
        self.group = volume.group_of_inode(number)
        root = number.to_bytes(8, "big")
        self.lock = locks.lock(Name(root, b"q"), self._give_up)
        self.ledger_lock = locks.lock(Name(root, b"u"))
        self._active = False  # there is a share, and it may be used
        self._granted = self._left = NOTHING
        self._limited = (True, True)
        self._reserved: dict[trio.lowlevel.Task, Amount] = {}
        self._generation = 0
        self._doubtful = False  # what was used of the share is not known for sure

    # -- using the share; none of these waits

    def charge(self, amount: Amount) -> None:
        """Use some of the share. Raises ShareWanted."""
        if self._reserved:
            task = trio.lowlevel.current_task()
            mine = self._reserved.get(task)
            if mine is not None and amount.nbytes <= mine.nbytes and amount.files <= mine.files:
                self._reserved[task] = mine.minus(amount)
                return
        if not self._suffices(amount):
            raise ShareWanted(self, amount)
        self._left = self._left.minus(amount)

    def credit(self, amount: Amount) -> None:
        """Give something back: it is free again."""
        if self._active:
            self._left = self._left.plus(amount)
        else:
            self._doubtful = True

    def doubt(self) -> None:
        """What was charged may have happened or not."""
        self._doubtful = True

    def use(self) -> None:
        """Keep names and sizes from being counted until `lock.release`. Raises ShareWanted."""
        if self.lock.shared_nowait():
            if self._active:
                return
            self.lock.release()
        elif trio.lowlevel.current_task() in self._reserved and self.lock.join_nowait():
            return
        raise ShareWanted(self, NOTHING)

    def require(self, amount: Amount) -> None:
        """Go on only if this task has so much to itself. Raises ShareWanted."""
        mine = self._reserved.get(trio.lowlevel.current_task(), NOTHING)
        if mine.nbytes < amount.nbytes or mine.files < amount.files:
            raise ShareWanted(self, amount)

    def _suffices(self, amount: Amount) -> bool:
        if not self._active or self.lock.level < PR:
            return False
        return all(
            left >= wanted or not limited or not wanted
            for left, wanted, limited in zip(self._left, amount, self._limited, strict=True)
        )

    # -- getting it

    @asynccontextmanager
    async def holding(self, amount: Amount) -> AsyncIterator[None]:
        """Have so much to use, kept for this task; no inode's lock may be held.

        Raises:
            QuotaExceeded: there is not so much.
            LockLost: this node was lost.
        """
        task = trio.lowlevel.current_task()
        await self._take(amount)
        generation = self._generation
        self._reserved[task] = amount
        try:
            yield
        finally:
            rest = self._reserved.pop(task, NOTHING)
            if generation == self._generation:
                self._left = self._left.plus(rest)
            self.lock.release()

    async def _take(self, amount: Amount) -> None:
        """Become a shared user of the lock, with so much taken from the share."""
        refused_at_s = None
        while True:
            await self.lock.wait_shared()
            if await self._taken(amount, alone=False):
                return
            self.lock.release()
            await self.lock.wait_exclusive()
            if await self._taken(amount, alone=True):
                self.lock.release(share_on=True)
                return
            self.lock.release()
            orphans = await self._counting.orphans()
            now_s = trio.current_time()
            refused_at_s = now_s if refused_at_s is None else refused_at_s
            if not orphans or now_s - refused_at_s > _PATIENCE_S:
                raise QuotaExceeded(f"the quota of directory {self.number:#x} is used up")
            await trio.sleep(_LOOK_S)

    async def _taken(self, amount: Amount, *, alone: bool) -> bool:
        """Take it from the share, or from a greater one. The lock goes if this fails."""
        try:
            if not self._suffices(amount):
                await self._draw(amount, alone=alone)
            enough = self._suffices(amount)
        except BaseException:
            self.lock.release()
            raise
        if enough:
            self._left = self._left.minus(amount)
        return enough

    async def _draw(self, amount: Amount, *, alone: bool) -> None:
        """Take a greater share, if there is so much; `alone`: `q` is held in EX."""
        async with self.ledger_lock.excluding():
            version, ledger = await (self.settle() if alone else self.read())
            if ledger is None:
                self._active, self._limited = True, (False, False)
                return
            if self._volume.incarnation not in ledger.shares:
                self._granted = self._left = NOTHING
            more = ledger.grant(_without(amount, self._left), _PARTS)
            if more is None:
                return
            share = self._granted.plus(more)
            ledger.shares[self._volume.incarnation] = share
            await self.write(version, ledger)
            self._limited = (bool(ledger.limits.nbytes), bool(ledger.limits.files))
            self._granted, self._left = share, self._left.plus(more)
            self._active = True

    # -- the ledger; `u` is held in EX

    async def read(self) -> tuple[Version, Ledger | None]:
        """Return the ledger; None: this is no quota, or not any more."""
        version, _ = await self._volume.fetch(self.object_id, self.group, ())
        if version == ABSENT:
            return version, None
        rows: list[tuple[bytes, bytes]] = []
        while page := await self._volume.scan(
            self.object_id, self.group, b"", rows[-1][0] if rows else b"", _PAGE
        ):
            rows += page
        return version, quota_ledger.decode(rows)

    async def write(self, version: Version, ledger: Ledger) -> Version:
        """Store a changed ledger; returns its version then."""
        change = self.change(version, ledger)
        await self._volume.commit([change])
        ledger.stored = dict(quota_ledger.encode(ledger)) | {MARK: MARKED}
        return change.version

    def change(self, version: Version, ledger: Ledger) -> Change:
        """Return the change of the object that stores a changed ledger."""
        new = version.after(self._volume.epoch)
        return Change(self.object_id, self.group, version, new, quota_ledger.operations(ledger))

    async def settle(self) -> tuple[Version, Ledger | None]:
        """Make what is used exact: take this node's share back, count where that is not known.

        `q` is held in EX, too, so no other member has a share.
        """
        version, ledger = await self.read()
        if ledger is None:
            return version, None
        me, before = self._volume.incarnation, ledger.used
        self._active = False
        with self._certain() as doubtful:
            if doubtful or set(ledger.shares) - {me}:
                ledger.used = await self._counting.count()
            elif me in ledger.shares:
                ledger.used = ledger.used.plus(self._granted.minus(self._left))
            if ledger.shares or ledger.used != before:
                ledger.shares = {}
                version = await self.write(version, ledger)
        self._granted = self._left = NOTHING
        return version, ledger

    @contextmanager
    def _certain(self) -> Iterator[bool]:
        """Doubt no more if this succeeds, but of what comes meanwhile; gives whether one did."""
        doubtful, self._doubtful = self._doubtful, False
        try:
            yield doubtful
        except BaseException:
            self._doubtful |= doubtful
            raise

    # -- giving it up

    async def _give_up(self, target: Mode) -> None:
        if target is NL and self._active:
            self._active = False
            async with self.ledger_lock.excluding():
                await self._post()

    async def _post(self) -> None:
        """Say what was used of the share, and have none any more."""
        try:
            version, ledger = await self.read()
            if ledger is not None:
                used = self._granted.minus(self._left)
                ledger.used = ledger.used.plus(used)
                ledger.shares.pop(self._volume.incarnation, None)
                with self._certain() as doubtful:
                    if doubtful:
                        ledger.shares[NOBODY] = NOTHING
                    await self.write(version, ledger)
        except Unavailable:
            raise LockLost from None
        except FilesystemError as failure:
            log.warning("quota share not given back", inode=self.number, reason=repr(failure))
            return  # it counts as used until the tree is counted
        self._granted = self._left = NOTHING

    async def recheck(self) -> None:
        """Count, if this node knows of something that others cannot know."""
        if self._doubtful:
            async with self.lock.excluding(), self.ledger_lock.excluding():
                await self.settle()

    async def give_back(self) -> None:
        """Have no share any more: this process ends."""
        if self._active:
            async with self.lock.excluding():
                await self._give_up(NL)

    def lose(self) -> None:
        """This node was lost: the share is nobody's; who counted it missed what is dirty here."""
        self._active = False
        self._doubtful = True
        self._generation += 1
        self._granted = self._left = NOTHING


def _without(need: Amount, left: Amount) -> Amount:
    return Amount(*(max(0, n - max(0, x)) for n, x in zip(need, left, strict=True)))


class Quotas:
    """The quotas that this node has met."""

    def __init__(self, volume: Volume, locks: LockCache) -> None:
        self._volume = volume
        self._locks = locks
        self._quotas: dict[int, Quota] = {}
        self._count: Callable[[int], Counting] | None = None

    def use(self, inodes: Inodes, transactions: Transactions) -> None:
        """Count trees by reading inodes with these."""
        self._count = lambda number: Counting(number, self._volume, inodes, transactions)

    def get(self, number: int) -> Quota:
        """Return the quota of that directory."""
        quota = self._quotas.get(number)
        if quota is None:
            assert self._count is not None
            quota = Quota(number, self._volume, self._locks, self._count)
            self._quotas[number] = quota
        return quota

    def charge_growth(self, number: int, nbytes: int) -> None:
        """Use so many bytes of a quota. Raises ShareWanted."""
        self.get(number).charge(Amount(nbytes))

    def credit_growth(self, number: int, nbytes: int) -> None:
        """Give bytes back."""
        self.get(number).credit(Amount(nbytes))

    def using(self, number: int) -> AbstractContextManager[None]:
        """Return a context in which what is given back is free at once; 0: no quota.

        Entering may raise ShareWanted.
        """
        return self._used(self.get(number)) if number else _FREE

    @staticmethod
    @contextmanager
    def _used(quota: Quota) -> Iterator[None]:
        quota.use()
        try:
            yield
        finally:
            quota.lock.release()

    def claiming(self, edits: Sequence[Edit]) -> AbstractContextManager[None]:
        """Return a context for the transaction of these edits. Entering may raise ShareWanted."""
        claims = _claims(edits)
        return self._claimed(claims) if claims else _FREE

    @contextmanager
    def _claimed(self, claims: Mapping[int, Amount]) -> Iterator[None]:
        used: list[tuple[Quota, Amount]] = []
        try:
            for number, amount in sorted(claims.items()):
                quota = self.get(number)
                quota.use()
                used.append((quota, NOTHING))
                plus = Amount(*(max(0, n) for n in amount))
                quota.charge(plus)
                used[-1] = (quota, plus)
            yield
        except BaseException as failure:
            for quota, plus in used:
                if isinstance(failure, (ShareWanted, OutOfSpace)):
                    quota.credit(plus)
                else:
                    quota.doubt()
            raise
        else:
            for quota, plus in used:
                quota.credit(plus.minus(claims[quota.number]))
        finally:
            for quota, _ in used:
                quota.lock.release()

    def lose(self) -> None:
        """This node was lost."""
        for quota in self._quotas.values():
            quota.lose()

    async def recheck(self) -> None:
        """Count what is in doubt, after a readmission."""
        for quota in list(self._quotas.values()):
            await quota.recheck()

    async def give_back(self) -> None:
        """Have no shares any more."""
        for quota in list(self._quotas.values()):
            await quota.give_back()


_FREE: AbstractContextManager[None] = nullcontext()


def _claims(edits: Iterable[Edit]) -> dict[int, Amount]:
    """Return what each quota has to give (or gets, if negative); {} mostly."""
    claims: dict[int, Amount] = {}
    for edit in edits:
        number, amount = _claim(edit)
        if number:
            claims[number] = claims.get(number, NOTHING).plus(amount)
    return claims


def _claim(edit: Edit) -> tuple[int, Amount]:
    before, after = edit.inode.record, edit.record
    record = after if after is not None else before
    if record is None or not record.quota or record.quota == edit.inode.number:
        named = record is not None and record.quota and _changes_names(edit)
        return (record.quota, NOTHING) if named and record is not None else (0, NOTHING)
    if edit.creates:
        return record.quota, counted(record)
    if edit.deletes:
        return record.quota, NOTHING.minus(counted(record))
    grown = 0
    if after is not None and before is not None and after.is_regular:
        grown = after.size - before.size
    if grown or _changes_names(edit):
        return record.quota, Amount(grown)
    return 0, NOTHING


def _changes_names(edit: Edit) -> bool:
    return any(
        isinstance(operation, (Put, Remove)) and operation.key.startswith(ENTRY)
        for operation in edit.operations
    )
