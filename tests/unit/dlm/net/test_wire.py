"""Messages keep their types over the wire; everything else is malformed."""

from typing import Annotated

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm.net.errors import Malformed
from dlm.net.wire import decode, encode


class Old(msgspec.Struct, frozen=True, array_like=True, tag=1):
    number: Annotated[int, msgspec.Meta(ge=0, le=9)]
    data: bytes


class New(msgspec.Struct, frozen=True, array_like=True, tag=1):
    number: int
    data: bytes
    pairs: tuple[tuple[int, bytes], ...] = ()


class Other(msgspec.Struct, frozen=True, array_like=True, tag=2):
    name: str


@given(st.integers(0, 9), st.binary(max_size=50))
def test_a_message_arrives_as_it_was(number: int, data: bytes) -> None:
    assert decode(encode(Old(number, data)), Old | Other) == Old(number, data)  # type: ignore[arg-type]


def test_older_and_newer_read_each_other() -> None:
    assert decode(encode(New(1, b"x", ((1, b"y"),))), Old) == Old(1, b"x")
    assert decode(encode(Old(1, b"x")), New) == New(1, b"x")


@given(st.binary(max_size=60))
def test_noise_is_malformed_or_happens_to_be_right(noise: bytes) -> None:
    try:
        taken = decode(noise, Old)
    except Malformed:
        return
    assert type(taken) is Old


@pytest.mark.parametrize(
    "data",
    [
        encode(New(10, b"")),
        encode(Other("x")),
        encode(Old(1, b"x"))[:-1],
        b"\x91" * 10_000,
        b"\xdd\xff\xff\xff\xff",
    ],
)
def test_out_of_range_of_another_type_truncated_nested_or_huge(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode(data, Old)
