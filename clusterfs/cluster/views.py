"""The view: who is a member, and which replica has what. PURE.

Views are totally ordered by `epoch`; each change is one compare-and-swap in the provider. A node is
two things, tracked apart: a client (a mount: locks, caches, a lease) and a replica (a store).

Bit n of a mask stands for node n. Per group g:
  * in_sync[g]: replicas that have every acknowledged transaction; never empty once set: the last
    one's bit stays although its node died, for it is the truth when it comes back;
  * syncing[g]: replicas that receive every transaction but still miss older ones;
  * stopped[g]: every in-sync replica is gone; the masks wait for all of in_sync[g] to return;
  * generation[g]: epoch in which in_sync, syncing or the group's stopped bit changed last, or in
    which a client was removed. A transaction sent in an older epoch is refused and re-issued.

Invariants: see `validate`.
"""

import enum
from collections.abc import Iterable, Iterator
from typing import Annotated

import msgpack
import msgspec

NodeId = Annotated[int, msgspec.Meta(ge=1, le=62)]
Mask = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Weight = Annotated[int, msgspec.Meta(ge=1, le=2**20)]
U63 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


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
    weight: Weight = 1  # its share of the data, compared with the others'


class View(msgspec.Struct, frozen=True, array_like=True):
    """One agreed state of the cluster."""

    epoch: U63
    cluster: str  # the volume's uuid
    replicas: Annotated[int, msgspec.Meta(ge=1, le=16)]  # wanted copies, R
    members: tuple[Member, ...]  # UP or LEAVING, by node
    in_sync: tuple[Mask, ...]  # one per group
    syncing: tuple[Mask, ...]
    stopped: tuple[bool, ...]
    generation: tuple[U63, ...]
    lock_epoch: U63  # epoch in which the set of (node, incarnation, state) changed last
    dropped: Mask = 0  # replicas that are out until their node's next start: a broken brick
    lock_epoch_before: U63 = 0  # the lock epoch before that; who knows another one has missed some
    retiring: Mask = 0  # nodes that shall hold nothing: they are to be removed
    away: tuple[tuple[NodeId, Weight], ...] = ()  # gone a short while ago: their place is kept

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

    def up_replicas(self) -> int:
        """Return the mask of members with a store that are not leaving."""
        return mask_of(m.node for m in self.members if m.state is State.UP and m.store_id)

    def present(self, group: int) -> bool:
        """Tell whether the whole last in-sync set of the group is up, so that it may restart."""
        in_sync = self.in_sync[group]
        return in_sync != 0 and not in_sync & ~self.up_replicas()

    def validate(self) -> None:
        """Check every invariant; what fails is a bug, or a view of another making."""
        self._validate_members()
        groups = len(self.in_sync)
        assert groups == len(self.syncing) == len(self.stopped) == len(self.generation) > 0
        assert self.lock_epoch <= self.epoch, "lock_epoch is an epoch of the past"
        assert not self.lock_epoch or self.lock_epoch_before < self.lock_epoch
        up = self.up_replicas()
        assert list(self.away) == sorted(dict(self.away).items()), "one entry a node, ordered"
        assert not mask_of(dict(self.away)) & (up | self.retiring), "away, and up or to be removed"
        assert not self.dropped & ~up, "a dropped replica's node is up"
        assert all(self.in_sync) or not any(self.in_sync), "all groups have a copy, or none yet"
        for group in range(groups):
            self._validate_group(group, up)

    def _validate_members(self) -> None:
        nodes = [member.node for member in self.members]
        assert nodes == sorted(set(nodes)), "members are unique and ordered by node"
        for values in (
            [member.incarnation for member in self.members],
            [member.name for member in self.members],
            [member.store_id for member in self.members if member.store_id],
        ):
            assert len(set(values)) == len(values), f"two members share one of {values}"

    def _validate_group(self, group: int, up: int) -> None:
        in_sync, syncing = self.in_sync[group], self.syncing[group]
        assert not in_sync & syncing, f"group {group}: in sync and syncing at once"
        assert not syncing & ~up, f"group {group}: syncing but not up"
        assert not syncing & self.dropped, f"group {group}: syncing but dropped"
        assert self.generation[group] <= self.epoch, f"group {group}: generation of the future"
        if self.stopped[group]:
            assert in_sync, f"group {group}: stopped without a last in-sync set"
        else:
            assert not in_sync & ~up, f"group {group}: in sync but not up, yet not stopped"
            assert in_sync or not syncing, f"group {group}: syncing from nobody"


def mask_of(nodes: Iterable[int]) -> int:
    """Return the mask with the bits of these nodes."""
    mask = 0
    for node in nodes:
        mask |= 1 << node
    return mask


def nodes_of(mask: int) -> Iterator[int]:
    """Yield the nodes of a mask, ascending."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def encode_view(view: View) -> bytes:
    """Return the view as MessagePack; see docs/formats/view.md."""
    packed: bytes = msgpack.packb(msgspec.to_builtins(view, builtin_types=(bytes,)))
    return packed


def decode_view(encoded: bytes) -> View:
    """Return the view, checked. Raises ValueError if the bytes are no sound view."""
    try:
        view = msgspec.convert(msgpack.unpackb(encoded), View)
        view.validate()
    except (ValueError, AssertionError, msgspec.ValidationError, msgpack.UnpackException) as error:
        raise ValueError(f"not a sound view: {error}") from error
    return view
