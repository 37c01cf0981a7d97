"""Locations pack and unpack."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterfs.store.location import (
    BLOCK_UNITS,
    UNIT_BYTES,
    is_packed,
    locate,
    locate_units,
    place_of,
    segment_of,
    units_of,
)
from clusterfs.store.objects import BLOCK_BYTES

SEGMENTS = st.integers(0, 2**32 - 1)
BLOCKS = st.integers(0, 2**20 - 1)


@given(SEGMENTS, BLOCKS)
def test_a_raw_chunk_has_a_block_of_its_own(segment: int, block: int) -> None:
    location = locate(segment, block)
    assert not is_packed(location)
    assert (segment_of(location), units_of(location)) == (segment, BLOCK_UNITS)
    assert place_of(location) == (segment, block * BLOCK_BYTES, BLOCK_BYTES)


@given(SEGMENTS, st.integers(0, 2**19), st.integers(0, 5000), st.integers(1, BLOCK_UNITS - 1))
def test_a_packed_chunk_has_some_units(segment: int, block: int, unit: int, units: int) -> None:
    location = locate_units(segment, block, unit, units)
    assert location < 2**64
    assert is_packed(location)
    assert (segment_of(location), units_of(location)) == (segment, units)
    offset = block * BLOCK_BYTES + unit * UNIT_BYTES
    assert place_of(location) == (segment, offset, units * UNIT_BYTES)


@pytest.mark.parametrize("units", [0, BLOCK_UNITS + 1])
def test_a_chunk_has_one_block_at_most(units: int) -> None:
    with pytest.raises(AssertionError):
        locate_units(1, 1, 0, units)
