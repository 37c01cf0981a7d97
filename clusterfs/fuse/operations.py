"""Kernel request to filesystem call and back; nothing is decided here.

pyfuse3 calls one method per request, each in a task of its own, so requests overlap at every await.
Requests that it does not know are in further.py; what needs no waiting is mostly answered before it
comes here (at_once.py). The methods translate arguments (fields of a
request into plain ints, bytes and Structs) and results (Structs into pyfuse3's types). `replying`
turns whatever is raised into an errno.

Whether a READ or WRITE is the page cache's own, and whose it is, can be asked only before the first
await.
"""

# ruff: noqa: D102  each method is the FUSE request of its name

import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from clusterfs.errors import WouldBlock
from clusterfs.fs.results import Attributes, Caller, Changes, Entry, Listed, Opened, Status
from clusterfs.fuse.again import Again
from clusterfs.fuse.at_once import AtOnce
from clusterfs.fuse.binding import native, pyfuse3
from clusterfs.fuse.cached import CachedInodes
from clusterfs.fuse.callers import caller_of, with_groups, writer
from clusterfs.fuse.further import Further
from clusterfs.fuse.kernel import SessionKernel
from clusterfs.fuse.replies import replying
from clusterfs.fuse.requests import requests

if TYPE_CHECKING:
    from clusterfs.fs.filesystem import Filesystem

_NAMES_PER_PAGE = 128
_NO_NAME = b"/"  # what CREATE says for O_TMPFILE


