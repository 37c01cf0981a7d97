"""System calls beyond what pyfuse3 handles, on real mounts, seen from another node."""

import ctypes
import errno
import os
from pathlib import Path

import pytest

KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE = 0x01, 0x02, 0x08, 0x10
BLOCK = 4096

_libc = ctypes.CDLL(None, use_errno=True)


def fallocate(path: Path, mode: int, offset: int, length: int) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        arguments = (ctypes.c_int(descriptor), ctypes.c_int(mode))
        spans = (ctypes.c_longlong(offset), ctypes.c_longlong(length))
        if _libc.fallocate(*arguments, *spans) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(descriptor)


@pytest.fixture
def file(folders: list[Path]) -> list[Path]:
    """One file of ten blocks of b"x", as the three nodes see it."""
    (folders[0] / "file").write_bytes(b"x" * 10 * BLOCK)
    return [folder / "file" for folder in folders]


def test_fallocate_grows_a_file_with_zeros(file: list[Path]) -> None:
    fallocate(file[0], 0, 8 * BLOCK, 4 * BLOCK + 7)
    assert file[1].read_bytes() == b"x" * 10 * BLOCK + bytes(2 * BLOCK + 7)
    fallocate(file[2], 0, 0, BLOCK)
    assert file[0].stat().st_size == 12 * BLOCK + 7


def test_fallocate_with_keep_size_changes_nothing_to_be_seen(file: list[Path]) -> None:
    fallocate(file[0], KEEP_SIZE, 8 * BLOCK, 10 * BLOCK)
    assert file[1].read_bytes() == b"x" * 10 * BLOCK


@pytest.mark.parametrize("mode", [PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE | KEEP_SIZE, ZERO_RANGE])
def test_a_range_is_made_zero(file: list[Path], mode: int) -> None:
    assert file[2].read_bytes()[:3] == b"xxx"  # cached there
    fallocate(file[0], mode, BLOCK + 10, 3 * BLOCK)
    expected = b"x" * (BLOCK + 10) + bytes(3 * BLOCK) + b"x" * (6 * BLOCK - 10)
    for path in file:
        assert path.read_bytes() == expected


def test_zero_range_beyond_the_end_grows(file: list[Path]) -> None:
    fallocate(file[0], ZERO_RANGE, 9 * BLOCK, 2 * BLOCK)
    assert file[1].read_bytes() == b"x" * 9 * BLOCK + bytes(2 * BLOCK)


@pytest.mark.parametrize(
    ("mode", "offset", "length", "number"),
    [
        (COLLAPSE_RANGE, 0, BLOCK, errno.EOPNOTSUPP),
        (0, 0, 0, errno.EINVAL),
        (0, -1, 10, errno.EINVAL),
        (0, 1 << 44, BLOCK, errno.EFBIG),
    ],
)
def test_what_fallocate_cannot_do_it_says(
    file: list[Path], mode: int, offset: int, length: int, number: int
) -> None:
    with pytest.raises(OSError, match=r".") as refusal:
        fallocate(file[0], mode, offset, length)
    assert refusal.value.errno == number
    assert file[1].read_bytes() == b"x" * 10 * BLOCK


def test_setxattr_heeds_create_and_replace(file: list[Path]) -> None:
    name = "user.colour"
    with pytest.raises(OSError, match=r".") as refusal:
        os.setxattr(file[0], name, b"red", os.XATTR_REPLACE)
    assert refusal.value.errno == errno.ENODATA
    os.setxattr(file[0], name, b"red", os.XATTR_CREATE)
    with pytest.raises(OSError, match=r".") as refusal:
        os.setxattr(file[1], name, b"blue", os.XATTR_CREATE)
    assert refusal.value.errno == errno.EEXIST
    os.setxattr(file[1], name, b"green", os.XATTR_REPLACE)
    assert os.getxattr(file[2], name) == b"green"
    os.setxattr(file[2], name, b"")
    assert os.getxattr(file[0], name) == b""
