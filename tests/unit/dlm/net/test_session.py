"""Whatever is pushed arrives once and in order, over any number of connections."""

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dlm.net.errors import Malformed, SessionLost
from dlm.net.framing import HEADER_BYTES, Buffer, Decoder, Frame, Kind
from dlm.net.session import ACK_BYTES, ACK_FRAMES, Session

FRAME_LIMIT = HEADER_BYTES + 100


def parse(buffers: tuple[Buffer, ...] | list[Buffer]) -> list[Frame]:
    data = b"".join(buffers)
    decoder = Decoder(window_bytes=len(data) + HEADER_BYTES)
    decoder.room()[: len(data)] = data
    decoder.received(len(data))
    return decoder.frames()


def message(session: Session, body: bytes, payload: bytes = b"") -> list[Frame]:
    return parse(session.push(Kind.MESSAGE, 1, 0, 0, 9, body, payload))


class Wires(RuleBasedStateMachine):
    """Two sessions and what is under way between them; a list of all that was sent is the model."""

    def __init__(self) -> None:
        super().__init__()
        self.sessions = [Session(FRAME_LIMIT, 1000), Session(FRAME_LIMIT, 1000)]
        self.wires: list[deque[Frame]] = [deque(), deque()]  # towards 0, towards 1
        self.sent: list[list[tuple[bytes, bytes]]] = [[], []]  # by 0, by 1
        self.got: list[list[tuple[bytes, bytes]]] = [[], []]  # by 0, by 1
        self.up = True

    @rule(side=st.integers(0, 1), body=st.binary(max_size=50), payload=st.binary(max_size=400))
    def push(self, side: int, body: bytes, payload: bytes) -> None:
        frames = message(self.sessions[side], body, payload)
        self.sent[side].append((body, payload))
        if self.up:
            self.wires[1 - side].extend(frames)

    @rule(side=st.integers(0, 1), kind=st.sampled_from([Kind.ACK, Kind.PING]))
    def tell(self, side: int, kind: Kind) -> None:
        if self.up:
            self.wires[1 - side].extend(parse(self.sessions[side].control(kind, 1)))

    @rule(side=st.integers(0, 1), count=st.integers(1, 10))
    def carry(self, side: int, count: int) -> None:
        for _ in range(min(count, len(self.wires[side]))):
            frame = self.sessions[side].accept(self.wires[side].popleft())
            if frame is not None:
                self.got[side].append((frame.body, frame.payload))

    @rule()
    def cut(self) -> None:
        self.up = False
        for wire in self.wires:
            wire.clear()

    @rule(repeat=st.booleans())
    def reconnect(self, repeat: bool) -> None:  # noqa: FBT001  drawn
        self.cut()
        self.up = True
        received = [session.received for session in self.sessions]
        for side, session in enumerate(self.sessions):
            frames = parse(session.resume(received[1 - side]))
            self.wires[1 - side].extend(frames)
            if repeat:
                self.wires[1 - side].extend(frames)  # duplicates do no harm

    @invariant()
    def delivered_is_what_was_sent(self) -> None:
        for side, session in enumerate(self.sessions):
            session.validate()
            got = self.got[side]
            assert got == self.sent[1 - side][: len(got)]

    def teardown(self) -> None:
        self.reconnect(repeat=False)
        for side in (0, 1):
            self.carry(side, len(self.wires[side]))
            assert self.got[side] == self.sent[1 - side]
        for side in (0, 1):
            self.tell(side, Kind.ACK)
            self.carry(1 - side, 1)
        assert [session.unacked_bytes for session in self.sessions] == [0, 0]


TestWires = Wires.TestCase
TestWires.settings = settings(max_examples=60, stateful_step_count=40)


def test_a_gap_is_malformed() -> None:
    here, there = Session(), Session()
    message(here, b"lost")
    (second,) = message(here, b"second")
    with pytest.raises(Malformed, match="sequence 2 after 0"):
        there.accept(second)


def test_acknowledging_what_was_never_sent_is_malformed() -> None:
    here, there = Session(), Session()
    (first,) = message(there, b"first")
    here.accept(first)
    (ack,) = parse(here.control(Kind.ACK, 1))
    with pytest.raises(Malformed, match="only 0 were sent"):
        Session().accept(ack)


@pytest.mark.parametrize(("kind", "sequence"), [(99, 0), (99, 1), (Kind.HELLO, 1), (Kind.CALL, 0)])
def test_kinds_out_of_place_are_malformed(kind: int, sequence: int) -> None:
    with pytest.raises(Malformed):
        Session().accept(Frame(kind, 1, 0, sequence, 0, 0, 0, b"", b""))


def test_a_peer_that_forgot_ends_the_session() -> None:
    here, there = Session(), Session()
    (first,) = message(here, b"first")
    there.accept(first)
    (ack,) = parse(there.control(Kind.ACK, 1))
    here.accept(ack)
    with pytest.raises(SessionLost):
        here.resume(0)
    with pytest.raises(SessionLost):
        here.resume(2)


def test_parts_without_an_end_are_bounded() -> None:
    here, there = Session(FRAME_LIMIT, 10_000), Session(FRAME_LIMIT, 300)
    first, second, third, fourth, *_ = message(here, b"", bytes(5000))
    for frame in (first, second, third):
        there.accept(frame)
    with pytest.raises(Malformed, match="more than 300 bytes"):
        there.accept(fourth)
    there.validate()


def test_an_acknowledgement_is_owed_after_many_frames_or_bytes() -> None:
    here, there = Session(), Session()
    owed = []
    for _ in range(ACK_FRAMES):
        (frame,) = message(here, b"x")
        there.accept(frame)
        owed.append(there.owes_ack)
    assert owed == [False] * (ACK_FRAMES - 1) + [True]
    there.control(Kind.ACK, 1)
    owed = [there.owes_ack]
    frame = message(here, b"", bytes(ACK_BYTES))[0]
    there.accept(frame)
    assert [*owed, there.owes_ack] == [False, True]


def test_mutable_payload_is_resent_as_it_was() -> None:
    here, there = Session(FRAME_LIMIT, 10_000), Session(FRAME_LIMIT, 10_000)
    page = bytearray(b"a" * 1000)
    here.push(Kind.MESSAGE, 1, 0, 0, 1, b"", page)
    page[:] = b"b" * 1000
    taken = [there.accept(frame) for frame in parse(here.resume(0))]
    assert taken[-1] is not None
    assert taken[-1].payload == b"a" * 1000
    assert here.resent == len(taken) == 10
