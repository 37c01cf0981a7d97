"""Compressed chunks: each alone, so that one is read without its neighbours.

A packed chunk is, in whole units of 64 bytes: codec u8 (1 LZ4 block, 2 Zstandard frame), length u16
of what follows, the compressed 4096 bytes, zeros. It is packed only if that saves an eighth; a
block that does not compress is stored raw. The cleaner packs what it moves, so packing costs
no time on the write path, and hot data, which will soon be overwritten, is never packed.

Invariant: unpack(pack(block)) == block; garbage gives b"", never an exception.
"""

import struct
import threading
from collections.abc import Callable
from typing import Literal

import lz4.block
import zstandard

from clusterfs.store.location import BLOCK_UNITS, UNIT_BYTES, is_packed, place_of
from clusterfs.store.objects import BLOCK_BYTES

Codec = Literal["off", "lz4", "zstd"]

_HEAD = struct.Struct("<BH")
_LZ4, _ZSTD = 1, 2
_MOST_UNITS = BLOCK_UNITS * 7 // 8
_LEVEL = 1
_contexts = threading.local()  # Zstandard contexts are not for several threads at once


def pack(block: bytes | memoryview, codec: Codec) -> bytes:
    """Return what to store for 4096 bytes: fewer, in whole units, or the block itself."""
    if codec == "off":
        return bytes(block)
    if codec == "lz4":
        packed: bytes = lz4.block.compress(block, store_size=False)
        number = _LZ4
    else:
        number, packed = _ZSTD, _compressor().compress(block)
    units = -(-(_HEAD.size + len(packed)) // UNIT_BYTES)
    if units > _MOST_UNITS:
        return bytes(block)
    return (_HEAD.pack(number, len(packed)) + packed).ljust(units * UNIT_BYTES, b"\0")


def unpack(stored: bytes | memoryview) -> bytes:
    """Return the 4096 bytes of a packed chunk; b"" for garbage."""
    number, length = _HEAD.unpack_from(stored)
    packed = bytes(stored[_HEAD.size : _HEAD.size + length])
    try:
        if number == _LZ4:
            block: bytes = lz4.block.decompress(packed, uncompressed_size=BLOCK_BYTES)
        elif number == _ZSTD and zstandard.frame_content_size(packed) <= BLOCK_BYTES:
            block = _decompressor().decompress(packed, max_output_size=BLOCK_BYTES)
        else:
            return b""
    except (lz4.block.LZ4BlockError, zstandard.ZstdError):
        return b""
    return block if len(block) == BLOCK_BYTES else b""


def chunk_of(stored: bytes | memoryview, location: int) -> bytes | memoryview:
    """Return the chunk whose stored bytes these are; not verified, b"" for garbage."""
    return unpack(stored) if is_packed(location) else stored


def read_chunk(read: Callable[[int, int, int], bytes], location: int) -> bytes | memoryview:
    """Read a chunk with a Disk's way of reading; not verified, b"" for garbage."""
    return chunk_of(read(*place_of(location)), location)


def _compressor() -> zstandard.ZstdCompressor:
    found: zstandard.ZstdCompressor | None = getattr(_contexts, "compressor", None)
    if found is None:
        found = _contexts.compressor = zstandard.ZstdCompressor(_LEVEL, write_checksum=False)
    return found


def _decompressor() -> zstandard.ZstdDecompressor:
    found: zstandard.ZstdDecompressor | None = getattr(_contexts, "decompressor", None)
    if found is None:
        found = _contexts.decompressor = zstandard.ZstdDecompressor()
    return found
