"""The flush executors, on a disk whose writes and syncs end when the test says so."""

import errno
import os
import threading
from collections.abc import Collection, Iterable

import pytest
import trio
import trio.testing

from clusterfs.sim.disk import SimulatedDisk, Synced, Written
from clusterfs.store.flush import EXECUTORS, Flusher, Sealed
from clusterfs.store.format import KIND_MARK, Header, parse_header
from clusterfs.store.lane import Lane
from clusterfs.store.objects import BLOCK_BYTES

STORE_ID = bytes(range(16))
LOGS = 40

pytestmark = pytest.mark.trio


class HeldDisk(SimulatedDisk):
    """Holds the writes of some logs, and syncs, until they are let go; fails some."""

    def __init__(self) -> None:
        super().__init__()
        self.create_segment(0, LOGS * BLOCK_BYTES)
        self.held = {number: threading.Event() for number in range(LOGS)}
        self.sync_held = threading.Event()
        self.failing: set[int] = set()
        self.inside: set[int] = set()
        self.most_inside = 0
        self.syncs_begun = 0
        self.let_go(*range(LOGS))
        self.sync_held.set()

    def hold(self, *numbers: int) -> None:
        for number in numbers:
            self.held[number].clear()

    def let_go(self, *numbers: int) -> None:
        for number in numbers:
            self.held[number].set()

    def write(self, segment: int, offset: int, content: memoryview) -> None:
        number = offset // BLOCK_BYTES
        self.inside.add(number)
        self.most_inside = max(self.most_inside, len(self.inside))
        assert self.held[number].wait(300)
        self.inside.discard(number)
        if number in self.failing:
            raise OSError(errno.EIO, "simulated write failure")
        super().write(segment, offset, content)

    def sync(self, segments: Iterable[int]) -> None:
        self.syncs_begun += 1
        assert self.sync_held.wait(300)
        super().sync(segments)


class HeldLane:
    """A lane whose job is done when the test says so."""

    def __init__(self, disk: HeldDisk) -> None:
        self.disk = disk
        self.event = os.eventfd(0, os.EFD_NONBLOCK)
        self.fileno = lambda: self.event
        self.takes = disk.segments().__contains__
        self.job: tuple[int, int, bytes, frozenset[int]] | None = None
        self.outcome: OSError | bool = False
        self.begun = 0

    def begin(self, segment: int, offset: int, content: memoryview, sync: Collection[int]) -> None:
        assert self.job is None
        assert self.event >= 0
        self.job = segment, offset, bytes(content), frozenset(sync)
        self.begun += 1

    def end(self, failure: OSError | None = None) -> None:
        assert self.job is not None
        segment, offset, content, sync = self.job
        if failure is None:
            SimulatedDisk.write(self.disk, segment, offset, memoryview(content))
            if sync:
                SimulatedDisk.sync(self.disk, sync)
        self.outcome = failure or True
        os.eventfd_write(self.event, 1)

    def finish(self) -> OSError | bool:
        if self.outcome is not False:
            os.eventfd_read(self.event)
            self.job = None
        outcome, self.outcome = self.outcome, False
        return outcome

    def close(self) -> None:
        if self.event >= 0:
            assert self.job is None
            os.close(self.event)
        self.event = -1


class LanedDisk(HeldDisk):
    """Has a lane."""

    def lane(self) -> Lane:
        self.held_lane = HeldLane(self)
        return self.held_lane


class Rig:
    """A flusher, and all that it reported."""

    def __init__(self, executors: int, disk: HeldDisk | None = None) -> None:
        self.disk = disk or HeldDisk()
        self.flusher = Flusher(self.disk, STORE_ID, 1, 0, 0)
        self.flusher.set_executors(executors)
        self.written: list[int] = []
        self.durable: list[int] = []
        self.failures: list[OSError] = []
        self.flusher.start(
            lambda logs: self.written.extend(log.id for log in logs),
            self.durable.append,
            self.failures.append,
        )
        self.next_id = 1

    def write(self, count: int = 1, *, sync: bool = False) -> None:
        for _ in range(count):
            log = Sealed(self.next_id, 0, self.next_id - 1, memoryview(bytearray(BLOCK_BYTES)))
            log.kind, log.blocks = KIND_MARK, 1
            self.flusher.write(log, sync=sync)
            self.next_id += 1

    def header(self, log_id: int) -> Header | None:
        return parse_header(self.disk.read(0, (log_id - 1) * BLOCK_BYTES, BLOCK_BYTES), STORE_ID)


