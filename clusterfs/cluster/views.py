"""The view: who is a member, and which replica has what. PURE.

Views are totally ordered by `epoch`; each change is one compare-and-swap in the provider. A node is
two things, tracked apart: a client (a mount: locks, caches, a lease) and a replica (a store).

Bit n of a mask stands for node n. Per group g:
  * in_sync[g]: replicas that have every acknowledged transaction; never empty once set: the last
    one's bit stays although its node died, for it is the truth when it comes back;
  * syncing[g]: replicas that receive every transaction but still miss older ones;
  * generation[g]: epoch in which in_sync, syncing or the group's stopped bit changed last, or in
    which a client was removed. A transaction sent in an older epoch is refused and re-issued.

Invariants: see `validate`.
"""

import enum
from typing import Annotated

import msgspec

NodeId = Annotated[int, msgspec.Meta(ge=1, le=62)]
Mask = Annotated[int, msgspec.Meta(ge=0, lt=2**63)]
U63 = Annotated[int, msgspec.Meta(ge=0, lt=2**63)]


class State(enum.IntEnum):
    """How far a member is in or out."""

    UP = 1
    LEAVING = 2  # refused by all; its locks wait until its lease has ended for sure


class Member(msgspec.Struct, frozen=True, array_like=True):
    """One start of one node. `incarnation` is handed out once and never again."""

    node: NodeId
    incarnation: U63
    name: str
    address: str  # host:port of its RPC
    state: State
    store_id: str  # uuid of its brick; "" for a client-only node


class View(msgspec.Struct, frozen=True, array_like=True):
    """One agreed state of the cluster."""

    epoch: U63
    cluster: str  # the volume's uuid
    replicas: Annotated[int, msgspec.Meta(ge=1, le=16)]  # wanted copies, R
    members: tuple[Member, ...]  # UP or LEAVING, by node
    in_sync: tuple[Mask, ...]  # one per group
    syncing: tuple[Mask, ...]
    stopped: tuple[
        bool, ...
    ]  # every in-sync replica of the group died; see docs/protocols/views.md
    generation: tuple[U63, ...]
    lock_epoch: U63  # epoch in which the set of (node, incarnation) changed last

    def member(self, node: int) -> Member | None:
        """Return the member of that node, or None."""
        for member in self.members:
            if member.node == node:
                return member
        return None

    def has(self, node: int, incarnation: int) -> bool:
        """Tell whether this very start of the node is a member that is not leaving."""
        member = self.member(node)
        return member is not None and member.incarnation == incarnation and member.state is State.UP
