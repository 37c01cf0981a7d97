"""The door: every filesystem call of one mount, over a volume, a lockspace and the kernel's caches.

Each call passes the gate, so it stalls while this node is out of the cluster and is run again if
the node was lost on the way. Nothing is decided here; see namespace, renames, files, metadata,
xattrs. The caller counts as holding a reference to each inode that a lookup (or create, link, ...)
answered with, until it forgets it.
"""

import stat
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial

import msgspec
import structlog
import trio

from clusterfs.errors import (
    EntryExists,
    FilesystemError,
    InvalidArgument,
    NameTooLong,
    NotADirectory,
    ReadOnly,
)
from clusterfs.fs import keys, lock_uses
from clusterfs.fs.access_times import AccessTimes
from clusterfs.fs.aging import Aging
from clusterfs.fs.allocation import Allocation
from clusterfs.fs.at_once import AtOnce
from clusterfs.fs.attributes import fresh
from clusterfs.fs.cloning import Cloning
from clusterfs.fs.coherence import Coherence
from clusterfs.fs.directories import Directories
from clusterfs.fs.endangered import Endangered, Journal
from clusterfs.fs.events import Events
from clusterfs.fs.file_locks import FileLocks
from clusterfs.fs.file_times import FileClock
from clusterfs.fs.files import Files
from clusterfs.fs.gate import Attempt, Gate
from clusterfs.fs.inodes import Inode, Inodes
from clusterfs.fs.kernel import Kernel
from clusterfs.fs.keys import ROOT
from clusterfs.fs.listing import Listing
from clusterfs.fs.lock_cache import LockCache
from clusterfs.fs.locks import PR
from clusterfs.fs.metadata import Metadata
from clusterfs.fs.namespace import Namespace, Newborn
from clusterfs.fs.orphans import Orphans
from clusterfs.fs.parts import Parts
from clusterfs.fs.permissions import access_of
from clusterfs.fs.ports import Lockspace, Name, Volume
from clusterfs.fs.quota_settings import QuotaSettings, Shown
from clusterfs.fs.quotas import Quotas
from clusterfs.fs.readmission import Readmission
from clusterfs.fs.renames import Renames
from clusterfs.fs.results import Caller, Changes, Created, Entry, Listed, Opened, Statfs, Status
from clusterfs.fs.succession import Succession
from clusterfs.fs.transactions import Edit, Transactions
from clusterfs.fs.trees import Trees
from clusterfs.fs.writeback import Writeback
from clusterfs.fs.xattrs import Xattrs
from clusterfs.store.objects import BLOCK_BYTES

log = structlog.get_logger()

_LAST_ACCESS_TIMES_S = 2.0  # for what is no data, when the mount ends
_O_EXCL = 0o200
_O_ACCMODE = 0o3
_O_TRUNC = 0o1000
_NOBODY = Caller()
_RENAME_LOCK = Name(bytes(8), b"rename")
Hold = Callable[[Inode], Awaitable[None]]

_EMPTY_FILES = 1 << 40  # the volume has no table of inodes that could run out


class Settings(msgspec.Struct, frozen=True):
    """What may be tuned."""

    cache_s: float = 1.0  # how long the kernel may believe attributes and names, at most
    inodes: int = 100_000  # kept in memory, those in use not counted
    dirty_bytes: int = 128 << 20  # then writers wait for writeback
    fail_when_lost: bool = False  # errors instead of stalling while out of the cluster
    read_only: bool = False  # this node may not change anything
    access_time_delay_s: float | None = 30.0  # until others see that a file was read; None: never

    @property
    def keeps_reads_s(self) -> float | None:
        """Return how long access times stay in memory; None: reads change none."""
        return None if self.read_only else self.access_time_delay_s


