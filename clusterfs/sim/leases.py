"""Agreed views with leases: a node that is cut off knows for how long it may still go on.

Invariant: a lease is never longer than what the truth allows: nobody is declared down before the
last lease that it may have counted is over.
"""

import trio

from clusterfs.cluster.views import State
from clusterfs.sim.views import Agreement, SimViews

LEASE_S = 0.5
_RENEWAL_S = 0.1


class LeasedViews(SimViews):
    """One node's membership, which it may be unable to reach."""

    def __init__(self, agreement: Agreement, node: int, incarnation: int) -> None:
        super().__init__(agreement, node, incarnation)
        self.reachable = True
        self._agreed = agreement
        self._renewed_s = trio.current_time()

    async def run(self) -> None:
        """Renew the lease and follow the truth, a little late, while it can be reached."""
        while not self.lost.is_set():
            sent_s = trio.current_time()
            await trio.sleep(self._agreed.rng.random() * self._agreed.delay_s)
            if self.reachable:
                self._hear(sent_s)
            if self._agreed.view.epoch == self.view.epoch or not self.reachable:
                with trio.move_on_after(_RENEWAL_S):
                    await self._agreed.changed.wait()

    def _hear(self, sent_s: float) -> None:
        truth = self._agreed.view
        member = truth.member(self.node)
        if member is not None and member.incarnation == self.incarnation:
            if member.state is State.UP:
                self._renewed_s = sent_s
            else:
                self.lost.set()
                return
        self.adopt(truth)

    def rejoin(self, incarnation: int) -> None:
        """Be another incarnation; `run` must be started again."""
        self._renewed_s = trio.current_time()
        super().rejoin(incarnation)

    def lease_left_s(self) -> float:
        """Return how long this node may go on without hearing anything."""
        if self.lost.is_set():
            return 0.0
        return max(0.0, self._renewed_s + LEASE_S - trio.current_time())

    async def _delay(self) -> None:
        while not self.reachable and not self.lost.is_set():
            await trio.sleep(_RENEWAL_S)
        await super()._delay()
