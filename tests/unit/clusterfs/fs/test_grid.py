"""Writes on the grid of whole blocks, against a plain array of bytes."""

from hypothesis import given
from hypothesis import strategies as st

from clusterfs.fs.grid import Block, partial_blocks, place
from clusterfs.store.objects import BLOCK_BYTES

BLOCKS = 5
OFFSETS = st.one_of(
    st.integers(0, BLOCKS).map(lambda n: n * BLOCK_BYTES),
    st.integers(0, BLOCKS * BLOCK_BYTES),
)


@given(st.lists(st.tuples(OFFSETS, OFFSETS), max_size=6))
def test_blocks_hold_what_was_written_over_what_was_there(ranges: list[tuple[int, int]]) -> None:
    stored = bytes(range(1, 251)) * (BLOCKS * BLOCK_BYTES // 250 + 1)
    wanted = bytearray(stored[: BLOCKS * BLOCK_BYTES])
    blocks: dict[int, Block] = {}
    for number, (one, other) in enumerate(ranges, 251):
        offset, end = min(one, other), max(one, other)
        if offset == end:
            continue
        data = bytes([number % 256]) * (end - offset)
        edges = {
            index: bytearray(
                blocks.get(index) or stored[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
            )
            for index in partial_blocks(offset, end)
        }
        place(blocks, offset, memoryview(data), edges)
        wanted[offset:end] = data
    for index in range(BLOCKS):
        at = index * BLOCK_BYTES
        found = blocks.get(index) or stored[at : at + BLOCK_BYTES]
        assert bytes(found) == wanted[at : at + BLOCK_BYTES]
