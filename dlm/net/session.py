"""The memory of a link that outlives its connections: numbers, acknowledgements, resending. PURE.

One session joins one incarnation of this node with one of a peer. Each side numbers what it sends
from 1 and keeps it until the peer acknowledged it; a new connection starts by each side telling the
highest number it has, and the other goes on behind that. So what is pushed arrives once, in order,
over any number of connections.

Payloads beyond one frame travel as PART frames before the frame they belong to.

Invariants: see `validate`.
"""

from collections import deque

import msgspec

from dlm.net.errors import Malformed, SessionLost
from dlm.net.framing import FRAME_LIMIT, HEADER_BYTES, Buffer, Frame, Kind, encode, immutable

MESSAGE_LIMIT = 80 << 20
BODY_LIMIT = 8 << 20
ACK_FRAMES = 64  # so many unanswered frames, or bytes, call for an ACK of their own
ACK_BYTES = 256 << 10

_FIRST_SEQUENCED, _FIRST_CONTROL = 16, 32
_PART = int(Kind.PART)  # looked up and compared ten times as fast as a member of an Enum


class Session:
    """What one side knows about an ordered, lossless link."""

    def __init__(self, frame_limit: int = FRAME_LIMIT, message_limit: int = MESSAGE_LIMIT) -> None:
        self.sent = 0  # highest sequence given out
        self.acked = 0  # highest sequence the peer told it has
        self.unacked_bytes = 0
        self.received = 0  # highest sequence delivered here
        self.told = 0  # highest value of `received` that the peer was told
        self.resent = 0
        self.duplicates = 0
        self._unacked: deque[tuple[int, tuple[Buffer, ...]]] = deque()  # size, frame
        self._untold_bytes = 0
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._frame_room = frame_limit - HEADER_BYTES
        self._message_limit = message_limit

    def push(  # noqa: PLR0913, PLR0917  the header's fields
        self,
        kind: Kind,
        channel: int,
        code: int,
        call: int,
        epoch: int,
        body: bytes,
        payload: Buffer = b"",
    ) -> tuple[Buffer, ...]:
        """Number a message, keep it until acknowledged; return the buffers to write now."""
        assert len(body) <= BODY_LIMIT
        size = len(body) + len(payload)
        front: tuple[Buffer, ...] = ()
        if payload:
            payload = immutable(payload)
            size = len(body) + len(payload)
            if size > self._frame_room:
                assert size <= self._message_limit, size
                front, payload = self._push_parts(epoch, len(body), memoryview(payload))
        return front + self._push_frame(kind, channel, code, call, epoch, body, payload)

    def control(self, kind: Kind, epoch: int) -> tuple[Buffer, ...]:
        """Return an ACK or PING; it tells what was received and is not kept."""
        self._tell()
        return encode(kind, 0, 0, 0, self.received, 0, epoch, b"")

    def accept(self, frame: Frame) -> Frame | None:
        """Return the message that a frame completes, or None.

        Raises:
            Malformed: a gap, a number never sent, too much; drop the connection.
        """
        if frame.ack > self.acked:
            self._acknowledge(frame.ack)
        sequence = frame.sequence
        if sequence != self.received + 1 or frame.kind >= _FIRST_CONTROL:
            self._accept_other(frame)
            return None
        if frame.kind < _FIRST_SEQUENCED:
            raise Malformed(f"frame kind {frame.kind} inside a session")
        self.received = sequence
        self._untold_bytes += len(frame.body) + len(frame.payload)
        if frame.kind == _PART:
            self._keep_part(frame.payload)
            return None
        return self._assemble(frame) if self._parts else frame

    @property
    def owes_ack(self) -> bool:
        """Whether so much came in unanswered that the peer should hear of it now."""
        return self.received - self.told >= ACK_FRAMES or self._untold_bytes >= ACK_BYTES

    def resume(self, peer_received: int) -> list[Buffer]:
        """Start on a new connection: return what the peer does not have yet, to be written first.

        Raises:
            SessionLost: the peer lacks what it acknowledged once, or has what was never sent.
        """
        if not self.acked <= peer_received <= self.sent:
            raise SessionLost(
                f"the peer has {peer_received}, acknowledged {self.acked} of {self.sent} sent"
            )
        self._acknowledge(peer_received)
        self._tell()
        self.resent += len(self._unacked)
        return [buffer for _, buffers in self._unacked for buffer in buffers]

    def clear(self) -> None:
        """Free everything kept; the session is at its end."""
        self._unacked.clear()
        self._parts.clear()
        self.acked, self.unacked_bytes, self._parts_bytes = self.sent, 0, 0

    def validate(self) -> None:
        """Check what always holds."""
        assert 0 <= self.acked <= self.sent
        assert len(self._unacked) == self.sent - self.acked
        assert self.unacked_bytes == sum(size for size, _ in self._unacked)
        for size, buffers in self._unacked:
            assert size == sum(len(buffer) for buffer in buffers)
        assert 0 <= self.told <= self.received
        assert self._parts_bytes == sum(len(part) for part in self._parts) <= self._message_limit

    def _push_parts(
        self, epoch: int, body_bytes: int, payload: memoryview
    ) -> tuple[tuple[Buffer, ...], memoryview]:
        """Push the front of a long payload; return its buffers and the rest of the payload."""
        buffers: tuple[Buffer, ...] = ()
        while body_bytes + len(payload) > self._frame_room:
            part, payload = payload[: self._frame_room], payload[self._frame_room :]
            buffers += self._push_frame(Kind.PART, 0, 0, 0, epoch, b"", part)
        return buffers, payload

    def _push_frame(  # noqa: PLR0913, PLR0917  the header's fields
        self,
        kind: Kind,
        channel: int,
        code: int,
        call: int,
        epoch: int,
        body: bytes,
        payload: Buffer,
    ) -> tuple[Buffer, ...]:
        self.sent += 1
        self.told = self.received
        self._untold_bytes = 0
        buffers = encode(kind, channel, code, self.sent, self.received, call, epoch, body, payload)
        size = HEADER_BYTES + len(body) + len(payload)
        self._unacked.append((size, buffers))
        self.unacked_bytes += size
        return buffers

    def _tell(self) -> None:
        self.told = self.received
        self._untold_bytes = 0

    def _acknowledge(self, sequence: int) -> None:
        if sequence > self.sent:
            raise Malformed(f"acknowledges {sequence}, but only {self.sent} were sent")
        unacked = self._unacked
        for _ in range(sequence - self.acked):
            self.unacked_bytes -= unacked.popleft()[0]
        self.acked = sequence

    def _accept_other(self, frame: Frame) -> None:
        """Take a frame that is not the next in sequence."""
        if frame.kind >= _FIRST_CONTROL:
            if frame.kind not in (Kind.ACK, Kind.PING):
                raise Malformed(f"unknown frame kind {frame.kind}")
        elif 0 < frame.sequence <= self.received:
            self.duplicates += 1
        else:
            raise Malformed(f"sequence {frame.sequence} after {self.received}")

    def _keep_part(self, part: bytes) -> None:
        self._parts_bytes += len(part)
        if self._parts_bytes > self._message_limit:
            self._parts_bytes -= len(part)
            raise Malformed(f"a message of more than {self._message_limit} bytes")
        self._parts.append(part)

    def _assemble(self, frame: Frame) -> Frame:
        if self._parts_bytes + len(frame.body) + len(frame.payload) > self._message_limit:
            raise Malformed(f"a message of more than {self._message_limit} bytes")
        payload = b"".join((*self._parts, frame.payload))
        self._parts.clear()
        self._parts_bytes = 0
        return msgspec.structs.replace(frame, payload=payload)
