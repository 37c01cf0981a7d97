"""Frames survive any cutting of the stream, and no damage passes for a frame."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm.net.errors import Malformed
from dlm.net.framing import (
    BULK_BYTES,
    HEADER_BYTES,
    Decoder,
    Frame,
    Kind,
    encode,
    immutable,
)

U64 = st.integers(0, 2**64 - 1)
FRAMES = st.lists(
    st.builds(
        Frame,
        st.integers(0, 255),
        st.integers(0, 255),
        st.integers(0, 0xFFFF),
        U64,
        U64,
        U64,
        U64,
        st.binary(max_size=100),
        st.binary(max_size=600),
    ),
    max_size=8,
)


def stream(frames: list[Frame]) -> bytes:
    return b"".join(
        b"".join(
            encode(
                frame.kind,
                frame.channel,
                frame.code,
                frame.sequence,
                frame.ack,
                frame.call,
                frame.epoch,
                frame.body,
                frame.payload,
            )
        )
        for frame in frames
    )


def feed(decoder: Decoder, data: bytes, cuts: random.Random) -> list[Frame]:
    """Receive the data in random pieces; return what came out until it was malformed."""
    frames: list[Frame] = []
    while data:
        room = decoder.room()
        count = min(len(data), len(room), cuts.randint(1, 200))
        room[:count] = data[:count]
        data = data[count:]
        decoder.received(count)
        frames += decoder.frames()
    return frames


@given(FRAMES, st.integers(0, 2**32), st.integers(HEADER_BYTES, 400))
def test_frames_arrive_as_they_were_however_the_stream_is_cut(
    frames: list[Frame], seed: int, window: int
) -> None:
    assert feed(Decoder(window_bytes=window), stream(frames), random.Random(seed)) == frames


@given(FRAMES, st.integers(0, 2**32), st.data())
def test_a_truncated_stream_yields_only_whole_frames(
    frames: list[Frame], seed: int, data: st.DataObject
) -> None:
    whole = stream(frames)
    cut = data.draw(st.integers(0, len(whole)))
    taken = feed(Decoder(window_bytes=100), whole[:cut], random.Random(seed))
    assert taken == frames[: len(taken)]
    assert len(stream(taken)) <= cut
    assert len(stream(frames[: len(taken) + 1])) > cut or len(taken) == len(frames)


@given(FRAMES.filter(bool), st.integers(0, 2**32), st.data())
def test_a_damaged_byte_never_passes_for_a_frame(
    frames: list[Frame], seed: int, data: st.DataObject
) -> None:
    damaged = bytearray(stream(frames))
    place = data.draw(st.integers(0, len(damaged) - 1))
    damaged[place] ^= data.draw(st.integers(1, 255))
    intact = 0
    while len(stream(frames[: intact + 1])) <= place:
        intact += 1
    decoder = Decoder(limit=10_000, window_bytes=200)
    taken: list[Frame] = []
    cuts = random.Random(seed)
    try:
        for start in range(0, len(damaged), 50):
            taken += feed(decoder, bytes(damaged[start : start + 50]), cuts)
    except Malformed:
        pass
    assert taken == frames[: len(taken)]
    assert len(taken) <= intact


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_malformed_and_buffers_no_more_than_one_frame(seed: int) -> None:
    noise = random.Random(seed)
    decoder = Decoder(limit=4096, window_bytes=512)

    def receive_noise() -> None:
        room = decoder.room()
        assert 0 < len(room) <= 4096
        room[:] = noise.randbytes(len(room))
        decoder.received(len(room))
        decoder.frames()

    with pytest.raises(Malformed):
        receive_noise()


def test_a_frame_over_the_limit_is_refused_by_its_header_alone() -> None:
    decoder = Decoder(limit=1000)
    header = stream([Frame(16, 1, 0, 1, 0, 0, 0, b"", b"x" * 1000)])[:HEADER_BYTES]
    decoder.room()[:HEADER_BYTES] = header
    decoder.received(HEADER_BYTES)
    with pytest.raises(Malformed, match="1048 bytes"):
        decoder.frames()


def test_frames_beyond_those_asked_for_stay_for_the_next_time() -> None:
    frames = [Frame(16, 1, 0, n, 0, 0, 0, b"body", b"") for n in range(5)]
    data = stream(frames)
    decoder = Decoder()
    decoder.room()[: len(data)] = data
    decoder.received(len(data))
    assert decoder.frames(1) == frames[:1]
    assert decoder.frames(2) == frames[1:3]
    assert decoder.frames() == frames[3:]


def test_bulk_is_written_from_where_it_lies_and_what_could_change_is_copied() -> None:
    bulk = bytes(BULK_BYTES)
    assert encode(Kind.MESSAGE, 1, 0, 1, 0, 0, 0, b"", bulk)[1] is bulk
    assert immutable(bulk) is bulk
    page = bytearray(b"before")
    kept, shared = immutable(page), immutable(memoryview(page).toreadonly())
    page[:] = b"behind"
    assert (bytes(kept), bytes(shared)) == (b"before", b"behind")
    assert bytes(immutable(memoryview(b"abcdef")[::2])) == b"ace"


def test_the_layout_is_the_documented_one() -> None:
    (data,) = encode(Kind.CALL, 2, 3, 4, 5, 6, 7, b"body", b"pay")
    assert bytes(data)[4:].hex(" ", -8) == (
        bytes.fromhex("04000000 03000000 11 02 0300")
        + b"".join(n.to_bytes(8, "little") for n in (4, 5, 6, 7))
        + b"bodypay"
    ).hex(" ", -8)
