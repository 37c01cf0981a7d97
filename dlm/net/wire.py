"""Messages as bytes: msgspec structs as MessagePack arrays. PURE.

What `decode` returns has the declared fields in their declared ranges. Fields may only be appended,
with defaults; unknown ones are ignored, so that an older node reads a newer one.
"""

from functools import cache
from typing import Any, TypeVar

import msgspec

from dlm.net.errors import Malformed

_T = TypeVar("_T")

_encoder = msgspec.msgpack.Encoder()


def encode(message: Any) -> bytes:
    """Return a Struct, or a tagged one, as MessagePack."""
    return _encoder.encode(message)


def decode(data: bytes, wanted: type[_T]) -> _T:
    """Return the message of the wanted type (a Struct or a union of tagged ones).

    Raises:
        Malformed: not MessagePack, or not of that type.
    """
    decoder: msgspec.msgpack.Decoder[_T] = _decoder(wanted)  # type: ignore[arg-type]
    try:
        return decoder.decode(data)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not the message expected: {error}") from error


@cache
def _decoder(wanted: Any) -> Any:
    return msgspec.msgpack.Decoder(wanted)
