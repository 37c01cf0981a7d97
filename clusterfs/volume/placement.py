"""Where things live: inode numbers, and the group of each object. PURE.

An inode number is group (10 bits) | incarnation (24 bits) | counter (28 bits), below 2**63, so a
number is never used twice and tells its group and its maker without a look-up. The root directory
is inode 1.

A file's stripes are spread by its placement seed: the number of the inode for which the data was
first written. Stripe 0 lies in the seed's own group, so that a small file is a single-group affair;
a clone inherits the seed, and so lies where its origin does.
"""

import struct
from collections.abc import Iterable

import xxhash

from clusterfs.cluster.views import View

ROOT_INODE = 1

_COUNTER_BITS = 28
_INCARNATION_BITS = 24
_GROUP_SHIFT = _COUNTER_BITS + _INCARNATION_BITS
_SEED = struct.Struct(">QQ")

MAX_GROUPS = 1 << 10
MAX_COUNTER = (1 << _COUNTER_BITS) - 1


def inode_number(group: int, incarnation: int, counter: int) -> int:
    """Return the number that names (incarnation, counter) in a group."""
    assert 0 <= group < MAX_GROUPS, group
    assert 0 < incarnation < 1 << _INCARNATION_BITS, incarnation
    assert 0 <= counter <= MAX_COUNTER, counter
    return group << _GROUP_SHIFT | incarnation << _COUNTER_BITS | counter


def incarnation_of_inode(inode: int) -> int | None:
    """Return the incarnation that made the number up; None: the root directory's is given."""
    return inode >> _COUNTER_BITS & (1 << _INCARNATION_BITS) - 1 or None


def group_of_inode(inode: int, groups: int) -> int:
    """Return the group of an inode object."""
    return (inode >> _GROUP_SHIFT) % groups


def group_of_stripe(seed: int, stripe: int, groups: int) -> int:
    """Return the group of a stripe of a file with that placement seed."""
    if stripe == 0:
        return group_of_inode(seed, groups)
    return xxhash.xxh3_64_intdigest(_SEED.pack(seed, stripe)) % groups


def fresh_group(incarnation: int, counter: int, groups: int) -> int:
    """Return the group for a new directory: spread evenly over all."""
    return xxhash.xxh3_64_intdigest(_SEED.pack(incarnation, counter)) % groups


def targets(view: View, group: int) -> int:
    """Return the mask of replicas that must receive each transaction on the group."""
    return view.in_sync[group] | view.syncing[group]


def replica_nodes(view: View) -> int:
    """Return the mask of all nodes that are a replica of some running group."""
    mask = 0
    for in_sync, syncing, stopped in zip(view.in_sync, view.syncing, view.stopped, strict=True):
        if not stopped:
            mask |= in_sync | syncing
    return mask


def groups_to_bitmap(groups: Iterable[int]) -> bytes:
    """Return a set of groups as bytes, group 0 the lowest bit of the first byte."""
    mask = 0
    for group in groups:
        mask |= 1 << group
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


def bitmap_to_groups(bitmap: bytes) -> set[int]:
    """Return the set of groups in a bitmap."""
    mask = int.from_bytes(bitmap, "little")
    return {group for group in range(mask.bit_length()) if mask >> group & 1}
