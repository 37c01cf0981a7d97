"""The vocabulary of the store: objects, versions, and the transactions that change them.

An **object** has a version, a group, a map of keys to values (attributes, extended attributes,
directory entries) and blocks of data on a 4 KiB grid. The store knows nothing of files: what the
keys mean is the filesystem's business.

Inode object: part 0. Stripe n of a file's data: part n + 1. An ObjectId is 16 bytes, big endian
(inode number u64, part u64), so ids sort by inode, then stripe.

A **transaction** is applied whole or not at all. The data of its Write operations travels beside it
as one payload: the operations consume it in order, 4096 bytes a block.

Invariants:
  * a change applies only to an object that is at exactly `expected` (ABSENT: must not exist);
  * afterwards the object is at `version` > `expected`, or gone if the last operation is Delete;
  * (client, sequence) names a transaction: applying it twice changes nothing.
"""

import struct
from collections.abc import Iterable
from typing import Annotated, NewType

import msgspec

BLOCK_BYTES = 4096
STRIPE_BYTES = 64 << 20
STRIPE_BLOCKS = STRIPE_BYTES // BLOCK_BYTES

ObjectId = NewType("ObjectId", bytes)

_OBJECT_ID = struct.Struct(">QQ")

U16 = Annotated[int, msgspec.Meta(ge=0, lt=2**16)]
U32 = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
U63 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


def inode_object(inode: int) -> ObjectId:
    """Return the id of the object that holds an inode's attributes and entries."""
    return ObjectId(_OBJECT_ID.pack(inode, 0))


def stripe_object(inode: int, stripe: int) -> ObjectId:
    """Return the id of the object that holds bytes [stripe * 64 MiB, + 64 MiB) of a file."""
    return ObjectId(_OBJECT_ID.pack(inode, stripe + 1))


def joined(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return (first, count) of the stretches in ascending numbers."""
    found: list[tuple[int, int]] = []
    start = end = 0
    for number in numbers:
        if number != end:
            if end > start:
                found.append((start, end - start))
            start = number
        end = number + 1
    if end > start:
        found.append((start, end - start))
    return found


def split_object_id(object_id: ObjectId) -> tuple[int, int]:
    """Return (inode number, part): part 0 is the inode object, n + 1 is stripe n."""
    inode, part = _OBJECT_ID.unpack(object_id)
    return inode, part


class Version(msgspec.Struct, frozen=True, array_like=True, order=True, gc=False):
    """How often an object was changed, and in which view last; totally ordered."""

    epoch: U63
    counter: U63

    def after(self, epoch: int) -> "Version":
        """Return the version that a change made in view `epoch` gives."""
        return Version(max(epoch, self.epoch), self.counter + 1)


ABSENT = Version(0, 0)


class Put(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=1):
    """Set `key` to `value`. A key has at most 320 bytes, a value at most 64 KiB + 64."""

    key: bytes
    value: bytes


class Remove(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=2):
    """Take `key` away; absent is fine."""

    key: bytes


class Write(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=3):
    """Set `count` blocks from `first` to the next count * 4096 bytes of the payload."""

    first: U32
    count: U32


class Discard(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=4):
    """Make `count` blocks from `first` read as zeros again, and free what they held."""

    first: U32
    count: U32


class Delete(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=5):
    """Remove the object with all keys and blocks; must be the change's last operation."""


class Lose(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=6):
    """Say that the data of these blocks is lost: reading them is an error until they are written.

    Replicas do this when they bring an object forward that nobody can read everywhere; clients
    never do.
    """

    first: U32
    count: U32


class Share(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=7):
    """Let `count` blocks from `first` hold what those of `source` from `source_first` hold now.

    No data moves: both objects refer to the same chunks until either is written. The transaction
    must change `source` too (its version is enough), so that no replica shares another state of it.
    """

    first: U32
    count: U32
    source: ObjectId
    source_first: U32


Operation = Put | Remove | Write | Discard | Delete | Lose | Share

# An object that has this key needs work if its client dies (an orphan to reclaim, a mkdir to
# finish). The store keeps an index of such objects: Store.marked().
MARK = b"!"


class Change(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one transaction does to one object."""

    object_id: ObjectId
    group: U16
    expected: Version
    version: Version
    operations: tuple[Operation, ...]


class Transaction(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Changes that happen together or not at all. `epoch`: the client's view when it sent this."""

    client: U63
    sequence: U63
    epoch: U63
    changes: tuple[Change, ...]
