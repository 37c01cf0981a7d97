"""Messages as bytes: msgspec structs as MessagePack arrays. PURE.

`msgpack` makes and reads the bytes, msgspec checks the types: what `decode` returns has the
declared fields in their declared ranges. Fields may only be appended, with defaults; unknown ones
are ignored, so that an older node reads a newer one.
"""

from typing import Any, TypeVar

import msgpack
import msgspec

from dlm.net.errors import Malformed

_T = TypeVar("_T")


def encode(message: Any) -> bytes:
    """Return a Struct, or a tagged one, as MessagePack."""
    packed: bytes = msgpack.packb(msgspec.to_builtins(message, builtin_types=(bytes,)))
    return packed


def decode(data: bytes, wanted: type[_T]) -> _T:
    """Return the message of the wanted type (a Struct or a union of tagged ones).

    Raises:
        Malformed: not MessagePack, or not of that type.
    """
    try:
        plain = msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise Malformed(f"not MessagePack: {error}") from error
    try:
        return msgspec.convert(plain, wanted, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise Malformed(f"not the message expected: {error}") from error
