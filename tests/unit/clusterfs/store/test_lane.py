"""The lane of a brick in a directory: what it writes, what it tells, and when it is not there."""

import errno
import mmap
import resource
from pathlib import Path

import pytest
import trio

from clusterfs.store import lane as lanes
from clusterfs.store.disk import DirectoryDisk
from clusterfs.store.lane import LANE_SEGMENTS, NativeLane
from clusterfs.store.objects import BLOCK_BYTES

pytestmark = pytest.mark.trio


def page(fill: bytes) -> memoryview:
    memory = mmap.mmap(-1, BLOCK_BYTES)
    memory[:] = fill * BLOCK_BYTES
    return memoryview(memory)


async def outcome(lane: NativeLane) -> OSError | bool:
    with trio.fail_after(300):
        await trio.lowlevel.wait_readable(lane.fileno())
    return lane.finish()


async def test_it_writes_syncs_and_tells_so(tmp_path: Path) -> None:
    disk = DirectoryDisk(tmp_path)
    disk.lock()
    for segment in (1, 2):
        disk.create_segment(segment, 4 * BLOCK_BYTES)
    lane = disk.lane()
    assert isinstance(lane, NativeLane)
    assert not lane.takes(3)
    for segment in (1, 2):
        disk.write(segment, 0, page(b"a"))
    assert lane.takes(1)
    assert lane.finish() is False
    for number in (1, 2):
        lane.begin(number, BLOCK_BYTES, page(b"b"), (1, 2))
        assert await outcome(lane) is True
        assert lane.finish() is False
    for segment in (1, 2):
        expected = b"a" * BLOCK_BYTES + b"b" * BLOCK_BYTES
        assert disk.read(segment, 0, 2 * BLOCK_BYTES) == expected
    lane.close()
    lane.close()
    assert lane.fileno() == -1
    disk.close()


async def test_a_failure_is_told_with_its_errno_and_the_next_job_is_not_harmed(
    tmp_path: Path,
) -> None:
    with (tmp_path / "a").open("w+b") as good, (tmp_path / "a").open("rb") as readable:
        lane = NativeLane({1: good.fileno(), 2: readable.fileno()})
        lane.begin(2, 0, page(b"x"), ())
        failure = await outcome(lane)
        assert isinstance(failure, OSError)
        assert failure.errno == errno.EBADF
        lane.begin(1, 0, page(b"y"), (1,))
        assert await outcome(lane) is True
        lane.close()
    assert (tmp_path / "a").read_bytes() == b"y" * BLOCK_BYTES


async def test_a_short_write_is_a_failure(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (tmp_path / "a").open("w+b") as file:
        lane = NativeLane({1: file.fileno()})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            lane.begin(1, 0, page(b"x"), (1,))
            failure = await outcome(lane)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert isinstance(failure, OSError)
        assert failure.errno == errno.EIO
        lane.close()


async def test_it_is_closed_only_when_its_job_is_done(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w+b") as file:
        lane = NativeLane({1: file.fileno()})
        lane.begin(1, 0, page(b"z"), (1,))
        lane.close()
    assert (tmp_path / "a").read_bytes() == b"z" * BLOCK_BYTES


async def test_one_job_at_a_time(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w+b") as file:
        lane = NativeLane({1: file.fileno()})
        lane.begin(1, 0, page(b"z"), (1,) * LANE_SEGMENTS)
        with pytest.raises(RuntimeError):  # done or not: nobody took what it told
            lane.begin(1, 0, page(b"z"), (1,))
        assert await outcome(lane) is True
        with pytest.raises(ValueError, match="too many"):
            lane.begin(1, 0, page(b"z"), (1,) * (LANE_SEGMENTS + 1))
        lane.close()
        with pytest.raises(RuntimeError):
            lane.begin(1, 0, page(b"z"), (1,))


async def test_one_that_nobody_closed_does_no_harm(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w+b") as file:
        lane = NativeLane({1: file.fileno()})
        lane.begin(1, 0, page(b"z"), (1,))
        event = lane.fileno()
        del lane
        with trio.fail_after(300):
            await trio.lowlevel.wait_readable(event)
    assert (tmp_path / "a").read_bytes() == b"z" * BLOCK_BYTES


async def test_a_disk_of_another_kind_and_a_tree_that_was_not_built_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(DirectoryDisk):
        """Writes in its own way."""

    assert Other(tmp_path).lane() is None
    monkeypatch.setattr(lanes, "native", None)
    assert DirectoryDisk(tmp_path).lane() is None
    assert not list(tmp_path.iterdir())
