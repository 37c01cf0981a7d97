"""What may go wrong between two nodes. PURE.

NetError
|-- Refused      the peer's handler ran and said no; travels as a reply, arrives as it was raised
|-- Malformed    bytes that no correct peer sends; the connection that brought them is dropped
|-- Rejected     the handshake failed: another cluster, a wrong secret, an unlisted incarnation
`-- SessionLost  the two ends no longer agree on what was delivered; only a new incarnation helps

dlm.errors.PeerLost, for a call whose peer is no longer listed, belongs to the tree of locks.
"""

# Codes of Refused that the mesh itself uses; handlers choose theirs below.
CODE_MALFORMED = 0xFFFF
CODE_NO_HANDLER = 0xFFFE
CODE_LOCK_ERROR = 0xFFFD
CODE_LIMIT = 0xFF00


class NetError(Exception):
    """Base of everything that dlm.net raises by itself."""


class Refused(NetError):
    """The called handler refused; `code` (0..0xFFFF) and `detail` are a matter of the channel."""

    def __init__(self, code: int, detail: bytes = b"") -> None:
        super().__init__(code, detail)
        assert 0 <= code <= CODE_MALFORMED, code
        self.code = code
        self.detail = detail


class Malformed(NetError):
    """A frame or a message that no correct peer sends."""


class Rejected(NetError):
    """The handshake failed; `reason` is one line for the operator.

    `told` is true when the other side sent the rejection, and need not be told in turn.
    """

    def __init__(self, reason: str, *, told: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.told = told


class SessionLost(NetError):
    """One end forgot the session: what it misses was acknowledged and is gone."""
