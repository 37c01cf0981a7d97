"""Whether a node that was removed may come back: it must reach every member that lives.

Two members that reach the provider but not each other cannot both stay: what one of them masters
the other one could wait for without end. The first to have the other removed goes on; the loser
comes back when the way is free. To reach somebody is to open a connection to its address, or to be
told that nobody listens there: then its process is gone, and the others will notice. Who does not
answer is dead only when its heart has not beaten for a whole lease: renewals may be slow.

A node that for long was never connected with somebody who lives is in the way in any case: a wrong
address, certificate or clock, a firewall. (One whose lease ended right after it had joined was not
in anybody's way: it had no time to connect.) One that is just starting gives up, and says so; one
that serves a mount comes back after a while, and later each time.
"""

import math
from collections.abc import Awaitable, Callable, Iterable

import structlog
import trio

from clusterfs.cluster.node import insist
from clusterfs.cluster.providers import Provider, Snapshot
from clusterfs.cluster.views import Member, State
from clusterfs.errors import SetupError

Reach = Callable[[str], Awaitable[bool]]

_LOOK_AGAIN_S = 1.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 300.0

log = structlog.get_logger(package="cluster")


class Comeback:
    """Lets one node wait before it joins again."""

    def __init__(self, provider: Provider, lease_s: float, reach: Reach, address: str) -> None:
        """`address` is what the others are told."""
        self._provider = provider
        self._lease_s = lease_s
        self._reach = reach
        self._address = address
        self._in_vain = 0  # times that it came back and somebody was never met

    async def wait(self, me: int, strangers: Iterable[int], *, serving: bool) -> None:
        """Return when node `me` may join again, which for long did not connect with `strangers`.

        Raises SetupError: it has not served anybody, and will not.
        """
        unmet = await insist(lambda: self._alive(set(strangers)), math.inf)
        if unmet and not serving:
            raise SetupError(self._explained(unmet))
        while names := await insist(lambda: self._unreached(me), math.inf):
            log.warning("waits: members cannot be reached from here", members=names)
            await trio.sleep(_LOOK_AGAIN_S)
        self._in_vain = self._in_vain + 1 if unmet else 0
        if unmet:
            log.error("joins again later", reason=self._explained(unmet))
            await trio.sleep(min(_FIRST_PAUSE_S * 2 ** (self._in_vain - 1), _LONGEST_PAUSE_S))

    async def _unreached(self, me: int) -> list[str]:
        return await unreached(self._provider, me, self._reach, self._lease_s)

    async def _alive(self, nodes: set[int]) -> list[str]:
        if not nodes:
            return []
        before = await self._provider.read()
        await trio.sleep(self._lease_s / 2)
        return _moved(before, await self._provider.read(), nodes)

    def _explained(self, names: list[str]) -> str:
        return (
            f"no connection between this node and {', '.join(names)} came about, so the others go "
            f"on without it: can they reach {self._address}? are the certificates and the clocks "
            "right? the logs of both sides have the reason"
        )


async def unreached(provider: Provider, me: int, reach: Reach, lease_s: float) -> list[str]:
    """Return the names of the members that live and cannot be reached from here, in order.

    Who lives is told by its beat, which moves while nothing is heard, within a lease at least.
    Raises ProviderAway.
    """
    before = await provider.read()
    members = () if before.view is None else before.view.members
    silent: set[int] = set()

    async def look(member: Member) -> None:
        if not await reach(member.address):
            silent.add(member.node)

    async with trio.open_nursery() as nursery:
        for member in members:
            if member.node != me and member.state is State.UP:
                nursery.start_soon(look, member)
    if not silent:
        return []
    moved = _moved(before, await provider.read(), silent)
    if len(moved) < len(silent):
        await trio.sleep(lease_s)
        moved = _moved(before, await provider.read(), silent)
    return moved


def _moved(before: Snapshot, after: Snapshot, nodes: set[int]) -> list[str]:
    """Return those of the nodes whose hearts have beaten in between."""
    members = () if after.view is None else after.view.members
    return sorted(
        member.name
        for member in members
        if member.node in nodes
        and member.incarnation in before.beats
        and after.beats.get(member.incarnation) != before.beats[member.incarnation]
    )