class Filesystem:
    """One mount of the volume."""

    def __init__(  # noqa: PLR0913  (everything that a mount is made of)
        self,
        volume: Volume,
        lockspace: Lockspace,
        kernel: Kernel,
        *,
        lease_left_s: Callable[[], float],
        now_ns: Callable[[], int],
        settings: Settings | None = None,
        journal: Journal | None = None,
    ) -> None:
        settings = settings or Settings()
        self._volume = volume
        self._now_ns = clock = FileClock(now_ns)
        self._read_only = settings.read_only
        self._gate = Gate(lease_left_s, fail_when_lost=settings.fail_when_lost)
        self._locks = LockCache(lockspace)
        self._endangered = Endangered(journal)
        self.events = Events()
        self._quotas = Quotas(volume, self._locks)
        self._transactions = Transactions(
            volume, self._endangered, self._quotas, read_only=settings.read_only
        )
        self._writeback = Writeback(
            volume, self._transactions, self._endangered, self._quotas, settings.dirty_bytes
        )
        self._aging = Aging(self._writeback, self._transactions)
        self._coherence = Coherence(kernel, self._writeback, self._endangered, settings.cache_s)
        self._inodes = Inodes(volume, self._locks, self._coherence.give_up, clock, settings.inodes)
        self._quotas.use(self._inodes, self._transactions)
        self._access_times = AccessTimes(
            self._gate, self._locks, self._transactions, clock, settings.keeps_reads_s
        )
        parts = Parts(
            volume,
            self._gate,
            self._locks,
            self._inodes,
            self._transactions,
            self._writeback,
            self._coherence,
            self._endangered,
            self._quotas,
            self.events,
            self._access_times,
            clock,
        )
        self._begun = trio.Event()
        self._directories = Directories(volume, self._transactions)
        self._operate(parts)
        self._outlive(parts)
        self._hand_through()

    def _operate(self, parts: Parts) -> None:
        """Make what serves the operations."""
        self._listing = Listing(parts, self._directories)
        self._quota_settings = QuotaSettings(parts, self._directories)
        self._xattrs = Xattrs(parts, self._quota_settings)
        self._namespace = Namespace(parts, self._directories, self._xattrs)
        rename_lock = self._locks.lock(_RENAME_LOCK)
        self._renames = Renames(parts, self._directories, self._namespace, rename_lock)
        self._files = Files(parts)
        self.file_locks = FileLocks(parts, self._files.handles)
        self._metadata = Metadata(parts, self._files, self._xattrs)
        self._allocation = Allocation(parts, self._files)
        self._cloning = Cloning(parts, self._files)
        self.trees = Trees(parts, self._directories, self._namespace, self._files, self._cloning)

    def _outlive(self, parts: Parts) -> None:
        """Make what goes on with things that their makers left: other clients, this node, names."""
        self._unnamed: set[int] = set()  # made without a name, and open here
        self.at_once = AtOnce(parts, self._directories, self._files, self.file_locks, self._unnamed)
        self._orphans = Orphans(parts, self._files.truncation)
        self._readmission = Readmission(parts, self.file_locks)
        self._succession = Succession(parts, self._files, self.file_locks, self._readmission)

    def _hand_through(self) -> None:
        """Offer what passes the gate by itself."""
        self.take_over = self._succession.take_over
        self.rest = self._succession.rest
        self.settle = self._succession.settle
        self.read_nowait = self._files.read_nowait
        self.read = self._files.read
        self.write_nowait = self._files.write_nowait
        self.write = self._files.write
        self.atomic = self._files.atomic
        self.seek = self._files.seek
        self.copy_range = self._cloning.copy_range

    # -- life

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Started once there is a root directory."""
        async with trio.open_nursery() as nursery:
            self._locks.use(nursery)
            self._coherence.use(nursery, self._gate.lease_left_s)
            self._orphans.use(nursery)
            self._readmission.use(nursery)
            self._begun.set()
            await self._gate.run(self._make_root, internal=True)
            nursery.start_soon(self._aging.run)
            nursery.start_soon(self._access_times.run)
            task_status.started()

    async def _make_root(self) -> None:
        root = self._inodes.get(ROOT)
        async with root.lock.excluding():
            _, (stored,) = await self._transactions.fetch(root, (keys.RECORD,))
            if stored is None:
                edit = Edit(root, fresh(stat.S_IFDIR | 0o755, 0, 0, self._now_ns(), parent=ROOT))
                edit.creates = True
                await self._transactions.commit(edit)

    async def close(self) -> None:
        """Write everything back and wait for the disks: the mount is gone, the node may leave."""
        if self._gate.resting:
            return  # nothing is left
        for inode in list(self._writeback.dirty):
            try:
                await self._gate.run(partial(self._files.write_back, inode), internal=True)
            except FilesystemError as failure:  # the others are to be written nevertheless
                log.warning("not written back", inode=inode.number, reason=repr(failure))
        with trio.move_on_after(_LAST_ACCESS_TIMES_S):
            await self._access_times.send_all()
        await self._gate.run(self._quotas.give_back, internal=True)
        await self._gate.run(self._volume.sync, internal=True)

    async def begun(self) -> None:
        """Wait until `run` has begun: from then on this node may be lost and readmitted."""
        await self._begun.wait()

    def lost(self) -> None:
        """This node was removed from the cluster: every lock is void. Not before it has `begun`."""
        self.file_locks.lose()
        self._quotas.lose()
        self._readmission.lose()

    async def wait_dropped(self) -> None:
        """Wait, after `lost`, until the kernel's caches are empty."""
        await self._readmission.wait_dropped()

    async def readmitted(self, lockspace: Lockspace) -> None:
        """This node is back under a new incarnation. Raises LockLost if it is lost meanwhile."""
        await self._readmission.readmit(lockspace)
        self._locks.start(partial(self._gate.run, self._quotas.recheck, internal=True))

    async def reclaim_marked(self, groups: Sequence[int]) -> int:
        """Finish what clients that are gone left undone in these groups."""
        return await self._orphans.reclaim_marked(groups)

    def describe_locks(self, *, only_busy: bool = False) -> Iterator[list[lock_uses.Description]]:
        """Return, in pages, which system calls use and await locks, and the paths of those."""
        now_s = trio.current_time()
        return lock_uses.describe(self._locks.locks(), self._inodes, now_s, only_busy=only_busy)

    # -- names

    async def lookup(self, parent: int, name: bytes, _caller: Caller = _NOBODY) -> Entry:
        """Return what a name leads to; attributes None: it does not exist."""
        entry = await self._gate.run(partial(self._namespace.lookup, parent, name), rerun=True)
        return self._counted(entry)

    def looked_up(self, inode: int) -> None:
        """Count one more reference of the kernel to an inode that readdir answered with."""
        self._inodes.get(inode).lookups += 1

    def forget(self, inode: int, count: int) -> bool:
        """Take references back; True: none is left."""
        known = self._inodes.known(inode)
        if known is None:
            return True
        known.lookups = max(0, known.lookups - count)
        if known.gone:
            self._inodes.forget(known)
        return not known.lookups

    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller = _NOBODY
    ) -> Entry:
        """Make a file, fifo, socket or device."""
        if not stat.S_IFMT(mode):
            mode |= stat.S_IFREG
        if stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            raise InvalidArgument
        return await self._make(parent, name, Newborn(mode, caller, rdev))

    async def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller = _NOBODY) -> Entry:
        """Make a directory."""
        return await self._make(parent, name, Newborn(stat.S_IFDIR | stat.S_IMODE(mode), caller))

    async def symlink(
        self, parent: int, name: bytes, target: bytes, caller: Caller = _NOBODY
    ) -> Entry:
        """Make a symlink."""
        if len(target) > keys.TARGET_BYTES:
            raise NameTooLong
        return await self._make(parent, name, Newborn(stat.S_IFLNK | 0o777, caller, 0, target))

    async def _make(self, parent: int, name: bytes, newborn: Newborn) -> Entry:
        make = partial(self._namespace.make, Attempt(), parent, name, newborn)
        _, entry = await self._gate.run(make)
        return self._counted(entry)

    async def link(self, inode: int, parent: int, name: bytes, _caller: Caller = _NOBODY) -> Entry:
        """Give an inode one more name."""
        link = partial(self._namespace.link, Attempt(), inode, parent, name)
        return self._counted(await self._gate.run(link))

    async def unlink(self, parent: int, name: bytes, caller: Caller = _NOBODY) -> None:
        """Take a name away."""
        unlink = partial(
            self._namespace.unlink, Attempt(), parent, name, caller, is_directory=False
        )
        self._reclaim(await self._gate.run(unlink))

    async def rmdir(self, parent: int, name: bytes, caller: Caller = _NOBODY) -> None:
        """Remove an empty directory."""
        rmdir = partial(self._namespace.unlink, Attempt(), parent, name, caller, is_directory=True)
        await self._gate.run(rmdir)

    async def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int = 0,
        caller: Caller = _NOBODY,
    ) -> None:
        """Move a name. Flags: 1 NOREPLACE, 2 EXCHANGE."""
        source, target = (parent, name), (new_parent, new_name)
        rename = partial(self._renames.rename, Attempt(), source, target, flags, caller)
        self._reclaim(await self._gate.run(rename))

    async def readlink(self, inode: int) -> bytes:
        """Return a symlink's target."""
        return await self._gate.run(partial(self._namespace.readlink, inode), rerun=True)

    def _counted(self, entry: Entry) -> Entry:
        if entry.attributes is not None:
            self._inodes.get(entry.attributes.inode).lookups += 1
        return entry

    def _reclaim(self, orphan: Inode | None) -> None:
        if orphan is None:
            return
        if orphan.gone:
            self._inodes.forget(orphan)
        else:
            self._orphans.queue(orphan.number)

    # -- attributes

    async def getattr(self, inode: int) -> Status:
        """Return an inode's attributes."""
        return await self._gate.run(partial(self._namespace.status, inode), rerun=True)

    async def setattr(
        self, inode: int, changes: Changes, _handle: int | None = None, caller: Caller = _NOBODY
    ) -> Status:
        """Change attributes; a handle adds nothing to the inode."""
        change = partial(self._metadata.change, Attempt(), inode, changes, caller)
        return await self._gate.run(change)

    async def access(self, inode: int, mask: int, caller: Caller) -> None:
        """Raise PermissionDenied unless the caller may."""
        await self._gate.run(partial(self._metadata.access, inode, mask, caller), rerun=True)

    async def setxattr(
        self, inode: int, name: bytes, value: bytes, flags: int = 0, caller: Caller = _NOBODY
    ) -> None:
        """Set an extended attribute. Flags: 1 CREATE, 2 REPLACE."""
        set_value = partial(self._xattrs.set, Attempt(), inode, name, value, flags, caller)
        await self._gate.run(set_value)

    async def getxattr(self, inode: int, name: bytes) -> bytes:
        """Return an extended attribute."""
        return await self._gate.run(partial(self._xattrs.get, inode, name), rerun=True)

    async def listxattr(self, inode: int, caller: Caller = _NOBODY) -> list[bytes]:
        """Return the names of the extended attributes that the caller may see."""
        return await self._gate.run(partial(self._xattrs.names, inode, caller), rerun=True)

    async def removexattr(self, inode: int, name: bytes, caller: Caller = _NOBODY) -> None:
        """Remove an extended attribute."""
        await self._gate.run(partial(self._xattrs.remove, Attempt(), inode, name, caller))

    async def list_quotas(self) -> list[Shown]:
        """Return every quota of the volume."""
        return await self._gate.run(self._quota_settings.everything)

    async def statfs(self, inode: int = ROOT) -> Statfs:
        """Return how much room there is: below a quota's directory, within the quota."""
        space = await self._gate.run(self._volume.statfs)
        blocks, free = space.total // BLOCK_BYTES, space.free // BLOCK_BYTES
        volume = Statfs(BLOCK_BYTES, blocks, free, _EMPTY_FILES, _EMPTY_FILES, keys.NAME_BYTES)
        within = partial(self._quota_settings.within, inode, volume)
        return await self._gate.run(within, rerun=True)

    # -- files

    async def open(self, inode: int, flags: int, caller: Caller = _NOBODY) -> Opened:
        """Open a file."""
        if self._read_only and flags & (_O_ACCMODE | _O_TRUNC):
            raise ReadOnly("this node may not change the volume")
        return await self._gate.run(partial(self._files.open, Attempt(), inode, flags, caller))

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller = _NOBODY
    ) -> Created:
        """Make and open a file; without O_EXCL, open the one that is there already.

        The kernel knew of none, so it has not checked whether the caller may.
        """
        attempt = Attempt()
        while True:
            try:
                newborn = Newborn(stat.S_IFREG | stat.S_IMODE(mode), caller)
                create = partial(self._create, attempt, parent, name, newborn, flags)
                return await self._gate.run(create)
            except EntryExists:
                if flags & _O_EXCL:
                    raise
            entry = await self.lookup(parent, name)
            if entry.attributes is not None:
                await self.access(entry.attributes.inode, access_of(flags), caller)
                opened = await self.open(entry.attributes.inode, flags, caller)
                return Created(entry, opened)

    async def tmpfile(
        self, parent: int, mode: int, flags: int, caller: Caller = _NOBODY
    ) -> Created:
        """Make and open a file without a name (O_TMPFILE); with O_EXCL it can never have one."""
        newborn = Newborn(stat.S_IFREG | stat.S_IMODE(mode), caller)

        async def make(hold: Hold) -> tuple[Inode, Entry]:
            return await self._namespace.make_unnamed(
                parent, newborn, hold, may_be_named=not flags & _O_EXCL
            )

        created = await self._gate.run(partial(self._make_and_open, make, flags, caller))
        assert created.entry.attributes is not None
        self._unnamed.add(created.entry.attributes.inode)
        return created

    async def _create(
        self, attempt: Attempt, parent: int, name: bytes, newborn: Newborn, flags: int
    ) -> Created:
        async def make(hold: Hold) -> tuple[Inode, Entry]:
            return await self._namespace.make(attempt, parent, name, newborn, hold)

        return await self._make_and_open(make, flags, newborn.caller)

    async def _make_and_open(
        self,
        make: Callable[[Hold], Awaitable[tuple[Inode, Entry]]],
        flags: int,
        caller: Caller,
    ) -> Created:
        held: list[Inode] = []

        async def hold(child: Inode) -> None:
            """Share the open lock before anybody can see, unlink and reclaim the inode."""
            await self._files.hold_open(child)
            held.append(child)

        async def make_and_hold(child: Inode) -> None:
            await child.open_lock.make(PR)
            await hold(child)

        try:
            child, entry = await make(make_and_hold)
            if not held:  # made by an earlier run of this request
                await hold(child)
            opened = await self._files.opened(child, flags, caller)
        except BaseException:
            for inode in held:
                inode.open_lock.release()
            raise
        return Created(self._counted(entry), opened)

    async def flush(self, handle: int) -> None:
        """Close a descriptor: what it unlocked is free for all then; data is written back later."""
        await self.file_locks.settled(self._files.handles.file(handle).inode)

    async def release(self, handle: int) -> None:
        """Close a file."""
        writable = self._files.handles.is_writable(handle)
        inode = await self._files.release(handle)
        if writable and inode is not None:
            await self.events.closed(inode.number)
        if inode is not None and inode.number in self._unnamed and not inode.opened:
            self._unnamed.discard(inode.number)
            self._orphans.queue(inode.number)

    async def fsync(self, handle: int, *, datasync: bool = False) -> None:
        """Make a file's data and attributes durable; datasync is no cheaper."""
        del datasync
        await self._files.fsync(handle)

    async def fallocate(
        self, handle: int, offset: int, length: int, mode: int, caller: Caller = _NOBODY
    ) -> None:
        """Grow a file, punch a hole, or zero a range."""
        await self._allocation.fallocate(handle, offset, length, mode, caller)

    # -- directories

    async def opendir(self, inode: int, _caller: Caller = _NOBODY) -> Opened:
        """Open a directory."""
        status = await self.getattr(inode)
        if not stat.S_ISDIR(status.attributes.mode):
            raise NotADirectory
        opened = self._files.handles.open_directory(self._inodes.get(inode))
        return Opened(opened.handle, direct_io=False, keep_cache=False)

    async def readdir(self, handle: int, cookie: int, count: int) -> list[Listed]:
        """Return up to `count` entries after a cookie, 0 at first; [] at the end.

        An entry has attributes only if nobody has to wait; `looked_up` counts the reference.
        """
        opened = self._files.handles.directory(handle)
        return await self._listing.page(opened, cookie, count)

    async def fsyncdir(self, handle: int, *, datasync: bool = False) -> None:
        """Make a directory's entries durable."""
        del datasync
        inode = self._files.handles.directory(handle).inode
        await self._gate.run(partial(self._volume.sync, (inode.number,)))

    async def releasedir(self, handle: int) -> None:
        """Close a directory."""
        self._files.handles.close(handle)

    # -- observation

    def statistics(self) -> dict[str, float]:
        """Return counters."""
        files, writeback, coherence = self._files, self._writeback, self._coherence
        return {
            "inodes": len(self._inodes),
            "inodes_evicted": self._inodes.evicted,
            "handles": len(files.handles),
            "file_lockers": len(self.file_locks),
            "locks_held": self._locks.held,
            "lock_grants": self._locks.grants,
            "lock_revokes": self._locks.revokes,
            "lock_values": self._locks.values,
            "transactions": self._transactions.commits,
            "answers_at_once": self.at_once.answers,
            "reads_fast": files.fast_reads,
            "reads_slow": files.slow_reads,
            "writes_fast": files.fast_writes,
            "writes_slow": files.slow_writes,
            "shared_bytes": self._cloning.shared_blocks * BLOCK_BYTES,
            "copied_bytes": self._cloning.copied_bytes,
            "dirty_bytes": writeback.dirty_blocks * BLOCK_BYTES,
            "flushed_bytes": writeback.flushed_blocks * BLOCK_BYTES,
            "page_drops": coherence.counters.pages,
            "attribute_drops": coherence.counters.attributes,
            "dentry_drops": coherence.counters.dentries,
            "access_times_waiting": len(self._access_times),
            "access_times_sent": self._access_times.sent,
            "orphans": len(self._orphans),
            "orphans_reclaimed": self._orphans.reclaimed,
            "stalled": self._gate.stalled,
            "times_lost": self._gate.generation,
            "dead_handles": self._readmission.dead_handles,
            "endangered_inodes": len(self._endangered),
        }

    def validate(self) -> None:
        """Check every invariant; for tests."""
        for inode in self._inodes:
            inode.validate()
