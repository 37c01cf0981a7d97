"""The answer to FUSE_STATX, byte by byte: stat's fields and the birth time. PURE but for makedev.

Source: struct fuse_statx_out in linux/fuse.h (protocol 7.39, kernel 6.6):

| bytes | field                                                                              |
|-------|------------------------------------------------------------------------------------|
| 8 + 4 | how long the kernel may believe it: seconds, nanoseconds                           |
| 4, 16 | flags, spare                                                                       |
| 4, 4  | mask of what is given, block size                                                  |
| 8     | attributes: none are kept                                                          |
| 4 x 3 | links, uid, gid                                                                    |
| 2, 2  | mode, spare                                                                        |
| 8 x 4 | inode, size, blocks of 512 bytes, mask of attributes                               |
| 16 x 4| access, birth, change, modification: seconds i64, nanoseconds u32, 4 reserved      |
| 4 x 4 | device numbers: of the special file, of the filesystem (the kernel puts its own)   |
| 112   | spare                                                                              |
"""

import os
import struct
from typing import Final

from clusterfs.fs.results import Status

_BASIC_STATS: Final = 0x7FF
_BTIME: Final = 0x800
_BLOCK_BYTES: Final = 4096
_SECOND_NS: Final = 10**9

_OUT = struct.Struct("=QII16xIIQIIIHxxQQQQ" + "qIxxxx" * 4 + "IIII112x")


def encode(status: Status) -> bytes:
    """Return the body of the reply."""
    attributes = status.attributes
    valid_ns = int(status.attribute_timeout_s * _SECOND_NS)
    times = (
        attributes.atime_ns,
        attributes.btime_ns,
        attributes.ctime_ns,
        attributes.mtime_ns,
    )
    return _OUT.pack(
        *divmod(valid_ns, _SECOND_NS),
        0,
        _BASIC_STATS | _BTIME,
        _BLOCK_BYTES,
        0,
        attributes.nlink,
        attributes.uid,
        attributes.gid,
        attributes.mode,
        attributes.inode,
        attributes.size,
        attributes.blocks,
        0,
        *(part for time_ns in times for part in divmod(time_ns, _SECOND_NS)),
        os.major(attributes.rdev),
        os.minor(attributes.rdev),
        0,
        0,
    )
