import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from clusterfs.fuse import notify
from clusterfs.fuse.kernel import SessionKernel

Call = tuple[int, int, int]


class Calls:
    """Stands for the kernel: notes invalidations; those of a parked offset wait."""

    def __init__(self) -> None:
        self.made: list[Call] = []
        self.parked: dict[int, threading.Event] = {}

    def invalidate(self, _fd: int, inode: int, offset: int, length: int) -> None:
        if offset in self.parked:
            assert self.parked[offset].wait(300)
        self.made.append((inode, offset, length))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    monkeypatch.setattr(notify, "invalidate_inode", calls.invalidate)
    return calls


@pytest.fixture
def kernel() -> Iterator[SessionKernel]:
    descriptor = os.open(os.devnull, os.O_WRONLY)
    kernel = SessionKernel()
    kernel.use(descriptor)
    yield kernel
    os.close(descriptor)


async def test_before_a_mount_there_is_nothing_to_drop(calls: Calls) -> None:
    kernel = SessionKernel()
    await kernel.invalidate_pages(1, [(0, 0)])
    await kernel.drop_dentries()
    assert calls.made == []
    assert not kernel.dentries_can_be_dropped


async def test_a_range_that_waits_holds_up_no_other(calls: Calls, kernel: SessionKernel) -> None:
    released = calls.parked[8192] = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kernel.invalidate_pages, 1, [(8192, 4096), (0, 4096), (16384, 0)])
        while len(calls.made) < 2:
            await trio.sleep(0.001)
        assert sorted(calls.made) == [(1, 0, 4096), (1, 16384, 0)]
        await kernel.invalidate_attributes(2)
        released.set()
    assert len(calls.made) == 4
    assert kernel.statistics() == {"invalidations": 4, "invalidations_waiting": 0}


async def test_ordinary_threads_stay_free(calls: Calls, kernel: SessionKernel) -> None:
    released = calls.parked[0] = threading.Event()
    async with trio.open_nursery() as nursery:
        for inode in range(50):  # more than trio's own limit of 40
            nursery.start_soon(kernel.invalidate_pages, inode, [(0, 0)])
        await trio.testing.wait_all_tasks_blocked()
        await trio.to_thread.run_sync(released.set)
    assert len(calls.made) == 50


async def test_a_descriptor_that_became_another_file_is_not_written_to(tmp_path: Path) -> None:
    receiving, sending = os.pipe()
    kernel = SessionKernel()
    kernel.use(sending)
    with (tmp_path / "segment").open("wb") as file:
        # The session has closed its own, while locks are still given up, and the number is reused.
        os.dup2(file.fileno(), sending)
        await kernel.invalidate_attributes(7)
        await kernel.drop_dentries()
        os.close(sending)
    assert (tmp_path / "segment").read_bytes() == b""
    assert os.read(receiving, 100)
    os.close(receiving)