async def until(condition: object) -> None:
    assert callable(condition)
    with trio.fail_after(300):
        while not condition():
            await trio.sleep(0.001)


async def test_logs_are_written_together_but_reported_in_order() -> None:
    rig = Rig(executors=4)
    rig.disk.hold(0)
    rig.write(6)
    await until(lambda: all(rig.header(log_id) for log_id in range(2, 7)))
    assert rig.header(1) is None
    assert rig.written == []
    rig.flusher.sync()
    await until(lambda: rig.flusher._sync_upto == 6)
    assert rig.disk.syncs_begun == 0, "a sync covers all before it"
    rig.disk.let_go(0)
    await until(lambda: rig.durable == [6])
    assert rig.written == [1, 2, 3, 4, 5, 6]
    headers = [rig.header(log_id) for log_id in range(1, 7)]
    checksums = [header.checksum for header in headers if header]
    assert [header.previous for header in headers if header] == [0, *checksums[:-1]]
    await rig.flusher.stop()


@pytest.mark.parametrize("executors", [1, 2, 4])
async def test_as_many_writes_run_at_once_as_there_are_executors(executors: int) -> None:
    rig = Rig(executors)
    rig.disk.hold(*range(10))
    rig.write(10)
    await until(lambda: len(rig.disk.inside) == executors)
    rig.disk.let_go(*range(10))
    await until(lambda: len(rig.written) == 10)
    assert rig.disk.most_inside == executors
    await rig.flusher.stop()


async def test_writing_goes_on_during_a_sync_which_does_not_cover_it() -> None:
    rig = Rig(executors=2)
    rig.disk.sync_held.clear()
    rig.write(2)
    rig.flusher.sync()
    await until(lambda: rig.disk.syncs_begun == 1)
    rig.write(2)
    await until(lambda: rig.written == [1, 2, 3, 4])
    rig.flusher.sync()
    assert rig.durable == []
    rig.disk.sync_held.set()
    await until(lambda: rig.durable == [2, 4])
    later = rig.disk.journal
    assert isinstance(later[-1], Synced)
    await rig.flusher.stop()


async def test_one_failed_write_is_told_once_and_nothing_after_it_becomes_durable() -> None:
    rig = Rig(executors=4)
    rig.write(2)
    rig.flusher.sync()
    await until(lambda: rig.durable == [2])
    rig.disk.failing = {2}
    rig.disk.hold(2, 3)
    rig.write(2)
    rig.flusher.sync()
    await until(lambda: rig.disk.inside == {2, 3})
    rig.disk.let_go(2, 3)
    await until(lambda: rig.failures)
    rig.disk.failing.clear()
    rig.write(5)
    rig.flusher.sync()
    await rig.flusher.stop()
    await trio.lowlevel.checkpoint()
    assert len(rig.failures) == 1
    assert rig.durable == [2]
    assert rig.written == [1, 2]
    assert rig.disk.syncs_begun == 1
    written = [event.offset for event in rig.disk.journal if isinstance(event, Written)]
    assert max(written) <= 3 * BLOCK_BYTES, "what was on its way when it failed, nothing after it"


async def test_the_number_of_executors_changes_at_run_time_and_no_log_is_disturbed() -> None:
    rig = Rig(EXECUTORS)
    for executors in (4, 1, 3, 1, 2):
        rig.flusher.set_executors(executors)
        rig.write(5)
        rig.flusher.sync()
    await until(lambda: rig.durable and rig.durable[-1] == 25)
    assert rig.written == list(range(1, 26))
    rig.disk.most_inside = 0
    rig.disk.hold(*range(25, 31))
    rig.write(6)
    await until(lambda: len(rig.disk.inside) == 2)
    rig.disk.let_go(*range(25, 31))
    await rig.flusher.stop()
    assert rig.disk.most_inside == 2
    assert all(not thread.is_alive() for thread in rig.flusher._threads)


