"""One-time tokens: how a new node gets its certificate and the cluster's settings. PURE.

Whoever admits a node makes its certificate and key, seals them under a fresh secret, and leaves the
sealed *invitation* with the provider as the note `token/ID`. The token, a line of text for the
administrator of the new node, has the secret, the cluster's identity, the fingerprint of its
authority, and where the provider is. To redeem it is to take the note away, which only one can do.

So whoever has the token once, and can reach the provider, becomes that node; who has only one of
both learns nothing. The secret is never stored; an invitation that nobody took is worthless once it
has expired, and is deleted by the next command that looks.

Sealing is ChaCha20-Poly1305 (RFC 8439) under a key that is used once.
"""

import base64
import binascii
from typing import NamedTuple

import msgpack
import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from clusterfs.errors import SetupError

NOTES = "token/"
SECRET_BYTES = 32
ID_BYTES = 8
_PREFIX = "clusterfs1-"
_CHECK_BYTES = 4
_REFUSAL = "that is no token: copy the whole line that `clusterfs cluster token` printed"
_NONCE = bytes(12)  # each secret seals one invitation


class Token(NamedTuple):
    """What the administrator carries from one machine to another."""

    name: str  # of the new node
    provider: str  # as in its config
    volume: str  # the key etcd.volume
    cluster: str
    fingerprint: str  # SHA-256 of the authority's certificate, hexadecimal; "" without TLS
    id: bytes
    secret: bytes

    @property
    def note(self) -> str:
        """Return the name of the provider's note."""
        return NOTES + self.id.hex()


class Invitation(msgspec.Struct, frozen=True):
    """What is sealed: everything that the new node needs and may not make up."""

    expires_s: int  # since 1970
    replicas: int
    groups: int
    lease_s: float
    ca: str = ""  # PEM; all three empty without TLS
    certificate: str = ""
    key: str = ""


def encode_token(token: Token) -> str:
    """Return the token as one word of ASCII."""
    packed = msgpack.packb(list(token))
    return _PREFIX + base64.urlsafe_b64encode(packed + _check(packed)).decode().rstrip("=")


def decode_token(text: str) -> Token:
    """Return the token. Raises SetupError if it is none, or was not copied as a whole."""
    encoded = "".join(text.split()).removeprefix(_PREFIX)
    try:
        whole = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        packed, check = whole[:-_CHECK_BYTES], whole[-_CHECK_BYTES:]
        fields = msgspec.convert(msgpack.unpackb(packed), _Fields)
    except (ValueError, binascii.Error, msgpack.UnpackException) as error:
        raise SetupError(_REFUSAL) from error
    if _check(packed) != check:
        raise SetupError(_REFUSAL)
    return Token(*fields)


def seal(token: Token, invitation: Invitation) -> bytes:
    """Return the note that only this token opens: when it expires, and the rest, sealed."""
    plain = msgpack.packb(msgspec.to_builtins(invitation))
    sealed = ChaCha20Poly1305(token.secret).encrypt(_NONCE, plain, _bound(token))
    packed: bytes = msgpack.packb([invitation.expires_s, sealed])
    return packed


def unseal(token: Token, note: bytes, now_s: float) -> Invitation:
    """Return the invitation. Raises SetupError: not this token's, or too old."""
    try:
        _, sealed = msgpack.unpackb(note)
        plain = ChaCha20Poly1305(token.secret).decrypt(_NONCE, sealed, _bound(token))
        invitation = msgspec.convert(msgpack.unpackb(plain), Invitation)
    except (ValueError, InvalidTag, msgpack.UnpackException) as error:
        raise SetupError(f"the provider's note {token.note} does not fit the token") from error
    if now_s > invitation.expires_s:
        raise SetupError(f"the token for {token.name} has expired: make another")
    return invitation


def expired(note: bytes, now_s: float) -> bool:
    """Tell whether an invitation is worthless by now; so is one that cannot be read."""
    try:
        return bool(now_s > msgpack.unpackb(note)[0])
    except (ValueError, TypeError, IndexError, msgpack.UnpackException):
        return True


_Fields = tuple[str, str, str, str, str, bytes, bytes]


def _check(packed: bytes) -> bytes:
    return blake3(packed).digest()[:_CHECK_BYTES]


def _bound(token: Token) -> bytes:
    """Return what the sealed part is good for, and for nothing else."""
    bound: bytes = msgpack.packb([token.cluster, token.name, token.fingerprint, token.id])
    return bound
