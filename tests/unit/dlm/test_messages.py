import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm.messages import (
    BadMessage,
    Granted,
    Locks,
    Message,
    Queued,
    Record,
    Reign,
    Reigns,
    Request,
    Route,
    Seat,
    Seats,
    decode,
    encode,
)
from dlm.modes import Mode

RECORD = Record(7, b"r", b"l", None, Mode.PR, -3, 8, "who", True, b"v" * 8, 2, 3, False)


@pytest.mark.parametrize(
    "message",
    [
        Request(3, 1, 7, b"root", b"\xff\x00", Mode.EX, 9, "mkdir", Route.ASK),
        Granted(3, 7, Mode.PW, False, True, 2**63 - 1, b"\x80" * 64),
        Queued(2**63 - 1, 7, -5, None),
        Seats(4, (Seat(b"r", 2 << 36, 9, 3), Seat(b"", 1, 1, 0)), last=True),
        Reigns(4, 4, (Reign(b"r", 5),)),
        Locks(4, (Reign(b"r", 5), Reign(b"s", 6)), (RECORD,)),
    ],
)
def test_messages_survive_the_wire(message: Message) -> None:
    assert decode(encode(message)) == message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgpack.packb([99, 1]),
        msgpack.packb({"a": 1}),
        msgpack.packb([9, 1, 7, 6]),  # no such mode
        msgpack.packb([9, -1, 7, 5]),  # no such epoch
        msgpack.packb([9, 1, 7]),  # a field is missing
        msgpack.packb([9, 1, 7, 5]) + b"\x00",
    ],
)
def test_anything_else_is_refused(body: bytes) -> None:
    with pytest.raises(BadMessage):
        decode(body)


@given(st.binary(max_size=200))
def test_garbage_is_a_bad_message_or_a_message_never_a_crash(body: bytes) -> None:
    try:
        message = decode(body)
    except BadMessage:
        return
    assert decode(encode(message)) == message


def test_a_newer_peer_may_append_fields() -> None:
    assert decode(msgpack.packb([5, 1, 7, "from the future"])) == decode(msgpack.packb([5, 1, 7]))
