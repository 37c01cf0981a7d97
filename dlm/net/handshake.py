"""Two nodes make sure of each other before the first message. PURE.

The dialer says Hello, the listener answers with a Challenge that proves it knows the cluster
secret, the dialer proves the same, and the listener says Welcome. Each proof is an HMAC-SHA256 over
a label of its own, the whole Hello and the Challenge's nonce, so none can be replayed or reflected.
With the last two each side tells the highest sequence it has received, where the session resumes.
Either side may answer with a Reject instead, and the connection ends.

Invariant: nothing a peer claims is acted upon before its proof was checked.
"""

import hashlib
import hmac
from typing import Annotated, NamedTuple

import msgspec

from dlm.net.errors import Malformed, Rejected
from dlm.net.wire import decode, encode

PROTOCOL_VERSION = 2  # 1 knew neither batches of locks nor claims of names
NONCE_BYTES = 32

Node = Annotated[int, msgspec.Meta(ge=0, lt=2**16)]
U63 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Text = Annotated[str, msgspec.Meta(max_length=256)]
Nonce = Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
Mac = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Peer(NamedTuple):
    """One start of one node, and where it listens."""

    node: int
    incarnation: int
    address: str  # host:port


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """Dialer to listener: who calls whom."""

    version: U63
    cluster: Text
    node: Node
    incarnation: U63
    target_node: Node
    target_incarnation: U63
    attempt: U63  # counts the dialer's tries in this session: a late older one is told apart
    nonce: Nonce


class Challenge(msgspec.Struct, frozen=True, array_like=True):
    """Listener to dialer: prove it; here is my own proof."""

    nonce: Nonce
    proof: Mac


class Proof(msgspec.Struct, frozen=True, array_like=True):
    """Dialer to listener: my proof, and what I have received in this session."""

    received: U63
    proof: Mac


class Welcome(msgspec.Struct, frozen=True, array_like=True):
    """Listener to dialer: the session goes on; this is what I have received in it."""

    received: U63
    proof: Mac


class Reject(msgspec.Struct, frozen=True, array_like=True):
    """Either side: no, and why; one line for the operator. Not authenticated: only ever logged."""

    reason: Text


class Dialer:
    """The dialing side of one handshake; bodies of frames in, bodies of frames out."""

    def __init__(
        self, me: Peer, target: Peer, cluster: str, secret: bytes, attempt: int, nonce: bytes
    ) -> None:
        self._secret = secret
        self._transcript = self.hello = encode(
            Hello(
                PROTOCOL_VERSION,
                cluster,
                me.node,
                me.incarnation,
                target.node,
                target.incarnation,
                attempt,
                nonce,
            )
        )

    def prove(self, challenge: bytes, received: int) -> bytes:
        """Return the Proof that answers the listener's Challenge.

        Raises:
            Rejected: the listener does not know the secret.
            Malformed: no Challenge.
        """
        asked = decode(challenge, Challenge)
        self._transcript += asked.nonce
        if not hmac.compare_digest(asked.proof, self._mac(b"listener", 0)):
            raise Rejected("wrong cluster secret: the listener's proof does not fit")
        return encode(Proof(received, self._mac(b"dialer", received)))

    def finish(self, welcome: bytes) -> int:
        """Return what the listener has received in this session.

        Raises:
            Rejected, Malformed: as for `prove`.
        """
        said = decode(welcome, Welcome)
        if not hmac.compare_digest(said.proof, self._mac(b"welcome", said.received)):
            raise Rejected("wrong cluster secret: the listener's welcome does not fit")
        return said.received

    def _mac(self, label: bytes, received: int) -> bytes:
        return _mac(self._secret, label, self._transcript, received)


class Listener:
    """The listening side of one handshake."""

    def __init__(self, me: Peer, cluster: str, secret: bytes, nonce: bytes) -> None:
        self._me = me
        self._cluster = cluster
        self._secret = secret
        self._nonce = nonce
        self._transcript = b""
        self.hello: Hello | None = None

    def challenge(self, hello: bytes) -> bytes:
        """Return the Challenge for a dialer's Hello.

        Raises:
            Rejected: another version or cluster, or it looks for somebody else.
            Malformed: no Hello.
        """
        said = self.hello = decode(hello, Hello)
        if said.version != PROTOCOL_VERSION:
            which = "the other" if said.version < PROTOCOL_VERSION else "this"
            raise Rejected(
                f"protocol version {said.version}, this node speaks {PROTOCOL_VERSION}: "
                f"upgrade {which} node"
            )
        if said.cluster != self._cluster:
            raise Rejected(f"of cluster {said.cluster!r}, this node is of {self._cluster!r}")
        if said.node >= self._me.node:
            raise Rejected(f"node {said.node} dials node {self._me.node}: the lower one should")
        target = (said.target_node, said.target_incarnation)
        if target != (self._me.node, self._me.incarnation):
            raise Rejected(
                f"looks for node {target[0]} incarnation {target[1]}, this is node "
                f"{self._me.node} incarnation {self._me.incarnation}"
            )
        self._transcript = hello + self._nonce
        return encode(Challenge(self._nonce, self._mac(b"listener", 0)))

    def check(self, proof: bytes) -> int:
        """Return what the dialer has received in this session.

        Raises:
            Rejected: the dialer does not know the secret.
            Malformed: no Proof.
        """
        assert self._transcript, "challenge comes first"
        said = decode(proof, Proof)
        if not hmac.compare_digest(said.proof, self._mac(b"dialer", said.received)):
            raise Rejected("wrong cluster secret: the dialer's proof does not fit")
        return said.received

    def welcome(self, received: int) -> bytes:
        """Return the Welcome that ends the handshake."""
        return encode(Welcome(received, self._mac(b"welcome", received)))

    def _mac(self, label: bytes, received: int) -> bytes:
        return _mac(self._secret, label, self._transcript, received)


def reject(reason: str) -> bytes:
    """Return a Reject that fits into its limit."""
    return encode(Reject(reason[:256]))


def rejection(body: bytes) -> Rejected:
    """Return what the other side's Reject says, as an exception to raise."""
    try:
        reason = decode(body, Reject).reason
    except Malformed:
        reason = "no reason given"
    return Rejected(f"the other side says: {reason}", told=True)


def _mac(secret: bytes, label: bytes, transcript: bytes, received: int) -> bytes:
    """Return the HMAC of fields whose lengths are fixed but for the transcript, which is last."""
    message = label.ljust(16, b"\0") + received.to_bytes(8, "little") + transcript
    return hmac.new(secret, message, hashlib.sha256).digest()
