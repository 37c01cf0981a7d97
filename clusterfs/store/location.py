"""Where a chunk's stored bytes lie: a segment, a byte range in it, packed into 64 bits. PURE.

A chunk is stored raw, or packed (compressed), in some **units** of 64 bytes. What a client wrote is
raw and has a block of its own; what the cleaner moved starts at any unit.

    bits 0 .. 19    block in the segment
    bits 20 .. 51   segment
    bits 52 .. 57   first unit within the block
    bits 58 .. 63   how many units are stored; 0: raw, that is 64

So the location of a raw chunk in a block of its own is segment << 20 | block, and raw chunks that
lie one behind the other have consecutive locations.
"""

from clusterfs.store.objects import BLOCK_BYTES

UNIT_BYTES = 64
BLOCK_UNITS = BLOCK_BYTES // UNIT_BYTES

SEGMENT_AT, _UNIT_AT, _UNITS_AT = 20, 52, 58
_BLOCK_MASK = (1 << SEGMENT_AT) - 1
_SEGMENT_MASK = (1 << (_UNIT_AT - SEGMENT_AT)) - 1
_UNIT_MASK = BLOCK_UNITS - 1
MAX_SEGMENT_BLOCKS = 1 << SEGMENT_AT


def locate(segment: int, block: int) -> int:
    """Return the location of a raw chunk."""
    return segment << SEGMENT_AT | block


def locate_units(segment: int, block: int, unit: int, units: int) -> int:
    """Return the location of a chunk of so many units; `unit` counts from the start of `block`."""
    assert 0 < units <= BLOCK_UNITS
    block, unit = block + unit // BLOCK_UNITS, unit % BLOCK_UNITS
    return units % BLOCK_UNITS << _UNITS_AT | unit << _UNIT_AT | segment << SEGMENT_AT | block


def segment_of(location: int) -> int:
    """Return the segment."""
    return location >> SEGMENT_AT & _SEGMENT_MASK


def units_of(location: int) -> int:
    """Return how many units are stored."""
    return location >> _UNITS_AT or BLOCK_UNITS


def is_packed(location: int) -> bool:
    """Tell whether the stored bytes are a packed chunk."""
    return location >> _UNITS_AT != 0


def place_of(location: int) -> tuple[int, int, int]:
    """Return (segment, offset, length), in bytes, of the stored bytes."""
    offset = (location & _BLOCK_MASK) * BLOCK_BYTES
    offset += (location >> _UNIT_AT & _UNIT_MASK) * UNIT_BYTES
    return location >> SEGMENT_AT & _SEGMENT_MASK, offset, units_of(location) * UNIT_BYTES
