"""What a read is put together from: blocks in the store, and blocks that are newer here."""

from typing import NamedTuple

from clusterfs.fs.grid import Block
from clusterfs.fs.inodes import Inode
from clusterfs.store.objects import STRIPE_BLOCKS, ObjectId


class Piece(NamedTuple):
    """Blocks of one stripe: in the store, or one that is newer here."""

    first: int
    blocks: int
    newer: Block | None = None

    def place(self, inode: Inode) -> tuple[ObjectId, int, int, int]:
        """Return where they are in the store."""
        stripe = inode.stripe(self.first // STRIPE_BLOCKS)
        return stripe.object_id, stripe.group, self.first % STRIPE_BLOCKS, self.blocks


def cut(pieces: list[Block], skip: int, length: int) -> bytes:
    """Return `length` bytes of what the pieces hold together, after the first `skip`."""
    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    if skip or len(data) != length:
        data = data[skip : skip + length]
    return data if isinstance(data, bytes) else bytes(data)
