"""What a read is put together from: blocks in the store, and blocks that are newer here."""

from collections.abc import Callable
from typing import NamedTuple

from clusterfs.fs.grid import Block
from clusterfs.fs.inodes import Inode
from clusterfs.store.objects import BLOCK_BYTES, STRIPE_BLOCKS, ObjectId

Overlay = Callable[[Inode, int], Block | None]


class Piece(NamedTuple):
    """Blocks of one stripe: in the store, or one that is newer here."""

    first: int
    blocks: int
    newer: Block | None = None

    def place(self, inode: Inode) -> tuple[ObjectId, int, int, int]:
        """Return where they are in the store."""
        stripe = inode.stripe(self.first // STRIPE_BLOCKS)
        return stripe.object_id, stripe.group, self.first % STRIPE_BLOCKS, self.blocks


def pieces_of(overlay: Overlay, inode: Inode, offset: int, end: int) -> list[Piece]:
    """Cut the blocks of bytes [offset, end) into what one read of one stripe gives, and the newer.

    `overlay` returns a block that is newer here, or None.
    """
    first, beyond = offset // BLOCK_BYTES, (end + BLOCK_BYTES - 1) // BLOCK_BYTES
    limit = (first // STRIPE_BLOCKS + 1) * STRIPE_BLOCKS
    if not inode.dirty and not inode.flushing and beyond <= limit:
        return [Piece(first, beyond - first)]
    pieces: list[Piece] = []
    start = first
    for index in range(first, beyond):
        block = overlay(inode, index)
        if start < index and (block is not None or index % STRIPE_BLOCKS == 0):
            pieces.append(Piece(start, index - start))
            start = index
        if block is not None:
            pieces.append(Piece(index, 1, block))
            start = index + 1
    if start < beyond:
        pieces.append(Piece(start, beyond - start))
    return pieces


def cut(pieces: list[Block], skip: int, length: int) -> bytes:
    """Return `length` bytes of what the pieces hold together, after the first `skip`."""
    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    if skip or len(data) != length:
        data = data[skip : skip + length]
    return data if isinstance(data, bytes) else bytes(data)
