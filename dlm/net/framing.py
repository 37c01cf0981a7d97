"""Frames on a byte stream: a fixed header, a body, a payload, an xxh32 over it all. PURE.

Little-endian, 48 bytes, then the body, then the payload:

    offset  size  field
         0     4  xxh32 of everything that follows in this frame
         4     4  length of the body
         8     4  length of the payload
        12     1  kind
        13     1  channel
        14     2  code of a refusal, else 0
        16     8  sequence; 0 outside the sequence (handshake, ACK, PING)
        24     8  highest sequence the sender has received: a cumulative acknowledgement
        32     8  call number; 0 for one-way messages
        40     8  the sender's epoch

Invariants: nothing is looked at beyond the lengths before the checksum fits; no more than one frame
of at most `limit` bytes is buffered beside the fixed window; what is handed out is immutable.
"""

import enum
import struct
from typing import TypeAlias

import msgspec
import xxhash

from dlm.net.errors import Malformed

Buffer: TypeAlias = bytes | bytearray | memoryview

HEADER = struct.Struct("<IIIBBHQQQQ")
HEADER_BYTES = HEADER.size
_REST = struct.Struct("<IIBBHQQQQ")
_CHECKSUM = struct.Struct("<I")

FRAME_LIMIT = 16 << 20
HANDSHAKE_LIMIT = 4 << 10
WINDOW_BYTES = 256 << 10
BULK_BYTES = 16 << 10  # a payload from this size on is written from where it lies
_ALL = 1 << 62


class Kind(enum.IntEnum):
    """What a frame is for. Below 16: handshake; below 32: sequenced; from 32: neither."""

    HELLO = 1
    CHALLENGE = 2
    PROOF = 3
    WELCOME = 4
    REJECT = 5
    MESSAGE = 16
    CALL = 17
    REPLY = 18
    REFUSED = 19
    PART = 20  # the front of the payload of the next sequenced frame that is no PART
    ACK = 32
    PING = 33


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One frame as it was received."""

    kind: int
    channel: int
    code: int
    sequence: int
    ack: int
    call: int
    epoch: int
    body: bytes
    payload: bytes


def encode(  # noqa: PLR0913, PLR0917  the header's fields; one call site each for session and handshake
    kind: int,
    channel: int,
    code: int,
    sequence: int,
    ack: int,
    call: int,
    epoch: int,
    body: bytes,
    payload: Buffer = b"",
) -> tuple[Buffer, ...]:
    """Return the frame as buffers to be written one after the other: bulk payload is not copied."""
    rest = _REST.pack(len(body), len(payload), kind, channel, code, sequence, ack, call, epoch)
    if len(payload) < BULK_BYTES:
        rest = b"".join((rest, body, payload))
        return (_CHECKSUM.pack(xxhash.xxh32_intdigest(rest)) + rest,)
    rest += body
    hasher = xxhash.xxh32(rest)
    hasher.update(payload)
    return (_CHECKSUM.pack(hasher.intdigest()) + rest, payload)


def immutable(payload: Buffer) -> Buffer:
    """Return the payload itself if nobody can change it, else a copy; `len` counts its bytes."""
    if type(payload) is bytes:
        return payload
    view = memoryview(payload)
    if view.readonly and view.c_contiguous:
        return view.cast("B")
    return bytes(view)


class Decoder:
    """Cuts a byte stream into frames: receive into `room`, tell `received`, take `frames`."""

    def __init__(self, limit: int = FRAME_LIMIT, window_bytes: int = WINDOW_BYTES) -> None:
        assert window_bytes >= HEADER_BYTES
        self.limit = limit  # may be raised between frames, after a handshake
        self._window = memoryview(bytearray(window_bytes))
        self._start = 0  # of what is not yet taken
        self._end = 0
        self._large: memoryview | None = None  # the one frame that exceeds the window
        self._filled = 0

    def room(self) -> memoryview:
        """Return where the next bytes go; never empty once `frames` was exhausted."""
        if self._large is not None:
            return self._large[self._filled :]
        return self._window[self._end :]

    def received(self, count: int) -> None:
        """Note that the first `count` bytes of `room` were filled."""
        if self._large is not None:
            self._filled += count
            assert self._filled <= len(self._large)
        else:
            self._end += count
            assert self._end <= len(self._window)

    def frames(self, most: int = _ALL) -> list[Frame]:
        """Take up to `most` complete frames.

        Raises:
            Malformed: too long, or the checksum does not fit; the stream is worthless from here.
        """
        taken: list[Frame] = []
        if self._large is not None:
            if self._filled < len(self._large):
                return taken
            large = self._large
            taken.append(_parse(HEADER.unpack_from(large), large, 0, len(large)))
            self._large = None
        window, start, end, limit = self._window, self._start, self._end, self.limit
        while end - start >= HEADER_BYTES and len(taken) < most:
            header = HEADER.unpack_from(window, start)
            size = HEADER_BYTES + header[1] + header[2]
            if size > limit:
                raise Malformed(f"a frame of {size} bytes, the limit is {limit}")
            if end - start < size:
                break
            taken.append(_parse(header, window, start, size))
            start += size
        if start == end:
            self._start = self._end = 0
            return taken
        self._start = start
        if len(taken) < most:
            self._make_room()
        return taken

    def _make_room(self) -> None:
        """Move an incomplete frame to where its rest fits."""
        start, held = self._start, self._end - self._start
        size = HEADER_BYTES
        if held >= HEADER_BYTES:
            _, body_bytes, payload_bytes, *_ = HEADER.unpack_from(self._window, start)
            size += body_bytes + payload_bytes
        if size > len(self._window):
            self._large = memoryview(bytearray(size))
            self._large[:held] = self._window[start : self._end]
            self._filled = held
            held = 0
        elif start:
            self._window[:held] = bytes(self._window[start : self._end])
        self._start, self._end = 0, held


def _parse(header: tuple[int, ...], buffer: memoryview, start: int, size: int) -> Frame:
    """Return the complete frame at `start`, checked and copied out."""
    checksum, body_bytes, payload_bytes, kind, channel, code, sequence, ack, call, epoch = header
    if xxhash.xxh32_intdigest(buffer[start + 4 : start + size]) != checksum:
        raise Malformed("the checksum of a frame does not fit")
    middle = start + HEADER_BYTES + body_bytes
    body = bytes(buffer[start + HEADER_BYTES : middle])
    payload = bytes(buffer[middle : start + size]) if payload_bytes else b""
    return Frame(kind, channel, code, sequence, ack, call, epoch, body, payload)