class Operations(pyfuse3.Operations):
    """The handlers that pyfuse3 calls."""

    supports_dot_lookup = False
    enable_writeback_cache = False  # with it the kernel ignores our file size
    _trusts_root = True

    def __init__(
        self, filesystem: "Filesystem", cached: CachedInodes, again: Again | None = None
    ) -> None:
        super().__init__()
        self._again = again or Again()
        self._fs = filesystem
        self._cached = cached
        self._is_page_io = native.current_is_page_io
        self.further = Further(filesystem)
        self.at_once = AtOnce(filesystem, cached, trusts_root=self._trusts_root)

    def use_kernel(self, kernel: SessionKernel) -> Callable[[], list[int]]:
        """Make room in the table of cached inodes through this kernel; returns what lists them."""

        async def drop_pages(inode: int) -> None:
            await kernel.invalidate_pages(inode, [(0, 0)])

        self._cached.use(drop_pages)
        return self._cached.inodes

    # ---- names ----

    @replying
    async def lookup(self, parent: int, name: bytes, ctx: Any) -> Any:
        return _entry(await self._fs.lookup(parent, name, caller_of(ctx)))

    @replying
    async def forget(self, forgotten: Iterable[tuple[int, int]]) -> None:
        for inode, count in forgotten:
            if self._fs.forget(inode, count):
                self._cached.forgotten(inode)

    @replying
    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, ctx: Any) -> Any:
        make = self._fs.mknod(parent, name, mode, rdev, caller_of(ctx))
        return _entry(await self._again.made(make, partial(self._fs.lookup, parent, name)))

    @replying
    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: Any) -> Any:
        make = self._fs.mkdir(parent, name, mode, caller_of(ctx))
        return _entry(await self._again.made(make, partial(self._fs.lookup, parent, name)))

    @replying
    async def symlink(self, parent: int, name: bytes, target: bytes, ctx: Any) -> Any:
        make = self._fs.symlink(parent, name, target, caller_of(ctx))
        return _entry(await self._again.made(make, partial(self._fs.lookup, parent, name)))

    @replying
    async def link(self, inode: int, parent: int, name: bytes, ctx: Any) -> Any:
        link = self._fs.link(inode, parent, name, caller_of(ctx))
        look = partial(self._fs.lookup, parent, name)
        return _entry(await self._again.linked(link, inode, look))

    @replying
    async def unlink(self, parent: int, name: bytes, ctx: Any) -> None:
        await self._again.removed(self._fs.unlink(parent, name, caller_of(ctx)))

    @replying
    async def rmdir(self, parent: int, name: bytes, ctx: Any) -> None:
        await self._again.removed(self._fs.rmdir(parent, name, caller_of(ctx)))

    @replying
    async def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, ctx: Any
    ) -> None:
        await self._again.removed(
            self._fs.rename(parent, name, new_parent, new_name, flags, caller_of(ctx))
        )

    @replying
    async def readlink(self, inode: int, _ctx: Any) -> bytes:
        return await self._fs.readlink(inode)

    # ---- attributes ----

    @replying
    async def getattr(self, inode: int, _ctx: Any) -> Any:
        return _status(await self._fs.getattr(inode))

    @replying
    async def setattr(
        self, inode: int, wanted: Any, fields: Any, handle: int | None, ctx: Any
    ) -> Any:
        changes = Changes(
            mode=wanted.st_mode if fields.update_mode else None,
            uid=wanted.st_uid if fields.update_uid else None,
            gid=wanted.st_gid if fields.update_gid else None,
            size=wanted.st_size if fields.update_size else None,
            atime_ns=wanted.st_atime_ns if fields.update_atime else None,
            mtime_ns=wanted.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=wanted.st_ctime_ns if fields.update_ctime else None,
        )
        caller = with_groups(caller_of(ctx))
        return _status(await self._fs.setattr(inode, changes, handle, caller))

    @replying
    async def access(self, inode: int, mask: int, ctx: Any) -> bool:
        await self._fs.access(inode, mask, with_groups(caller_of(ctx)))
        return True

    @replying
    async def getxattr(self, inode: int, name: bytes, _ctx: Any) -> bytes:
        return await self._fs.getxattr(inode, name)

    @replying
    async def listxattr(self, inode: int, ctx: Any) -> list[bytes]:
        return await self._fs.listxattr(inode, caller_of(ctx))

    @replying
    async def removexattr(self, inode: int, name: bytes, ctx: Any) -> None:
        await self._fs.removexattr(inode, name, caller_of(ctx))

    @replying
    async def statfs(self, _ctx: Any) -> Any:
        status = await self._fs.statfs(native.current_inode())
        reply = pyfuse3.StatvfsData()
        reply.f_bsize = reply.f_frsize = status.block_bytes
        reply.f_blocks = status.blocks
        reply.f_bfree = reply.f_bavail = status.free
        reply.f_files = status.files
        reply.f_ffree = reply.f_favail = status.files_free
        reply.f_namemax = status.name_bytes
        return reply

    # ---- files ----

    @replying
    async def open(self, inode: int, flags: int, ctx: Any) -> Any:
        caller = caller_of(ctx)
        if flags & os.O_TRUNC:
            caller = with_groups(caller)
        opened = await self._fs.open(inode, flags, caller)
        await self._note_opened(inode, opened.handle)
        return _file_info(opened)

    @replying
    async def create(self, parent: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
        caller = with_groups(caller_of(ctx))
        if self._again.asked():
            flags &= ~os.O_EXCL  # it may have been made; nobody else has its handle
        if name == _NO_NAME:
            created = await self._fs.tmpfile(parent, mode, flags, caller)
        else:
            created = await self._fs.create(parent, name, mode, flags, caller)
        assert created.entry.attributes is not None
        await self._note_opened(created.entry.attributes.inode, created.opened.handle)
        return _file_info(created.opened), _entry(created.entry)

    @replying
    async def read(self, handle: int, offset: int, size: int) -> Any:
        page_io = self._is_page_io()
        try:
            return self._fs.read_nowait(handle, offset, size, page_io=page_io)
        except WouldBlock:
            with requests.under_way("read"):
                return await self._fs.read(handle, offset, size, page_io=page_io)

    @replying
    async def write(self, handle: int, offset: int, data: bytes) -> int:
        page_io = self._is_page_io()
        try:
            by_root = self._trusts_root and not native.current_uid()
            append = native.current_appends()
            return self._fs.write_nowait(
                handle, offset, data, page_io=page_io, by_root=by_root, append=append
            )
        except WouldBlock:
            who = partial(with_groups, self._writer())
            with requests.under_way("write"):
                return await self._fs.write(handle, offset, data, page_io=page_io, who=who)

    def _writer(self) -> Caller:
        return writer()

    @replying
    async def flush(self, handle: int) -> None:
        # Must not fail with ENOSYS: the kernel would never send FLUSH again on this mount.
        await self._fs.flush(handle)

    @replying
    async def fsync(self, handle: int, datasync: bool) -> None:  # noqa: FBT001  the kernel's
        await self._fs.fsync(handle, datasync=datasync)

    @replying
    async def release(self, handle: int) -> None:
        self._cached.released(handle)
        await self._fs.release(handle)

    async def _note_opened(self, inode: int, handle: int) -> None:
        try:
            await self._cached.opened(inode, handle)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._fs.release(handle)
            raise

    # ---- directories ----

    @replying
    async def opendir(self, inode: int, ctx: Any) -> int:
        opened = await self._fs.opendir(inode, caller_of(ctx))
        return opened.handle

    @replying
    async def readdir(self, handle: int, cookie: int, token: Any) -> None:
        page: list[Listed] = await self._fs.readdir(handle, cookie, _NAMES_PER_PAGE)
        # No await from here on: what is reported as looked up must be counted before a FORGET.
        for listed in page:
            if not pyfuse3.readdir_reply(token, listed.name, _listed(listed), listed.cookie):
                return
            if listed.entry is not None:
                self._fs.looked_up(listed.inode)

    @replying
    async def fsyncdir(self, handle: int, datasync: bool) -> None:  # noqa: FBT001  the kernel's
        await self._fs.fsyncdir(handle, datasync=datasync)

    @replying
    async def releasedir(self, handle: int) -> None:
        await self._fs.releasedir(handle)

    def stacktrace(self) -> None:
        """Do nothing: pyfuse3's own prints every thread on an xattr anyone may set."""


def _attributes(attributes: Attributes) -> Any:
    reply = pyfuse3.EntryAttributes()
    reply.st_ino = attributes.inode
    reply.st_mode = attributes.mode
    reply.st_nlink = attributes.nlink
    reply.st_uid = attributes.uid
    reply.st_gid = attributes.gid
    reply.st_rdev = attributes.rdev
    reply.st_size = attributes.size
    reply.st_blocks = attributes.blocks
    reply.st_atime_ns = attributes.atime_ns
    reply.st_mtime_ns = attributes.mtime_ns
    reply.st_ctime_ns = attributes.ctime_ns
    return reply


def _status(status: Status) -> Any:
    reply = _attributes(status.attributes)
    reply.attr_timeout = status.attribute_timeout_s
    return reply


def _entry(entry: Entry) -> Any:
    """Return what a lookup answers; inode 0 says that the name does not exist, for a while."""
    if entry.attributes is None:
        reply = pyfuse3.EntryAttributes()
        reply.st_ino = 0
    else:
        reply = _attributes(entry.attributes)
    reply.entry_timeout = entry.entry_timeout_s
    reply.attr_timeout = entry.attribute_timeout_s
    return reply


def _listed(listed: Listed) -> Any:
    if listed.entry is not None:
        return _entry(listed.entry)
    reply = pyfuse3.EntryAttributes()
    reply.st_ino = listed.inode
    reply.st_mode = listed.kind << 12
    reply.generation = native.UNLOOKED
    return reply


def _file_info(opened: Opened) -> Any:
    return pyfuse3.FileInfo(
        fh=opened.handle, direct_io=opened.direct_io, keep_cache=opened.keep_cache
    )
