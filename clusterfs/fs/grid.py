"""Writes of any bytes, laid on the grid of whole blocks that the store keeps. PURE."""

from clusterfs.store.objects import BLOCK_BYTES

MASK = BLOCK_BYTES - 1
SHIFT = BLOCK_BYTES.bit_length() - 1

Block = bytes | bytearray | memoryview


def partial_blocks(offset: int, end: int) -> set[int]:
    """Return which blocks the bytes [offset, end) fill only in part: none, one or two."""
    found = {offset >> SHIFT} if offset & MASK else set()
    if end & MASK:
        found.add(end >> SHIFT)
    return found


def place(
    blocks: dict[int, Block], offset: int, view: memoryview, edges: dict[int, bytearray]
) -> None:
    """Put the bytes at `offset` into `blocks`; whole ones are not copied.

    edges: the old content of the blocks that are filled in part; it is changed and kept.
    """
    if not edges:
        cut = [view[at : at + BLOCK_BYTES] for at in range(0, len(view), BLOCK_BYTES)]
        blocks.update(enumerate(cut, offset >> SHIFT))
        return
    position = 0
    for index in range(offset >> SHIFT, ((offset + len(view) - 1) >> SHIFT) + 1):
        edge = edges.get(index)
        if edge is None:
            blocks[index] = view[position : position + BLOCK_BYTES]
            position += BLOCK_BYTES
            continue
        start = (offset + position) & MASK
        taken = min(BLOCK_BYTES - start, len(view) - position)
        edge[start : start + taken] = view[position : position + taken]
        blocks[index] = edge
        position += taken
