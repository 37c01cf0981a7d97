"""A quota's limits are set, shown and lifted: extended attributes of its directory.

| name (user.clusterfs.) | value                                                               |
|------------------------|---------------------------------------------------------------------|
| quota.bytes            | what the sizes of all files below may add up to; 0 is no limit      |
| quota.files            | how many files, directories, links and so on may be below           |
| quota.used_bytes       | read only: what they add up to now; all nodes are asked             |
| quota.used_files       | read only                                                           |

Decimal numbers. Only root sets them, and none of them is listed, so that no copy of a directory
takes them along. The first limit is set while the directory is empty; what is made below from then
on belongs to the quota, also if its limits are lifted later. A quota in a quota is refused.
"""

from contextlib import AsyncExitStack

import msgspec
from msgspec.structs import replace

from clusterfs.errors import (
    InvalidArgument,
    NoSuchAttribute,
    NoSuchEntry,
    NotADirectory,
    NotSupported,
    OperationNotPermitted,
)
from clusterfs.fs.directories import Directories
from clusterfs.fs.inodes import Inode
from clusterfs.fs.keys import ROOT
from clusterfs.fs.parts import Parts
from clusterfs.fs.quota_ledger import NOTHING, Ledger
from clusterfs.fs.quotas import Quota
from clusterfs.fs.results import Caller, Statfs
from clusterfs.fs.transactions import Edit
from clusterfs.store.objects import Delete, split_object_id

PREFIX = b"user.clusterfs.quota."
_LIMITS = {PREFIX + b"bytes": "nbytes", PREFIX + b"files": "files"}
_USED = {PREFIX + b"used_bytes": "nbytes", PREFIX + b"used_files": "files"}
_MOST = 1 << 62


class Shown(msgspec.Struct, frozen=True):
    """One quota, for people and programs; limits of 0 are none."""

    inode: int
    path: str  # within the volume
    limit_bytes: int
    limit_files: int
    used_bytes: int
    used_files: int


