"""One start of this node, from its admission to its end: the lease, and the renewals that keep it.

It ends in one of two ways, never to begin again: it is lost (the lease ran out, or the others took
it out of the view), or it retires (a clean leave, or the end of the process).

Invariants:
  * `left_s()` is computed from the clock at each call, so a process that was paused sees the end of
    its lease before it serves anything;
  * `over` is set before any other task can run once the lease was seen to have ended.
"""

import math
from collections.abc import Callable

import structlog
import trio

from clusterfs.cluster.lease import RENEWALS_PER_LEASE, Lease
from clusterfs.cluster.providers import Provider, Registration
from clusterfs.errors import ProviderAway


class Incarnation:
    """This node's membership under one number."""

    def __init__(
        self,
        registration: Registration,
        lease_s: float,
        sent_s: float,
        provider: Provider,
        now: Callable[[], float],
    ) -> None:
        self.node = registration.node
        self.number = registration.incarnation
        self.lost = trio.Event()
        self.over = trio.Event()  # lost or retired
        self.known_epoch = 0  # the newest that a renewal told of
        self.renewals = self.failures = 0
        self._lease_s = lease_s
        self._silent_until_s = -math.inf  # until then the log has heard of the provider's absence
        self._lease = Lease(lease_s, sent_s)
        self._provider = provider
        self._now = now
        self._log = structlog.get_logger(package="cluster", node=self.node, incarnation=self.number)

    @property
    def serving(self) -> bool:
        """Tell whether it is not over, as far as is known."""
        return not self.over.is_set()

    def left_s(self) -> float:
        """Return for how long it may still serve; not positive: it is over."""
        left_s = self._lease.left_s(self._now())
        if left_s <= 0:
            self.lose("the lease has ended")
        return left_s

    def lose(self, reason: str) -> None:
        """End it against its will."""
        if self.serving:
            self._log.error("lost", reason=reason)
            self.retire()
            self.lost.set()

    def retire(self) -> None:
        """End it."""
        self._lease.end()
        self.over.set()

    async def keep(self, news: Callable[[], None]) -> None:
        """Renew until it is over; `news` is called when a renewal tells of a newer epoch."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._renew_often, news)
            nursery.start_soon(self._watch)
            await self.over.wait()
            nursery.cancel_scope.cancel()

    async def renew(self) -> bool:
        """Renew once; False if that failed or came too late."""
        if self.left_s() <= 0:
            return False
        sent_s = self._now()
        try:
            epoch = await self._provider.renew(self.node, self.number)
        except ProviderAway as error:
            self.failed(error)
            return False
        if epoch is None:
            self.lose("the others have removed it from the view")
            return False
        self.renewals += 1
        self.known_epoch = max(self.known_epoch, epoch)
        return self._lease.renewed(sent_s, self._now()) and self.left_s() > 0

    def failed(self, error: ProviderAway) -> None:
        """Note that the provider did not answer."""
        self.failures += 1
        if self._now() >= self._silent_until_s:
            self._silent_until_s = self._now() + self._lease_s
            self._log.warning("provider away", error=str(error), failures=self.failures)

    async def _renew_often(self, news: Callable[[], None]) -> None:
        every_s = self._lease_s / RENEWALS_PER_LEASE
        while True:
            known = self.known_epoch
            renewed = await self.renew()
            if self.known_epoch > known:
                news()
            await trio.sleep(every_s if renewed else every_s / 4)

    async def _watch(self) -> None:
        """See the lease end even while the provider hangs."""
        while True:  # noqa: ASYNC110  (it waits for a clock that trio does not know)
            await trio.sleep(max(0.001, self.left_s()))
