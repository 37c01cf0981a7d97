"""What an inode's lock carries from holder to holder: stat after a lock needs no read. PURE.

The value block has 128 bytes, big-endian, zeros at the end:

| offset | bytes | field                                                        |
|--------|-------|--------------------------------------------------------------|
| 0      | 1     | mark: 0 none, 1 orphan, 2 truncating, 3 both                 |
| 1      | 8     | epoch of the inode object's version                          |
| 9      | 8     | counter of that version                                      |
| 17     | 1     | length of the record                                         |
| 18     |       | the inode record as it is stored (docs/formats/inode.md)     |

It is written by whoever gives up EX, when the store has everything; if that is not so, or nothing
is known, the block is made doubtful instead. A holder that dies in EX leaves it doubtful, too. So a
block that may be trusted equals what the store has, but for an access time, which may be later.
"""

import struct
from typing import Final

import msgspec

from clusterfs.fs.attributes import Record, decode, encode
from clusterfs.fs.keys import ORPHAN, ORPHAN_TRUNCATING, TRUNCATING
from clusterfs.store.objects import Version

VALUE_BYTES: Final = 128

_HEAD = struct.Struct(">BQQB")
_MARKS = (None, ORPHAN, TRUNCATING, ORPHAN_TRUNCATING)


class Value(msgspec.Struct, frozen=True):
    """An inode object as the store has it."""

    record: Record
    version: Version
    mark: bytes | None


def pack(value: Value) -> bytes | None:
    """Return the block; None: it does not fit."""
    stored = encode(value.record, value.record.size)
    if _HEAD.size + len(stored) > VALUE_BYTES or value.mark not in _MARKS:
        return None
    version = value.version
    head = _HEAD.pack(_MARKS.index(value.mark), version.epoch, version.counter, len(stored))
    return (head + stored).ljust(VALUE_BYTES, b"\0")


def unpack(block: bytes) -> Value:
    """Return what `pack` was given."""
    mark, epoch, counter, length = _HEAD.unpack_from(block)
    record = decode(block[_HEAD.size : _HEAD.size + length])
    return Value(record, Version(epoch, counter), _MARKS[mark])
