"""The inode record: what stat shows, plus where a file's data and a directory's parent are. PURE.

The record is the value of the key `a` of an inode object: a format number, then fixed big-endian
fields (docs/formats/inode.md). Fields are only appended: a reader takes the prefix that it knows,
and gives fields that an older record lacks their defaults.

`size` in a stored record never covers data that is not in the store yet, so `encode` takes it
apart from the record in memory, whose size is the true one.
"""

import stat
import struct

import msgspec

from clusterfs.errors import FilesystemError
from clusterfs.store.objects import BLOCK_BYTES

FORMAT = 1
MAXIMUM_SIZE = 16 << 40
MAXIMUM_LINKS = 2**31 - 1

UNNAMED = 2  # flag: made without a name (O_TMPFILE), and may be given one
ACCESS_ACL = 4  # flag: there is an access ACL beside the mode
DEFAULT_ACL = 8  # flag: a directory hands an ACL down
CAPABILITY = 16  # flag: there is a security.capability, which goes when the contents change
ATOMIC_FSYNC = 1  # flag: what is written between two fsyncs becomes durable together; inherited

_FIELDS = struct.Struct(">BIIIIIQqqqqQQQ")
_FLAGS_AT = _FIELDS.size  # a u8; records older than it lack it
_QUOTA_AT = _FLAGS_AT + 1  # a u64; records older than it lack it
_WHOLE = struct.Struct(">BIIIIIQqqqqQQQBQ")
_NS_LIMIT = 2**63 - 1


class Record(msgspec.Struct, gc=False):
    """One inode's attributes, in memory. Times are nanoseconds since 1970; mutable on purpose."""

    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    seed: int  # placement of stripes above 0
    blocks: int  # 4 KiB blocks written, an upper bound of those allocated
    parent: int  # of a directory: the directory it is in; 0 otherwise
    flags: int = 0
    quota: int = 0  # the directory whose quota counts this; 0: none

    @property
    def is_directory(self) -> bool:
        """Tell whether this is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def atomic_fsync(self) -> bool:
        """Tell whether dirty data may only be committed all at once, when somebody asks."""
        return bool(self.flags & ATOMIC_FSYNC)

    @property
    def is_regular(self) -> bool:
        """Tell whether this is a regular file."""
        return stat.S_ISREG(self.mode)

    def touch(self, now_ns: int) -> None:
        """Note that the contents changed."""
        self.mtime_ns = self.ctime_ns = now_ns

    def changed(self, **fields: int) -> "Record":
        """Return a copy with some fields replaced."""
        return msgspec.structs.replace(self, **fields)


def fresh(mode: int, uid: int, gid: int, now_ns: int, **fields: int) -> Record:
    """Return the record of an inode made now."""
    nlink = 2 if stat.S_ISDIR(mode) else 1
    empty = Record(mode, nlink, uid, gid, 0, 0, now_ns, now_ns, now_ns, now_ns, 0, 0, 0)
    return empty.changed(**fields)


def encode(record: Record, size: int) -> bytes:
    """Return the stored form, with `size` in place of the record's."""
    try:
        return _pack(record, size)
    except struct.error:  # a time that no program means
        return _pack(_clamped(record), size)


def _clamped(record: Record) -> Record:
    names = ("atime_ns", "mtime_ns", "ctime_ns", "btime_ns")
    times = {name: max(-_NS_LIMIT, min(_NS_LIMIT, getattr(record, name))) for name in names}
    return record.changed(**times)


def _pack(record: Record, size: int) -> bytes:
    return _WHOLE.pack(
        FORMAT,
        record.mode,
        record.nlink,
        record.uid,
        record.gid,
        record.rdev,
        size,
        record.atime_ns,
        record.mtime_ns,
        record.ctime_ns,
        record.btime_ns,
        record.seed,
        record.blocks,
        record.parent,
        record.flags,
        record.quota,
    )


def decode(stored: bytes) -> Record:
    """Return the record that `encode` stored; raises FilesystemError for a foreign format."""
    if len(stored) < _FIELDS.size or stored[0] < FORMAT:
        raise FilesystemError(f"inode record of {len(stored)} bytes, format {stored[:1]!r}")
    flags = stored[_FLAGS_AT] if len(stored) > _FLAGS_AT else 0
    record = Record(*_FIELDS.unpack_from(stored)[1:])
    record.flags = flags
    record.quota = int.from_bytes(stored[_QUOTA_AT : _QUOTA_AT + 8], "big")
    return record


def blocks_of(size: int) -> int:
    """Return how many blocks hold `size` bytes."""
    return -(-size // BLOCK_BYTES)
