"""For how long nodes that went keep their places: until then nobody copies what they had.

A reboot takes minutes, and copying all that a node holds takes longer. Each node watches on its own
clock; whoever's time is over first proposes. A copy that has become the last one is copied at once,
and so is what a node had that is to be removed: see `membership`.
"""

from contextlib import suppress

import trio

from clusterfs.cluster import membership
from clusterfs.cluster.node import Membership
from clusterfs.errors import Unavailable

_LOOK_S = 1.0


async def keep(node: Membership, grace_s: float) -> None:
    """Let nodes be missed that were away for so long, until cancelled."""
    since_s: dict[int, float] = {}
    while True:
        now_s = trio.current_time()
        away = {number for number, _ in node.view.away}
        since_s = {number: since_s.get(number, now_s) for number in away}
        over = frozenset(n for n, begun_s in since_s.items() if now_s - begun_s >= grace_s)
        if over and not node.lost.is_set():
            with suppress(Unavailable):
                await missed(node, over)
        await trio.sleep(_LOOK_S)


async def missed(node: Membership, over: frozenset[int]) -> None:
    """Say that nobody waits for these nodes any more. Raises Unavailable."""
    await node.propose(lambda view: membership.missed(view, over))
