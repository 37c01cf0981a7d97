"""What goes in and out of the filesystem's door: callers, attributes, entries, handles. PURE."""

from collections.abc import Callable

import msgspec

from clusterfs.fs.attributes import Record


class Caller(msgspec.Struct, frozen=True, gc=False):
    """Who asks."""

    uid: int = 0
    gid: int = 0
    pid: int = 0
    umask: int = 0
    groups: tuple[int, ...] = ()
    capabilities: int = 0  # of somebody who is not root; only where groups are known, too


Writer = Callable[[], Caller]  # who writes, asked only where it matters


class Attributes(msgspec.Struct, frozen=True, gc=False):
    """What stat shows; `blocks` counts 512 bytes."""

    inode: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A name's target; `attributes` None is a name that does not exist, for `entry_timeout_s`."""

    attributes: Attributes | None
    entry_timeout_s: float
    attribute_timeout_s: float


class Status(msgspec.Struct, frozen=True, gc=False):
    """The answer to getattr and setattr."""

    attributes: Attributes
    attribute_timeout_s: float


class Opened(msgspec.Struct, frozen=True, gc=False):
    """A handle, and whether its reads may fill and use the kernel's page cache."""

    handle: int
    direct_io: bool
    keep_cache: bool


class Created(msgspec.Struct, frozen=True, gc=False):
    """The answer to create."""

    entry: Entry
    opened: Opened


class Listed(msgspec.Struct, frozen=True, gc=False):
    """One entry of a directory's listing. `cookie` is where the next page starts after it."""

    name: bytes
    inode: int
    kind: int  # S_IFMT(mode) >> 12
    cookie: int
    entry: Entry | None  # with attributes, if they were asked for and cheap


class Changes(msgspec.Struct, frozen=True, gc=False):
    """What setattr is to change; None leaves a field alone."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None


class Statfs(msgspec.Struct, frozen=True, gc=False):
    """The answer to statfs, in blocks of `block_bytes`."""

    block_bytes: int
    blocks: int
    free: int
    files: int
    files_free: int
    name_bytes: int


def attributes_of(inode: int, record: Record) -> Attributes:
    """Return what stat shows of a record."""
    return Attributes(
        inode,
        record.mode,
        record.nlink,
        record.uid,
        record.gid,
        record.rdev,
        record.size,
        record.blocks * 8,
        record.atime_ns,
        record.mtime_ns,
        record.ctime_ns,
        record.btime_ns,
    )
