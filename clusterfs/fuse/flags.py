"""The ioctls of lsattr and chattr, of a filesystem that keeps no flags of files. PURE.

There are no flags, no projects, and no generations, for inode numbers are never used again: so all
that can be asked for is 0, and setting what is so already succeeds. Anything else is refused
with EOPNOTSUPP, which chattr and those who only want a file without copy-on-write understand.

Source: linux/fs.h (FS_IOC_*, struct fsxattr).
"""

import struct
from typing import Final

from clusterfs.errors import NotSupported

GET_VERSION: Final = 0x80087601
GET_FLAGS: Final = 0x80086601
SET_FLAGS: Final = 0x40086602
GET_FSXATTR: Final = 0x801C581F
SET_FSXATTR: Final = 0x401C5820

_FSXATTR = struct.Struct("=IIIII8x")  # flags, extent size, extents (ignored), project, cow size
_WORD: Final = 4  # the numbers say long, but programs have room for an int
_ANSWERS: Final = {
    GET_VERSION: bytes(_WORD),
    GET_FLAGS: bytes(_WORD),
    GET_FSXATTR: bytes(_FSXATTR.size),
}


def answer(command: int, data: bytes) -> bytes | None:
    """Return what an ioctl answers; None: it is none of these. Raises NotSupported."""
    if command == SET_FLAGS:
        wanted = any(data[:_WORD])
    elif command == SET_FSXATTR:
        xflags, extent_size, _, project, cow_size = _FSXATTR.unpack(data)
        wanted = any((xflags, extent_size, project, cow_size))
    else:
        return _ANSWERS.get(command)
    if wanted:
        raise NotSupported("no flags of files are kept")
    return b""
