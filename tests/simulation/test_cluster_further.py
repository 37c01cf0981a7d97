"""The other half of the whole-cluster worlds of test_cluster.py, for another processor."""

import pytest

from tests.simulation.clusters import CHUNK, FIRST_SEED, live_through


@pytest.mark.parametrize("first", range(FIRST_SEED + 250, FIRST_SEED + 500, CHUNK))
def test_everything_that_clients_saw_can_be_explained(first: int) -> None:
    live_through(first)
