"""A filesystem in a few dicts, with the interface of clusterfs.fs.filesystem.Filesystem.

It notes what arrives (`events`) and can park requests: those whose tag is in `parked` wait until
`unpark` takes the tag out.
"""

import errno
import os
import stat
from collections import Counter
from typing import Any, ClassVar

import trio

from clusterfs.errors import FilesystemError, NoSuchEntry, WouldBlock
from clusterfs.fs.results import (
    Attributes,
    Caller,
    Changes,
    Created,
    Entry,
    Listed,
    Opened,
    Statfs,
    Status,
)

TIMEOUT_S = 1000.0  # so that only an invalidation can make the kernel ask again


class Exploding(FilesystemError):
    errno: ClassVar[int] = errno.ECHILD


class Node:
    def __init__(self, number: int, mode: int) -> None:
        self.number = number
        self.mode = mode
        self.data = bytearray()
        self.names: dict[bytes, int] = {}
        self.xattrs: dict[bytes, bytes] = {}
        self.nlink = 1


class NoLocks:
    """Locks that nobody contends; but files are closed."""

    async def flock(self, _handle: int, _owner: int, _pid: int, _mode: Any, *, wait: bool) -> None:
        pass

    def closed(self, handle: int, owner: int) -> None:
        pass

    def released(self, handle: int) -> None:
        pass


class NothingAtOnce:
    """Lets every request go the way of those that wait."""

    def refuse(self, *_: object, **__: object) -> Any:
        raise WouldBlock

    lookup = getattr = open = release = refuse


