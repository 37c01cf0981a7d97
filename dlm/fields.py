"""What the fields of a message may be: every number has a range, every text a length. PURE."""

from typing import Annotated

import msgspec

Epoch = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Term = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]  # epoch << TERM_BITS | number, see below
NodeId = Annotated[int, msgspec.Meta(ge=1, lt=2**16)]
LockId = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Sequence = Annotated[int, msgspec.Meta(ge=-(2**62), lt=2**62)]  # place in a queue; 0: in none
FlagBits = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
NamePart = Annotated[bytes, msgspec.Meta(max_length=256)]
Value = Annotated[bytes, msgspec.Meta(max_length=4096)]
Owner = Annotated[str, msgspec.Meta(max_length=1024)]
Priority = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]
Kind = Annotated[int, msgspec.Meta(ge=0, lt=2**8)]
Thing = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
State = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
WORDS = 2048
Words = Annotated[str, msgspec.Meta(max_length=WORDS)]
Story = Annotated[str, msgspec.Meta(max_length=2**18)]

# A term is handed out by the root's directory node, or by the master that lets its tree go, and is
# above all earlier ones of that root.
TERM_BITS = 36


def epoch_of(term: int) -> int:
    """Return the lock epoch in which the term began."""
    return term >> TERM_BITS
