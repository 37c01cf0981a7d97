"""The ioctls of lsattr and chattr: there is nothing, and nothing can be set."""

import struct

import pytest

from clusterfs.errors import NotSupported
from clusterfs.fuse.flags import (
    GET_FLAGS,
    GET_FSXATTR,
    GET_VERSION,
    SET_FLAGS,
    SET_FSXATTR,
    answer,
)


@pytest.mark.parametrize(("command", "size"), [(GET_VERSION, 4), (GET_FLAGS, 4), (GET_FSXATTR, 28)])
def test_all_there_is_is_zero(command: int, size: int) -> None:
    assert answer(command, b"") == bytes(size)


def test_only_nothing_can_be_set() -> None:
    assert answer(SET_FLAGS, bytes(8)) == b""
    assert answer(SET_FSXATTR, struct.pack("=IIIII8x", 0, 0, 9, 0, 0)) == b""
    with pytest.raises(NotSupported):
        answer(SET_FLAGS, struct.pack("=II", 16, 0))
    with pytest.raises(NotSupported):
        answer(SET_FSXATTR, struct.pack("=IIIII8x", 0, 0, 0, 7, 0))


def test_other_ioctls_are_not_meant() -> None:
    assert answer(0xF501, b"") is None