class MemoryFilesystem:
    def __init__(self) -> None:
        self.file_locks = NoLocks()
        self.at_once = NothingAtOnce()
        self.nodes = {1: Node(1, stat.S_IFDIR | 0o755)}
        self.handles: dict[int, tuple[Node, int]] = {}
        self.lookups: Counter[int] = Counter()
        self.events: list[str] = []
        self.parked: set[str] = set()
        self.waiting: Counter[str] = Counter()
        self._released = trio.Event()
        self._next = 2

    # ---- what tests do to it ----

    def unpark(self, tag: str) -> None:
        self.parked.discard(tag)
        self._released.set()
        self._released = trio.Event()

    async def _pass(self, tag: str, *, quietly: bool = False) -> None:
        if not quietly:
            self.events.append(tag)
        while tag in self.parked:
            self.waiting[tag] += 1
            await self._released.wait()
            self.waiting[tag] -= 1

    # ---- the interface ----

    async def lookup(self, parent: int, name: bytes, _caller: Caller) -> Entry:
        await self._pass(f"lookup {name.decode()}")
        number = self._directory(parent).names.get(name)
        return self._looked_up(number) if number else Entry(None, TIMEOUT_S, 0.0)

    def looked_up(self, number: int) -> None:
        self.lookups[number] += 1

    def forget(self, number: int, count: int) -> bool:
        self.events.append(f"forget {number}")
        self.lookups[number] -= count
        assert self.lookups[number] >= 0
        return self.lookups[number] == 0

    async def getattr(self, number: int) -> Status:
        await self._pass(f"getattr {number}")
        return Status(self._attributes(self.nodes[number]), TIMEOUT_S)

    async def setattr(
        self, number: int, changes: Changes, _handle: int | None, _caller: Caller
    ) -> Status:
        node = self.nodes[number]
        if changes.size is not None:
            del node.data[changes.size :]
            node.data.extend(bytes(changes.size - len(node.data)))
        if changes.mode is not None:
            node.mode = changes.mode
        return Status(self._attributes(node), TIMEOUT_S)

    async def mkdir(self, parent: int, name: bytes, mode: int, _caller: Caller) -> Entry:
        return self._looked_up(self._make(parent, name, mode).number)

    async def mknod(
        self, parent: int, name: bytes, mode: int, _rdev: int, _caller: Caller
    ) -> Entry:
        return self._looked_up(self._make(parent, name, mode).number)

    async def symlink(self, parent: int, name: bytes, target: bytes, _caller: Caller) -> Entry:
        node = self._make(parent, name, stat.S_IFLNK | 0o777)
        node.data = bytearray(target)
        return self._looked_up(node.number)

    async def readlink(self, number: int) -> bytes:
        return bytes(self.nodes[number].data)

    async def link(self, number: int, parent: int, name: bytes, _caller: Caller) -> Entry:
        self._directory(parent).names[name] = number
        self.nodes[number].nlink += 1
        return self._looked_up(number)

    async def unlink(self, parent: int, name: bytes, _caller: Caller) -> None:
        number = self._directory(parent).names.pop(name)
        self.nodes[number].nlink -= 1

    async def rmdir(self, parent: int, name: bytes, caller: Caller) -> None:
        await self.unlink(parent, name, caller)

    async def rename(
        self, parent: int, name: bytes, target: int, new: bytes, _flags: int, _caller: Caller
    ) -> None:
        self._directory(target).names[new] = self._directory(parent).names.pop(name)

    async def access(self, number: int, mask: int, caller: Caller) -> None: ...

    async def setxattr(
        self, number: int, name: bytes, value: bytes, _flags: int, _caller: Caller
    ) -> None:
        if name == b"user.explode":
            raise Exploding
        if name == b"user.bug":
            raise KeyError("bug")
        self.nodes[number].xattrs[name] = value

    async def getxattr(self, number: int, name: bytes) -> bytes:
        try:
            return self.nodes[number].xattrs[name]
        except KeyError:
            raise NoSuchData from None

    async def listxattr(self, number: int, _caller: Caller) -> list[bytes]:
        return list(self.nodes[number].xattrs)

    async def removexattr(self, number: int, name: bytes, _caller: Caller) -> None:
        del self.nodes[number].xattrs[name]

    async def statfs(self, _inode: int) -> Statfs:
        return Statfs(4096, 1000, 500, 100, 50, 255)

    async def open(self, number: int, flags: int, _caller: Caller) -> Opened:
        await self._pass(f"open {number}")
        if flags & os.O_TRUNC:
            del self.nodes[number].data[:]
        return self._opened(self.nodes[number], flags)

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, _caller: Caller
    ) -> Created:
        node = self._make(parent, name, mode)
        return Created(self._looked_up(node.number), self._opened(node, flags))

    def read_nowait(self, handle: int, offset: int, size: int, *, page_io: bool) -> Any:
        node, _ = self.handles[handle]
        if any(f"page {at}" in self.parked for at in range(offset, offset + size, 4096)):
            raise WouldBlock
        self.events.append(f"read {offset} {size} {'cached' if page_io else 'direct'}")
        return memoryview(bytes(node.data[offset : offset + size]))

    async def read(self, handle: int, offset: int, size: int, *, page_io: bool) -> Any:
        for at in range(offset, offset + size, 4096):
            await self._pass(f"page {at}", quietly=True)
        return self.read_nowait(handle, offset, size, page_io=page_io)

    def write_nowait(
        self, handle: int, offset: int, data: bytes, *, page_io: bool, **_: object
    ) -> int:
        if len(data) == 1:  # as if something had to be waited for
            raise WouldBlock
        return self._write(handle, offset, data, page_io=page_io)

    async def write(
        self, handle: int, offset: int, data: bytes, *, page_io: bool, **_: object
    ) -> int:
        await trio.lowlevel.checkpoint()
        return self._write(handle, offset, data, page_io=page_io)

    def _write(self, handle: int, offset: int, data: bytes, *, page_io: bool) -> int:
        self.events.append(f"write {offset} {'cached' if page_io else 'direct'}")
        node, _ = self.handles[handle]
        if len(node.data) < offset:
            node.data.extend(bytes(offset - len(node.data)))
        node.data[offset : offset + len(data)] = data
        return len(data)

    async def flush(self, _handle: int) -> None:
        self.events.append("flush")

    async def fsync(self, _handle: int, *, datasync: bool) -> None:
        self.events.append(f"fsync {datasync}")

    async def release(self, handle: int) -> None:
        self.events.append("release")
        del self.handles[handle]

    async def opendir(self, number: int, _caller: Caller) -> Opened:
        return self._opened(self.nodes[number], 0)

    async def readdir(self, handle: int, cookie: int, most: int) -> list[Listed]:
        node, _ = self.handles[handle]
        page = []
        for index, (name, number) in enumerate(sorted(node.names.items())):
            child = self.nodes[number]
            # Directories are listed without attributes, as a filesystem does if they are dear.
            entry = None if stat.S_ISDIR(child.mode) else self._entry(number)
            page.append(Listed(name, number, child.mode >> 12, index + 1, entry))
        return page[cookie : cookie + most]

    async def fsyncdir(self, _handle: int, *, datasync: bool) -> None:
        self.events.append(f"fsyncdir {datasync}")

    async def releasedir(self, handle: int) -> None:
        del self.handles[handle]

    # ---- inside ----

    def _directory(self, number: int) -> Node:
        node = self.nodes.get(number)
        if node is None:
            raise NoSuchEntry
        return node

    def _make(self, parent: int, name: bytes, mode: int) -> Node:
        node = Node(self._next, mode)
        self._next += 1
        self.nodes[node.number] = node
        self._directory(parent).names[name] = node.number
        return node

    def _opened(self, node: Node, flags: int) -> Opened:
        handle = self._next
        self._next += 1
        self.handles[handle] = (node, flags)
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        return Opened(handle, direct_io=writable, keep_cache=not writable)

    def _looked_up(self, number: int) -> Entry:
        self.looked_up(number)
        return self._entry(number)

    def _entry(self, number: int) -> Entry:
        return Entry(self._attributes(self.nodes[number]), TIMEOUT_S, TIMEOUT_S)

    @staticmethod
    def _attributes(node: Node) -> Attributes:
        size = len(node.data)
        return Attributes(
            node.number, node.mode, node.nlink, 0, 0, 0, size, -(-size // 512), 1, 2, 3, 4
        )


class NoSuchData(FilesystemError):
    errno: ClassVar[int] = errno.ENODATA
