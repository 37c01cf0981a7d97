"""FUSE_STATX's answer has the size and the places that the kernel expects."""

import os
import struct

from clusterfs.fs.results import Attributes, Status
from clusterfs.fuse.statx import encode

STATX_BYTES = 288  # struct fuse_statx_out
BIRTH_AT = 32 + 64 + 16
DEVICE_AT = 32 + 128


def test_fields_are_where_the_kernel_looks() -> None:
    attributes = Attributes(
        7, 0o100640, 3, 1, 2, os.makedev(5, 6), 4097, 16, 10**9 + 1, 2, 3, -(10**9) + 4
    )
    body = encode(Status(attributes, 1.5))
    assert len(body) == STATX_BYTES
    assert struct.unpack_from("=QI", body) == (1, 500_000_000)
    assert struct.unpack_from("=QQQ", body, 32 + 32) == (7, 4097, 16)
    assert struct.unpack_from("=qI", body, 32 + 64) == (1, 1)
    assert struct.unpack_from("=qI", body, BIRTH_AT) == (-1, 4)
    assert struct.unpack_from("=II", body, DEVICE_AT) == (5, 6)
