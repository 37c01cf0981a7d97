"""Any sequence of steps, power cuts and reopenings that hypothesis can think of, and shrink."""

import random
import threading
from collections.abc import Awaitable, Callable
from queue import SimpleQueue

import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from clusterfs.sim.bricks import SMALL, TIGHT, Trial, open_trial
from clusterfs.sim.disk import arrived, dropped, seeded

SEEDS = st.integers(0, 2**32)
STEPS = st.sampled_from(
    ["transact"] * 6
    + ["share"] * 3
    + ["prepare", "prepare", "decide", "decide", "decide"]
    + ["sync", "sync", "note", "replace", "checkpoint", "stabilise"]
)


class Loop:
    """A trio run in a thread of its own, for a machine whose rules are not async."""

    def __init__(self) -> None:
        started: SimpleQueue[trio.lowlevel.TrioToken] = SimpleQueue()
        self._end = trio.Event()

        async def main() -> None:
            started.put(trio.lowlevel.current_trio_token())
            await self._end.wait()

        self._thread = threading.Thread(target=trio.run, args=(main,))
        self._thread.start()
        self._token = started.get()

    def run(self, call: Callable[..., Awaitable[object]], *arguments: object) -> object:
        return trio.from_thread.run(call, *arguments, trio_token=self._token)

    def close(self) -> None:
        trio.from_thread.run_sync(self._end.set, trio_token=self._token)
        self._thread.join()


class Bricks(RuleBasedStateMachine):
    """One brick through its lives, beside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.trial: Trial | None = None
        self.born = 0

    @precondition(lambda self: self.trial is None)
    @rule(seed=SEEDS, tight=st.booleans())
    def open(self, seed: int, *, tight: bool) -> None:
        found = self.loop.run(open_trial, seed, TIGHT if tight else SMALL)
        assert isinstance(found, Trial)
        self.trial = found
        self.born = len(found.disk.journal)

    @precondition(lambda self: self.trial is not None)
    @rule(step=STEPS, seed=SEEDS, times=st.integers(1, 6))
    def do(self, step: str, seed: int, times: int) -> None:
        assert self.trial is not None
        self.trial.random = random.Random(seed)
        for _ in range(times):
            self.loop.run(getattr(self.trial, step))

    @precondition(lambda self: self.trial is not None)
    @rule(cut=st.floats(0, 1), fate=SEEDS)
    def look_at_a_crash(self, cut: float, fate: int) -> None:
        assert self.trial is not None
        events = self._events(cut)
        for kind in (seeded(fate), dropped, arrived):
            self.trial.check_cold(events, kind)

    @precondition(lambda self: self.trial is not None)
    @rule(cut=st.floats(0, 1), fate=SEEDS)
    def live_on_after_a_crash(self, cut: float, fate: int) -> None:
        assert self.trial is not None
        events = self._events(cut)
        brick = self.trial.disk.crash(events, seeded(fate))
        self.loop.run(self.trial.store.close)
        life = self.loop.run(self.trial.next_life, brick, events)
        assert isinstance(life, Trial)
        self.trial = life
        self.born = len(brick.journal)

    @precondition(lambda self: self.trial is not None)
    @rule()
    def compare(self) -> None:
        assert self.trial is not None
        self.loop.run(self.trial.check_live)

    @invariant()
    def serves(self) -> None:
        assert self.trial is None or self.trial.store.failed is None

    def teardown(self) -> None:
        try:
            if self.trial is not None:
                self.loop.run(self.trial.store.close)
        finally:
            self.loop.close()

    def _events(self, cut: float) -> int:
        assert self.trial is not None
        return self.born + round(cut * (len(self.trial.disk.journal) - self.born))


Bricks.TestCase.settings = settings(max_examples=25, stateful_step_count=25)
TestBricks = Bricks.TestCase
