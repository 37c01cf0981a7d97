import errno
import os
import struct
from collections.abc import Iterator

import pytest

from clusterfs.fuse import notify


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def refuse(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def write(_fd: int, _data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", write)


def test_messages_are_what_the_kernel_reads(pipe: tuple[int, int]) -> None:
    source, target = pipe
    notify.invalidate_inode(target, 0x1234, 4096, 8192)
    assert os.read(source, 100) == struct.pack("=IiQQqq", 40, 2, 0, 0x1234, 4096, 8192)
    notify.invalidate_inode(target, 5, notify.ATTRIBUTES_ONLY, 0)
    assert os.read(source, 100) == struct.pack("=IiQQqq", 40, 2, 0, 5, -1, 0)
    assert notify.increment_epoch(target)
    assert os.read(source, 100) == struct.pack("=IiQ", 16, 8, 0)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTCONN, errno.ENODEV])
def test_an_unknown_inode_or_a_mount_that_is_gone_is_fine(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse(monkeypatch, number)
    notify.invalidate_inode(0, 1, 0, 0)


def test_an_old_kernel_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.EINVAL)
    assert not notify.increment_epoch(0)


def test_other_failures_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.EBADF)
    with pytest.raises(OSError, match="Bad file"):
        notify.invalidate_inode(0, 1, 0, 0)
    with pytest.raises(OSError, match="Bad file"):
        notify.increment_epoch(0)
