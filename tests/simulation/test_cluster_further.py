"""More whole-cluster worlds like those of test_cluster.py, in which all nodes also go at once.

(In a file of its own for another processor.)
"""

import pytest

from clusterfs.sim.cluster_story import BLACKOUT, KINDS
from tests.simulation.clusters import CHUNK, FIRST_SEED, live, live_through

ALL_KINDS = (*KINDS, BLACKOUT)


@pytest.mark.parametrize("first", range(FIRST_SEED + 250, FIRST_SEED + 500, CHUNK))
def test_everything_that_clients_saw_can_be_explained(first: int) -> None:
    live_through(first, ALL_KINDS)


@pytest.mark.parametrize(
    "seed",
    [
        363,  # a create was done twice: others had removed what it made meanwhile
        421,
        544,  # a node that was lost once more waited for ever for an answer, and never came back
    ],
)
def test_seeds_that_once_found_a_bug(seed: int) -> None:
    live(seed, ALL_KINDS)
