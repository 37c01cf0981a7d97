"""One ordered, lossless connection per peer: messages, calls with replies, bulk payloads."""

from dlm.net.connections import Timing
from dlm.net.errors import Malformed, NetError, Refused
from dlm.net.framing import Buffer
from dlm.net.greeting import answers
from dlm.net.handshake import Peer
from dlm.net.peers import Answer, Handler, Mesh
from dlm.net.remote import Call, Limits
from dlm.net.wire import decode, encode

__all__ = [
    "Answer",
    "Buffer",
    "Call",
    "Handler",
    "Limits",
    "Malformed",
    "Mesh",
    "NetError",
    "Peer",
    "Refused",
    "Timing",
    "answers",
    "decode",
    "encode",
]
