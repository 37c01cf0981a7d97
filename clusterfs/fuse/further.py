"""The requests that pyfuse3 has no handler for: each is served by a task and answered by it.

The native extension calls `dispatch` from within pyfuse3's main loop; it starts a task and returns,
so receiving goes on. Nothing is decided here; `answering` turns whatever is raised into an errno.
"""

import errno
import fcntl
import struct
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import trio

from clusterfs import atomic
from clusterfs.fs import acl
from clusterfs.fs.file_locks import EXCLUSIVE, NOTHING, SHARED
from clusterfs.fs.results import Caller
from clusterfs.fuse import flags, statx
from clusterfs.fuse.binding import native
from clusterfs.fuse.callers import squashed, with_groups
from clusterfs.fuse.replies import answering
from dlm.ranges import TO_THE_END, Span

if TYPE_CHECKING:
    from clusterfs.fs.filesystem import Filesystem

_NUMBER = struct.Struct("=Q")
_FLAGS = struct.Struct("=I")
_COPY_BYTES = 1 << 30  # the answer counts bytes in 32 bits

_MODES = {fcntl.F_RDLCK: SHARED, fcntl.F_WRLCK: EXCLUSIVE, fcntl.F_UNLCK: NOTHING}
_WHOLE = {fcntl.LOCK_SH: SHARED, fcntl.LOCK_EX: EXCLUSIVE, fcntl.LOCK_UN: NOTHING}

Handler = Callable[..., Awaitable[None]]


class Further:
    """Serves them through one filesystem."""

    def __init__(self, filesystem: "Filesystem") -> None:
        self._fs = filesystem
        self.squash: Callable[[int, bytes], Awaitable[Caller]] | None = None  # for SETXATTR by root
        self._nursery: trio.Nursery | None = None
        self._handlers: dict[str, Handler] = {
            "copy_file_range": self._copy_file_range,
            "fallocate": self._fallocate,
            "flock": self._flock,
            "flockw": self._flock,
            "getlk": self._getlk,
            "ioctl": self._ioctl,
            "lseek": self._lseek,
            "setlk": self._setlk,
            "setlkw": self._setlkw,
            "setxattr": self._setxattr,
            "statx": self._statx,
        }
        self._told: dict[str, Callable[..., None]] = {
            "flush": filesystem.file_locks.closed,
            "release": filesystem.file_locks.released,
        }
        self._ioctls: dict[int, Callable[[int, bytes], Awaitable[bytes]]] = {
            atomic.BEGIN: self._begin,
            atomic.JOIN: self._join,
            atomic.START: self._begin,
            atomic.COMMIT: self._commit,
            atomic.ABORT: self._abort,
            atomic.GET_FEATURES: self._features,
        }

    def use(self, nursery: trio.Nursery) -> None:
        """Serve in this nursery."""
        self._nursery = nursery

    def dispatch(self, kind: str, request: native.Request | None, *arguments: Any) -> None:
        """Take a request; it is answered later. Without one, pyfuse3 will serve it after this."""
        if request is None:
            self._told[kind](*arguments)
            return
        if self._nursery is None:
            request.error(errno.EIO)
            return
        handler = answering(self._handlers[kind], kind)
        whose = native.current_request(), native.current_pid()
        self._nursery.start_soon(handler, whose, request, *arguments)

    async def _fallocate(
        self, request: native.Request, handle: int, mode: int, offset: int, length: int
    ) -> None:
        await self._fs.fallocate(handle, offset, length, mode, self._who(request))
        request.error(0)

    async def _copy_file_range(
        self,
        request: native.Request,
        source: int,
        source_offset: int,
        target: int,
        target_offset: int,
        length: int,
    ) -> None:
        copied = await self._fs.copy_range(
            source,
            source_offset,
            target,
            target_offset,
            min(length, _COPY_BYTES),
            self._who(request),
        )
        request.written(copied)

    def _who(self, request: native.Request) -> Caller:
        """Return who changes a file's contents."""
        caller = Caller(*request.context())
        return with_groups(caller if self.squash is None else squashed(caller))

    # ---- file locks ----

    async def _setlk(self, request: native.Request, *lock: int) -> None:
        await self._set_lock(lock, wait=False)
        request.error(0)

    async def _setlkw(self, request: native.Request, *lock: int) -> None:
        await self._set_lock(lock, wait=True)
        request.error(0)

    async def _set_lock(self, lock: tuple[int, ...], *, wait: bool) -> None:
        handle, owner, kind, start, length, pid = lock
        span = _span(kind, start, length)
        await self._fs.file_locks.set(handle, owner, pid, span, wait=wait)

    async def _getlk(self, request: native.Request, *lock: int) -> None:
        handle, owner, kind, start, length, pid = lock
        span = _span(kind, start, length)
        found = await self._fs.file_locks.test(handle, owner, pid, span)
        if found is None:
            request.lock(fcntl.F_UNLCK, 0, 0, 0)
            return
        length = 0 if found.last == TO_THE_END else found.last - found.start + 1
        kind = fcntl.F_WRLCK if found.mode is EXCLUSIVE else fcntl.F_RDLCK
        request.lock(kind, found.start, length, found.pid)

    async def _flock(self, request: native.Request, handle: int, owner: int, kind: int) -> None:
        _, _, pid, _ = request.context()
        wait, mode = not kind & fcntl.LOCK_NB, _WHOLE[kind & ~fcntl.LOCK_NB]
        await self._fs.file_locks.flock(handle, owner, pid, mode, wait=wait)
        request.error(0)

    # ---- files ----

    async def _lseek(self, request: native.Request, handle: int, offset: int, whence: int) -> None:
        request.offset(await self._fs.seek(handle, offset, whence))

    async def _setxattr(
        self, request: native.Request, inode: int, name: bytes, value: bytes, flags: int
    ) -> None:
        caller = Caller(*request.context())
        if self.squash is not None and not caller.uid:
            caller = await self.squash(inode, name)
        elif name == acl.ACCESS:
            caller = with_groups(caller)
        await self._fs.setxattr(inode, name, value, flags, caller)
        request.error(0)

    async def _statx(self, request: native.Request, inode: int) -> None:
        request.data(statx.encode(await self._fs.getattr(inode)))

    # ---- ioctl ----

    async def _ioctl(
        self,
        request: native.Request,
        _inode: int,
        handle: int,
        command: int,
        _argument: int,
        _flags: int,
        data: bytes,
        room: int,
    ) -> None:
        if (answer := flags.answer(command, data)) is not None:
            request.ioctl(0, answer[:room])
            return
        serve = self._ioctls.get(command)
        if serve is None or not handle:
            request.error(errno.ENOTTY)
            return
        request.ioctl(0, (await serve(handle, data))[:room])

    async def _begin(self, handle: int, _data: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return _NUMBER.pack(self._fs.atomic.begin(handle))

    async def _join(self, handle: int, data: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        self._fs.atomic.join(handle, _NUMBER.unpack(data)[0])
        return b""

    async def _commit(self, handle: int, _data: bytes) -> bytes:
        await self._fs.atomic.commit(handle)
        return b""

    async def _abort(self, handle: int, _data: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        self._fs.atomic.abort(handle)
        return b""

    async def _features(self, _handle: int, _data: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return _FLAGS.pack(atomic.FEATURE_ATOMIC_WRITE)


def _span(kind: int, start: int, length: int) -> Span:
    """Return the bytes that a struct flock means; its length is 0 up to the end of any file."""
    last = start + length - 1 if length else TO_THE_END
    return Span(start, last, _MODES[kind])
