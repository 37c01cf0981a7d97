"""The simulated network does as the real one where simulated clusters depend on it."""

import random

import pytest
import trio
import trio.testing

from clusterfs.sim.network import Network, SimMesh
from dlm.errors import PeerLost


class Silent:
    """A handler that never answers."""

    def begin_call(self, *_: object) -> object:
        return trio.sleep_forever()


async def test_a_call_of_an_incarnation_that_is_over_fails() -> None:
    async with trio.open_nursery() as nursery:
        network = Network(random.Random(0), nursery)
        one, two = SimMesh(network, 1, 11, nursery), SimMesh(network, 2, 12, nursery)
        two.register(1, Silent())
        one.set_peers([(2, 12)])
        two.set_peers([(1, 11)])

        async def ask() -> None:
            with pytest.raises(PeerLost):
                await one.call(2, 1, b"anybody?")

        with trio.fail_after(300):
            async with trio.open_nursery() as asking:
                asking.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked(0.05)
                one.become(13)
        nursery.cancel_scope.cancel()
