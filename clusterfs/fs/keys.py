"""Keys and values of an inode object, and names that are legal. PURE.

| key         | value                                                        |
|-------------|--------------------------------------------------------------|
| a           | the inode record (attributes.py)                             |
| e + name    | a directory's entry: inode u64, file type u8 (mode >> 12)    |
| x + name    | an extended attribute                                        |
| l           | a symlink's target                                           |
| ! (MARK)    | work to finish if the client dies: ORPHAN or TRUNCATING      |
"""

import struct
from typing import NamedTuple

from clusterfs.errors import InvalidArgument, NameTooLong, NoSuchEntry

RECORD = b"a"
ENTRY = b"e"
XATTR = b"x"
TARGET = b"l"

ORPHAN = b"orphan"  # no name is left; delete it when nobody has it open
TRUNCATING = b"truncating"  # data beyond the size is being deleted
ORPHAN_TRUNCATING = b"orphan, truncating"  # both

ROOT = 1  # the inode of the root directory, as the kernel wants it

NAME_BYTES = 255
TARGET_BYTES = 4095

_ENTRY = struct.Struct(">QB")
ENTRY_BYTES = _ENTRY.size


class Entry(NamedTuple):
    """Where a name leads: the inode and its file type, which never changes."""

    inode: int
    kind: int  # S_IFMT(mode) >> 12, as in d_type

    @property
    def is_directory(self) -> bool:
        """Tell whether the name is a directory's."""
        return self.kind == DIRECTORY


DIRECTORY = 0o04


def encode_entry(entry: Entry) -> bytes:
    """Return the value stored under a name."""
    return _ENTRY.pack(*entry)


def decode_entry(stored: bytes) -> Entry:
    """Return what `encode_entry` stored."""
    return Entry(*_ENTRY.unpack_from(stored))


def check_name(name: bytes) -> None:
    """Refuse what can never be a name."""
    if len(name) > NAME_BYTES:
        raise NameTooLong(f"{len(name)} bytes")
    if not name:
        raise NoSuchEntry("empty name")
    if b"/" in name or b"\0" in name or name in (b".", b".."):
        raise InvalidArgument(f"not a name: {name!r}")
