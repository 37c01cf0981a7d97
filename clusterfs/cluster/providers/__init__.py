"""The port to the consistent store that orders the views: few calls, no consensus of our own.

After Patroni's DCS interface. An implementation keeps, durably and linearizably: the cluster's
identity, a number for each node's name, a counter of incarnations, the view; and, not necessarily
over a restart of the store, a heartbeat counter for each member.

Every call may raise ProviderAway (no answer now, try again; a change may or may not have been
made) and, from `identity` and `register`, SetupError (this store is not usable; one line says why).
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from clusterfs.cluster.views import View
from clusterfs.errors import SetupError


class Identity(NamedTuple):
    """What makes this cluster itself; the first node's proposal wins, later ones are told."""

    cluster: str  # uuid
    secret: bytes  # 32 bytes; authenticates nodes to each other and keys the chunk hashes
    lease_s: float  # all must count alike, or a member is evicted while it serves


class Registration(NamedTuple):
    """One start of a node, before it joins."""

    node: int
    incarnation: int
    store_id: str  # the store this node had in the last view with a store of its; "" for none


class Snapshot(NamedTuple):
    """The stored state at one instant."""

    view: View | None  # None: no view was ever proposed
    beats: Mapping[int, int]  # incarnation -> beat, for each member
    caches_dropped: frozenset[int]  # incarnations that are known to serve nothing any more


class Provider(Protocol):
    """One node's access to the store."""

    async def run(self) -> None:
        """Work in the background while the provider is in use, if there is anything to do."""

    async def identity(self, lease_s: float, *, found: bool = True) -> Identity:
        """Return the cluster's identity; found the cluster if nobody has and `found` allows it."""

    async def register(self, name: str, store_id: str = "") -> Registration:
        """Return the node number of that name and a new incarnation, never handed out before.

        Raises SetupError if the store is that of another name.
        """

    async def names(self) -> dict[int, str]:
        """Return the name of every node number that was ever handed out."""

    async def renew(self, node: int, incarnation: int) -> int | None:
        """Move the beat and return the epoch; None if this incarnation is not UP in the view.

        Condition and beat are one atomic step.
        """

    async def read(self) -> Snapshot:
        """Return the current state."""

    async def propose(self, view: View, beats: Mapping[int, int]) -> bool:
        """Replace the view of epoch `view.epoch` - 1; one atomic step.

        False, and no change, if the stored view has another epoch or if one of `beats` has moved.
        A new member's beat starts at 0.
        """

    async def changed(self) -> bool:
        """Tell cheaply whether anything may have changed since the last call of `changed`."""

    async def caches_dropped(self, node: int, incarnation: int) -> None:
        """Note that this incarnation serves nothing any more, nor does its kernel."""

    async def notes(self, prefix: str) -> dict[str, bytes]:
        """Return the small durable values whose names begin with `prefix`, by name."""

    async def set_note(self, name: str, value: bytes | None, former: bytes | None) -> bool:
        """Replace the note `name` by `value` if it is `former` now; None: there is none.

        One atomic step. False, and no change, if the note is another one.
        """

    async def forget(self, name: str) -> None:
        """Forget a node that is in no mask of the view: its name, number and store.

        Its number may be given to another name once all others are in use.
        """

    async def close(self) -> None:
        """Let go of the store; the membership is not touched."""


def refuse_store_of_another(name: str, store_id: str, stores: Mapping[str, str]) -> None:
    """Raise SetupError if `stores` (by name) gives the store to another: it counts only there."""
    for owner, owned in stores.items():
        if store_id and owned == store_id and owner != name:
            raise SetupError(
                f"the brick of {name} is that of node {owner}: name this node {owner}, "
                "or give it a brick of its own"
            )