async def test_a_lone_log_is_written_and_synced_in_the_lane() -> None:
    disk = LanedDisk()
    rig = Rig(2, disk)
    for number in (1, 2, 3):
        rig.write(sync=True)
        assert disk.held_lane.job is not None
        assert disk.held_lane.job[3] == {0}
        await trio.testing.wait_all_tasks_blocked()
        assert rig.durable == list(range(1, number))
        disk.held_lane.end()
        await until(lambda number=number: rig.durable == list(range(1, number + 1)))
    assert rig.written == [1, 2, 3]
    headers = [rig.header(log_id) for log_id in (1, 2, 3)]
    checksums = [header.checksum for header in headers if header]
    assert [header.previous for header in headers if header] == [0, *checksums[:-1]]
    assert [header.durable for header in headers if header] == [0, 1, 2]
    assert disk.syncs_begun == 0, "the executors had nothing to do"
    await rig.flusher.stop()
    assert disk.held_lane.event < 0


async def test_what_comes_while_the_lane_is_taken_is_the_executors_and_waits_for_it() -> None:
    disk = LanedDisk()
    rig = Rig(2, disk)
    rig.write(sync=True)
    rig.write(2)
    rig.write(sync=True)
    await until(lambda: all(rig.header(log_id) for log_id in (2, 3, 4)))
    assert disk.held_lane.begun == 1
    assert rig.written == []
    assert rig.durable == []
    assert disk.syncs_begun == 0, "what the lane writes comes before them"
    disk.held_lane.end()
    await until(lambda: rig.durable == [1, 4])
    assert rig.written == [1, 2, 3, 4]
    last = [event for event in disk.journal if isinstance(event, Synced | Written)]
    assert isinstance(last[-1], Synced)
    rig.write()
    assert disk.held_lane.begun == 2, "it is free again, also for what nobody waits for"
    assert disk.held_lane.job is not None
    assert not disk.held_lane.job[3]
    rig.flusher.sync()
    await trio.testing.wait_all_tasks_blocked()
    assert rig.durable == [1, 4]
    disk.held_lane.end()
    await until(lambda: rig.durable == [1, 4, 5])
    await rig.flusher.stop()


async def test_the_lane_leaves_alone_what_follows_logs_that_are_under_way() -> None:
    disk = LanedDisk()
    rig = Rig(2, disk)
    disk.hold(1)
    rig.write()
    disk.held_lane.end()
    await until(lambda: rig.written == [1])
    disk.held_lane.takes = frozenset[int]().__contains__
    rig.write()
    disk.held_lane.takes = disk.segments().__contains__
    await until(lambda: disk.inside == {1})
    rig.write(sync=True)
    assert disk.held_lane.begun == 1
    disk.let_go(1)
    await until(lambda: rig.durable == [3])
    await rig.flusher.stop()


async def test_a_failure_in_the_lane_is_told_once_and_nothing_after_it_becomes_durable() -> None:
    disk = LanedDisk()
    rig = Rig(2, disk)
    rig.write(sync=True)
    rig.write(2)
    await until(lambda: rig.header(3))
    disk.held_lane.end(OSError(errno.EIO, "simulated failure"))
    await until(lambda: rig.failures)
    rig.write(sync=True)
    await rig.flusher.stop()
    await trio.testing.wait_all_tasks_blocked()
    assert [failure.errno for failure in rig.failures] == [errno.EIO]
    assert (rig.written, rig.durable) == ([], [])
    assert disk.held_lane.begun == 1


async def test_stopping_waits_for_the_lane() -> None:
    disk = LanedDisk()
    rig = Rig(1, disk)
    rig.write(sync=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.flusher.stop)
        await trio.testing.wait_all_tasks_blocked()
        assert disk.held_lane.event >= 0
        disk.held_lane.end()
    assert rig.durable == [1]
    assert disk.held_lane.event < 0
