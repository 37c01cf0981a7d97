"""Any seeded history, cut anywhere: the store equals the model after a prefix of it."""

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterfs.sim.bricks import SMALL, TIGHT, open_trial
from clusterfs.sim.disk import seeded

SEEDS = st.integers(0, 2**32)


@settings(max_examples=25)
@given(seed=SEEDS, steps=st.integers(1, 60), cut=st.floats(0, 1), fate=SEEDS, tight=st.booleans())
def test_any_history_cut_anywhere(
    seed: int, steps: int, cut: float, fate: int, *, tight: bool
) -> None:
    async def live_and_die() -> None:
        trial = await open_trial(seed, TIGHT if tight else SMALL)
        born = len(trial.disk.journal)
        await trial.run(steps)
        await trial.check_live()
        events = born + round(cut * (len(trial.disk.journal) - born))
        await trial.check_crash(events, seeded(fate))
        await trial.store.close()

    trio.run(live_and_die)
