"""Why a start takes so long: after a full stop it waits for every node of the last in-sync sets."""

from collections.abc import Callable
from contextlib import suppress

import trio

from clusterfs.cluster import report
from clusterfs.cluster.node import Membership
from clusterfs.errors import ProviderAway

_PERIOD_S = 2.0


async def explain(
    membership: Membership, still_waiting: Callable[[], bool], say: Callable[[str], None]
) -> None:
    """Name the awaited nodes whenever there are others, until nobody waits any more."""
    said: list[int] = []
    while still_waiting():
        awaited = report.awaited(membership.view)
        if awaited and awaited != said:
            with suppress(ProviderAway):
                names = await membership.names()
                who = ", ".join(names[node] for node in awaited)
                say(f"{who}: the newest data may be there; start them too")
                said = awaited
        await trio.sleep(_PERIOD_S)
