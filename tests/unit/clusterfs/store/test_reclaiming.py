"""How fast the cleaner goes: as the foreground writes, or at once if somebody waits for room."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from clusterfs.store.objects import BLOCK_BYTES
from clusterfs.store.reclaiming import Reclaiming
from clusterfs.store.segments import RESERVE_DATA, Segments
from clusterfs.store.tail import STREAMS

pytestmark = pytest.mark.trio
Clock = trio.testing.MockClock

FEW = RESERVE_DATA + STREAMS
PIECE = 64  # blocks that the cleaner moved before it asks


class Rig:
    """A policy over a log and segments that only count."""

    def __init__(self, clock: Clock, free: int) -> None:
        self._now = clock.current_time
        self.log = SimpleNamespace(user_bytes_written=0, position=0, last_id=0)
        self.segments = Segments(1024, 60, 32)
        for number in range(free):
            self.segments.add(number)
        self.segments.limit = free
        chunks = SimpleNamespace(live={}, live_total=0, next_cid=1)
        cleaner = SimpleNamespace(codec="off", packs_to=1.0, clean=self.clean)
        self.policy = Reclaiming(
            self.segments, cast("Any", chunks), cast("Any", self.log), cast("Any", cleaner)
        )
        self.waited_s = -1.0
        self.written_meanwhile = -1

    async def clean(self, _segment: int, pace: Any) -> None:
        begun_s, begun = self._now(), self.log.user_bytes_written
        await pace(PIECE)
        self.waited_s = self._now() - begun_s
        self.written_meanwhile = self.log.user_bytes_written - begun

    async def write(self, blocks: int, every_s: float) -> None:
        """Write for ever."""
        while True:
            await trio.sleep(every_s)
            self.log.user_bytes_written += blocks * BLOCK_BYTES
            self.log.position += 1

    async def run(self, blocks: int = 0, every_s: float = 0.001) -> None:
        """Clean a piece while the foreground writes so much so often."""
        async with trio.open_nursery() as nursery:
            if blocks:
                nursery.start_soon(self.write, blocks, every_s)
            await self.policy.clean(0)
            nursery.cancel_scope.cancel()


async def test_a_busy_foreground_is_let_write_as_much_as_was_moved(autojump_clock: Clock) -> None:
    rig = Rig(autojump_clock, FEW)
    await rig.run(blocks=3)
    assert PIECE * BLOCK_BYTES <= rig.written_meanwhile <= (PIECE + 20) * BLOCK_BYTES
    assert rig.waited_s > 0


async def test_the_fewer_segments_are_free_the_less_it_is_let(autojump_clock: Clock) -> None:
    written = []
    for free in (FEW, RESERVE_DATA + 2, RESERVE_DATA + 1):
        rig = Rig(autojump_clock, free)
        await rig.run(blocks=1)
        written.append(rig.written_meanwhile)
    assert written[0] >= written[1] >= written[2] == 0


async def test_an_idle_foreground_is_not_waited_for(autojump_clock: Clock) -> None:
    rig = Rig(autojump_clock, FEW)
    await rig.run()
    assert 0 < rig.waited_s < 0.01, "one look whether anything is written"


async def test_who_waits_for_room_is_not_made_to_wait_for_the_pace(autojump_clock: Clock) -> None:
    rig = Rig(autojump_clock, FEW)
    rig.policy.wanted_blocks = 1
    await rig.run(blocks=1)
    assert rig.waited_s == 0


async def test_a_slow_foreground_delays_it_for_a_bounded_time(autojump_clock: Clock) -> None:
    rig = Rig(autojump_clock, FEW)
    await rig.run(blocks=1, every_s=0.004)
    assert 0 < rig.waited_s < 0.1
    assert rig.written_meanwhile < PIECE * BLOCK_BYTES
