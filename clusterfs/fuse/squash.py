"""A mount whose root is nobody special: uid 0 becomes 65534, with that user's rights.

The kernel checks permissions itself (default_permissions), but lets root do everything; so what
root asks for is checked here once more, as for nobody, before it is done, and what it makes belongs
to nobody. Open handles are as good as they were when they were opened.

Not covered: walking through directories whose names the kernel has cached for somebody else, and
stat. And nothing holds root back that reads the daemon's memory or uses the node's key itself:
this keeps honest programs of root's apart, not an enemy who owns the host.
"""

# ruff: noqa: D102  each method is the FUSE request of its name

import os
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from clusterfs.errors import OperationNotPermitted
from clusterfs.fs.permissions import access_of
from clusterfs.fs.results import Caller
from clusterfs.fuse.again import Again
from clusterfs.fuse.cached import CachedInodes
from clusterfs.fuse.callers import NOBODY, squashed
from clusterfs.fuse.operations import Operations
from clusterfs.fuse.replies import replying

if TYPE_CHECKING:
    from clusterfs.fs.filesystem import Filesystem

_READ, _WRITE, _EXECUTE = os.R_OK, os.W_OK, os.X_OK


class Nobody(NamedTuple):
    """What stands for a request's context; no process, so nobody looks up groups of root's."""

    uid: int
    gid: int
    pid: int
    umask: int


class SquashedOperations(Operations):
    """The handlers, for a node in `exports.root_squash`."""

    _trusts_root = False

    def __init__(
        self, filesystem: "Filesystem", cached: CachedInodes, again: Again | None = None
    ) -> None:
        super().__init__(filesystem, cached, again)
        self.further.squash = partial(check_xattr, filesystem)

    def _writer(self) -> Caller:
        return squashed(super()._writer())

    async def _who(self, ctx: Any, *needed: tuple[int, int]) -> Any:
        """Return who asks, if root may have all this (inode, mask) as nobody. Raises FUSEError."""
        if ctx.uid:
            return ctx
        nobody = Nobody(NOBODY, NOBODY, 0, ctx.umask)
        for inode, mask in needed:
            await self.access(inode, mask, nobody)
        return nobody

    async def lookup(self, parent: int, name: bytes, ctx: Any) -> Any:
        return await super().lookup(parent, name, await self._who(ctx, (parent, _EXECUTE)))

    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, ctx: Any) -> Any:
        who = await self._who(ctx, (parent, _WRITE | _EXECUTE))
        return await super().mknod(parent, name, mode, rdev, who)

    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: Any) -> Any:
        who = await self._who(ctx, (parent, _WRITE | _EXECUTE))
        return await super().mkdir(parent, name, mode, who)

    async def symlink(self, parent: int, name: bytes, target: bytes, ctx: Any) -> Any:
        who = await self._who(ctx, (parent, _WRITE | _EXECUTE))
        return await super().symlink(parent, name, target, who)

    async def link(self, inode: int, parent: int, name: bytes, ctx: Any) -> Any:
        who = await self._who(ctx, (inode, _READ | _WRITE), (parent, _WRITE | _EXECUTE))
        return await super().link(inode, parent, name, who)

    async def unlink(self, parent: int, name: bytes, ctx: Any) -> None:
        await super().unlink(parent, name, await self._who(ctx, (parent, _WRITE | _EXECUTE)))

    async def rmdir(self, parent: int, name: bytes, ctx: Any) -> None:
        await super().rmdir(parent, name, await self._who(ctx, (parent, _WRITE | _EXECUTE)))

    async def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, ctx: Any
    ) -> None:
        mask = _WRITE | _EXECUTE
        who = await self._who(ctx, (parent, mask), (new_parent, mask))
        await super().rename(parent, name, new_parent, new_name, flags, who)

    async def setattr(
        self, inode: int, wanted: Any, fields: Any, handle: int | None, ctx: Any
    ) -> Any:
        by_path = handle is None and (fields.update_size or fields.update_mtime)
        who = await self._who(ctx, *([(inode, _WRITE)] if by_path else []))
        return await super().setattr(inode, wanted, fields, handle, who)

    async def access(self, inode: int, mask: int, ctx: Any) -> bool:
        return await super().access(inode, mask, await self._who(ctx))

    async def open(self, inode: int, flags: int, ctx: Any) -> Any:
        return await super().open(inode, flags, await self._who(ctx, (inode, access_of(flags))))

    async def create(self, parent: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
        who = await self._who(ctx, (parent, _WRITE | _EXECUTE))
        return await super().create(parent, name, mode, flags, who)

    async def opendir(self, inode: int, ctx: Any) -> int:
        return await super().opendir(inode, await self._who(ctx, (inode, _READ)))

    async def listxattr(self, inode: int, ctx: Any) -> list[bytes]:
        return await super().listxattr(inode, await self._who(ctx))

    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        if name.startswith(b"user."):  # the others are asked for by the kernel itself
            await self._who(ctx, (inode, _READ))
        return await super().getxattr(inode, name, ctx)

    @replying
    async def removexattr(self, inode: int, name: bytes, ctx: Any) -> None:
        if not ctx.uid:
            await check_xattr(self._fs, inode, name)
        await super().removexattr(inode, name, await self._who(ctx))


async def check_xattr(filesystem: "Filesystem", inode: int, name: bytes) -> Caller:
    """Return whom root is, if it may change this attribute.

    Raises PermissionDenied, OperationNotPermitted.
    """
    nobody = Caller(NOBODY, NOBODY)
    if name.startswith(b"user."):
        await filesystem.access(inode, _WRITE, nobody)
    elif not (
        name.startswith(b"system.posix_acl_")
        and (await filesystem.getattr(inode)).attributes.uid == NOBODY
    ):
        raise OperationNotPermitted
    return nobody
