"""Packed chunks come back, and garbage is told by its emptiness."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterfs.store.location import UNIT_BYTES, locate, locate_units, place_of
from clusterfs.store.objects import BLOCK_BYTES
from clusterfs.store.packing import Codec, chunk_of, pack, read_chunk, unpack

TEXT = b"".join(b"line %d of a file that compresses\n" % n for n in range(200))[:BLOCK_BYTES]
NOISE = random.Random(1).randbytes(BLOCK_BYTES)


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@given(st.randoms(use_true_random=False), st.integers(0, BLOCK_BYTES))
def test_what_is_packed_comes_back(codec: Codec, source: random.Random, noisy: int) -> None:
    block = source.randbytes(noisy) + TEXT[noisy:]
    stored = pack(block, codec)
    assert len(stored) % UNIT_BYTES == 0
    assert len(stored) <= BLOCK_BYTES
    assert (stored if len(stored) == BLOCK_BYTES else unpack(stored)) == block


@pytest.mark.parametrize("codec", ["off", "lz4", "zstd"])
def test_what_does_not_compress_is_stored_as_it_is(codec: Codec) -> None:
    assert pack(NOISE, codec) == NOISE
    assert (len(pack(TEXT, codec)) < BLOCK_BYTES // 2) == (codec != "off")


@given(st.binary(min_size=UNIT_BYTES, max_size=BLOCK_BYTES - UNIT_BYTES))
def test_garbage_unpacks_to_nothing_or_to_one_block(garbage: bytes) -> None:
    assert len(unpack(garbage)) in (0, BLOCK_BYTES)


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_a_flipped_bit_never_raises(codec: Codec) -> None:
    stored = pack(TEXT, codec)
    for at in range(len(stored) * 8):
        flipped = bytearray(stored)
        flipped[at // 8] ^= 1 << at % 8
        assert len(unpack(flipped)) in (0, BLOCK_BYTES)


def test_a_chunk_is_read_by_its_location() -> None:
    stored = pack(TEXT, "zstd")
    medium = bytes(3 * UNIT_BYTES) + stored + NOISE

    def read(segment: int, offset: int, length: int) -> bytes:
        assert segment == 4
        return medium[offset : offset + length]

    units = len(stored) // UNIT_BYTES
    location = locate_units(4, 0, 3, units)
    assert chunk_of(read(*place_of(location)), location) == TEXT
    assert read_chunk(read, location) == TEXT
    raw = locate_units(4, 0, 3 + units, 64)
    assert read_chunk(read, raw) == NOISE
    assert locate_units(4, 1, 0, 64) == locate(4, 1)