class QuotaSettings:
    """Sets and shows quotas."""

    def __init__(self, parts: Parts, directories: Directories) -> None:
        self._volume = parts.volume
        self._quotas = parts.quotas
        self._inodes = parts.inodes
        self._transactions = parts.transactions
        self._directories = directories

    async def get(self, number: int, name: bytes) -> bytes:
        """Return the value of one of the attributes. Raises NoSuchAttribute."""
        quota = self._quotas.get(number)
        if name in _USED:
            ledger = await self._settled(quota)
            return b"%d" % getattr(ledger.used, _USED[name])
        _, known = await quota.read()
        limit = getattr(known.limits, _limit(name)) if known is not None else 0
        if not limit:
            raise NoSuchAttribute
        return b"%d" % limit

    async def set(self, number: int, name: bytes, value: bytes, caller: Caller) -> None:
        """Set a limit; the first one makes an empty directory a quota's.

        Raises:
            OperationNotPermitted: the caller is not root.
            InvalidArgument: it is no number, or the directory is below a quota's.
            DirectoryNotEmpty: it is no quota's directory yet.
        """
        field = _limit(name)
        if caller.uid:
            raise OperationNotPermitted("only root sets quotas")
        if not value.isdigit() or int(value) > _MOST:
            raise InvalidArgument(f"a quota is a decimal number, not {value!r}")
        await self._limit(self._inodes.get(number), field, int(value))

    async def remove(self, number: int, name: bytes, caller: Caller) -> None:
        """Lift a limit. Raises NoSuchAttribute."""
        await self.get(number, name)
        await self.set(number, name, b"0", caller)

    async def _limit(self, inode: Inode, field: str, limit: int) -> None:
        quota = self._quotas.get(inode.number)
        async with AsyncExitStack() as stack:
            for lock in (quota.lock, quota.ledger_lock):
                await stack.enter_async_context(lock.excluding())
            version, ledger = await quota.settle()
            await stack.enter_async_context(inode.lock.excluding())
            record = await self._transactions.load_directory(inode)
            if record.quota not in (0, inode.number):
                raise InvalidArgument("the directory is below one that has a quota")
            if ledger is None:
                await self._directories.require_empty(inode)
                ledger = Ledger()
            ledger.limits = ledger.limits._replace(**{field: limit})
            edit = Edit(inode, record.changed(quota=inode.number))
            change = quota.change(version, ledger)
            if ledger.limits == NOTHING and await self._idle(inode, ledger):
                edit = Edit(inode, record.changed(quota=0))
                change = msgspec.structs.replace(change, operations=(Delete(),))
            async with inode.committing:
                await self._transactions.commit_holding([edit], [change])

    async def _idle(self, inode: Inode, ledger: Ledger) -> bool:
        """Tell whether nothing belongs to the quota."""
        rows = await self._directories.everything(inode)
        return not rows and ledger.used == NOTHING

    async def within(self, number: int, volume: Statfs) -> Statfs:
        """Return what statfs shows of an inode: of its quota, if it has one, as XFS shows it."""
        inode = self._inodes.get(number)
        async with inode.lock.sharing():
            quota = (await self._transactions.load(inode)).quota
        if not quota:
            return volume
        try:
            ledger = await self._settled(self._quotas.get(quota))
        except NoSuchAttribute:  # it was lifted meanwhile
            return volume
        limits, left = ledger.limits, ledger.limits.minus(ledger.used)
        if limits.nbytes:
            blocks = -(-limits.nbytes // volume.block_bytes)
            free = max(0, left.nbytes // volume.block_bytes)
            volume = replace(volume, blocks=blocks, free=min(free, volume.free))
        if limits.files:
            volume = replace(volume, files=limits.files, files_free=max(0, left.files))
        return volume

    async def _settled(self, quota: Quota) -> Ledger:
        """Return the ledger once every node has said what it used. Raises NoSuchAttribute."""
        _, known = await quota.read()
        if known is None:
            raise NoSuchAttribute
        async with quota.lock.excluding(), quota.ledger_lock.excluding():
            _, ledger = await quota.settle()
        if ledger is None:
            raise NoSuchAttribute
        return ledger

    # -- all of them

    async def everything(self) -> list[Shown]:
        """Return all quotas of the volume; ledgers whose directory is gone are deleted."""
        found = []
        for object_id in await self._volume.marked(range(self._volume.groups)):
            number, part = split_object_id(object_id)
            if part:
                try:
                    found.append(await self._show(number))
                except (NoSuchEntry, NoSuchAttribute, NotADirectory):
                    await self.retire(number)
        return sorted(found, key=lambda shown: shown.path)

    async def _show(self, number: int) -> Shown:
        path = await self._path(number)
        ledger = await self._settled(self._quotas.get(number))
        return Shown(number, path, *ledger.limits, *ledger.used)

    async def _path(self, number: int) -> str:
        names: list[bytes] = []
        while number != ROOT:
            inode = self._inodes.get(number)
            async with inode.lock.sharing():
                parent = (await self._transactions.load_directory(inode)).parent
            above = self._inodes.get(parent)
            async with above.lock.sharing():
                await self._transactions.load_directory(above)
                entries = await self._directories.everything(above)
            names += [name for name, entry in entries.items() if entry.inode == number][:1]
            number = parent
        return "/" + b"/".join(reversed(names)).decode("utf-8", "backslashreplace")

    async def retire(self, number: int) -> None:
        """Delete the ledger of a directory that is gone."""
        quota, inode = self._quotas.get(number), self._inodes.get(number)
        async with quota.lock.excluding(), quota.ledger_lock.excluding():
            version, ledger = await quota.read()
            if ledger is not None and not await self._exists(inode):
                change = quota.change(version, ledger)
                gone = msgspec.structs.replace(change, operations=(Delete(),))
                await self._volume.commit([gone])

    async def _exists(self, inode: Inode) -> bool:
        async with inode.lock.sharing():
            try:
                await self._transactions.load(inode)
            except NoSuchEntry:
                return False
            return True


def _limit(name: bytes) -> str:
    field = _LIMITS.get(name)
    if field is None:
        raise NotSupported(f"{name!r} cannot be set; quota.bytes and quota.files can")
    return field
