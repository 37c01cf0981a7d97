import errno
from typing import Any

import pytest
from structlog.testing import capture_logs

from clusterfs.errors import ChunkCorrupted, NoSuchEntry
from clusterfs.fuse.binding import pyfuse3
from clusterfs.fuse.replies import replying
from dlm.errors import LockBusy, LockError


class Handlers:
    @replying
    async def read(self, _inode: int, outcome: Any) -> Any:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


@pytest.mark.parametrize(
    ("raised", "expected", "logged"),
    [
        (NoSuchEntry(), errno.ENOENT, 0),
        (ChunkCorrupted(), errno.EIO, 1),
        (LockError(), LockError.errno, 1),
        (LockBusy("a bug of ours, never EBUSY"), errno.EIO, 1),
        (pyfuse3.FUSEError(errno.EDOM), errno.EDOM, 0),
        (ExceptionGroup("nursery", [NoSuchEntry(), NoSuchEntry()]), errno.ENOENT, 0),
        (ExceptionGroup("nursery", [NoSuchEntry(), ChunkCorrupted()]), errno.EIO, 1),
        (ExceptionGroup("nursery", [NoSuchEntry(), KeyError("bug")]), errno.EIO, 1),
        (KeyError("bug"), errno.EIO, 1),
    ],
)
async def test_every_exception_becomes_an_errno(
    raised: BaseException, expected: int, logged: int
) -> None:
    with capture_logs() as logs, pytest.raises(pyfuse3.FUSEError) as caught:
        await Handlers().read(7, raised)
    assert caught.value.errno == expected
    assert [(entry["operation"], entry["subject"]) for entry in logs] == [("read", 7)] * logged


async def test_an_answer_passes() -> None:
    assert await Handlers().read(7, b"data") == b"data"
