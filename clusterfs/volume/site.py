"""What all parts of one node's volume share: who we are, the view in force, store, mesh, gate flag.

Invariants:
  * `view` is the view whose rules are in force here; it changes only in `enter`, in one step for
    all parts, before anything of the new epoch is served;
  * `heard` is the highest epoch in any message so far. A read that starts after hearing of an epoch
    is answered under that epoch or a later one, so that no replica taken out of its set meanwhile
    answers it.
"""

from collections.abc import Awaitable, Callable

import trio

from clusterfs.cluster.views import View, nodes_of
from clusterfs.store.objects import ObjectId
from clusterfs.volume.messages import CHANNEL
from clusterfs.volume.placement import replica_nodes
from clusterfs.volume.ports import Buffer, LocalStore, Mesh, Views

# Transactions that a replica makes itself, to bring its copy forward, are of this client.
INTERNAL = 0


class Site:
    """One node's place in the volume."""

    def __init__(self, store: LocalStore | None, mesh: Mesh, views: Views) -> None:
        self.store = store
        self.mesh = mesh
        self.views = views
        self.view = views.view
        self.replicas = 0  # mask: who has a part of any running group
        self.incarnations: dict[int, int] = {}  # of every member, by node
        self.up: dict[int, int] = {}  # of every member that is not leaving
        self.replica_incarnations: list[int] = []
        self._look_at(self.view)
        self.node = views.node
        self.incarnation = views.incarnation
        self.heard = self.view.epoch
        self.read_only: frozenset[str] = frozenset()  # names of nodes that may not change anything
        self.gate_open = False
        self.blocked: set[bytes] = set()  # objects of undecided transactions of clients now gone
        self.distrusted: dict[ObjectId, int] = {}  # to be copied whatever their version -> group
        self._changed = trio.Event()
        self._internal = 0

    @property
    def bit(self) -> int:
        """This node's bit in masks."""
        return 1 << self.node

    def enter(self, view: View) -> None:
        """Put a view in force."""
        self.view = view
        self._look_at(view)
        self.heard = max(self.heard, view.epoch)
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def _look_at(self, view: View) -> None:
        """Work out what each write wants to know of a view."""
        self.replicas = replica_nodes(view)
        self.incarnations = known = {m.node: m.incarnation for m in view.members}
        self.up = {n: i for n, i in known.items() if view.has(n, i)}
        self.replica_incarnations = [known[n] for n in nodes_of(self.replicas) if n in known]

    def begin(self) -> None:
        """Take over the incarnation and the view that a rejoin gave."""
        self.node, self.incarnation = self.views.node, self.views.incarnation
        self._internal = 0
        self.enter(self.views.view)

    def hear(self, epoch: int) -> None:
        """Note the epoch that a message came from."""
        self.heard = max(self.heard, epoch)

    async def changed(self) -> None:
        """Wait until another view is in force."""
        await self._changed.wait()

    async def current(self) -> None:
        """Wait until the view in force is as new as anything heard of."""
        while self.view.epoch < self.heard:
            await self.views.entered(self.heard)

    def in_set(self, group: int) -> bool:
        """Tell whether this node must receive the group's transactions."""
        return bool((self.view.in_sync[group] | self.view.syncing[group]) & self.bit)

    def holds(self, group: int) -> bool:
        """Tell whether this node's copy of the group is the truth."""
        return bool(self.view.in_sync[group] & self.bit) and not self.view.stopped[group]

    def may_serve(self, group: int) -> bool:
        """Tell whether this node may answer a read of the group right now."""
        return (
            self.gate_open
            and self.heard <= self.view.epoch
            and bool(self.view.in_sync[group] & self.bit)
            and not self.view.stopped[group]
            and self.views.lease_left_s() > 0
        )

    def others(self, mask: int) -> list[int]:
        """Return the members of a mask that are up, without this node."""
        up = {m.node for m in self.view.members if self.view.has(m.node, m.incarnation)}
        return [node for node in nodes_of(mask) if node != self.node and node in up]

    def internal_sequence(self) -> int:
        """Return a sequence for a transaction of INTERNAL, never used before by this store."""
        self._internal += 1
        return self.incarnation << 36 | self._internal

    def send(self, node: int, body: bytes, payload: Buffer = b"") -> None:
        """Send one way to another node."""
        self.mesh.send(node, CHANNEL, body, payload)

    def call(self, node: int, body: bytes) -> Awaitable[tuple[bytes, bytes]]:
        """Ask another node."""
        return self.mesh.call(node, CHANNEL, body)


Spawn = Callable[..., None]
