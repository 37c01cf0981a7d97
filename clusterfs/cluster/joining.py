"""Whether, when and how a starting node is let in. PURE.

What is checked here costs data or coherence if it is wrong: a brick of another cluster, a provider
that lost views, a name that somebody else uses, a store that only pretends to be the old one.

Before it joins, a node whose bits are still in in-sync sets must know of each rival (another member
of such a set) whether it lives: see membership.rivals. A living one renews soon, a dead one takes a
whole lease to be known as dead.
"""

from collections.abc import Collection
from typing import NamedTuple

from clusterfs.cluster import membership
from clusterfs.cluster.lease import Heartbeats
from clusterfs.cluster.providers import Identity, Registration, Snapshot
from clusterfs.cluster.views import Member, State, View
from clusterfs.errors import SetupError

_WEIGHT_BITS = 4


class Applicant(NamedTuple):
    """What a starting node knows of itself."""

    name: str
    store_id: str = ""  # uuid of its brick; "" for a client-only node
    cluster: str = ""  # the cluster that its brick belongs to; "" for a fresh brick
    store_epoch: int = 0  # the highest epoch that its brick has seen
    groups: int = 256
    replicas: int = 3  # of the cluster, if this node founds it
    weight: int = 1
    keeps_places: bool = False  # nodes that go keep theirs for a while


def weight_of(capacity_bytes: int) -> int:
    """Return the weight of a brick: its GiB, in steps of 6 to 12 %, so that it seldom changes."""
    gib = min(max(1, capacity_bytes >> 30), 1 << 20)
    coarse = max(0, gib.bit_length() - _WEIGHT_BITS)
    return gib >> coarse << coarse


class Admission(NamedTuple):
    """The view that lets the newcomer in, and whose beats must not have moved for it to count."""

    view: View
    silent: frozenset[int]


class Application(NamedTuple):
    """One start that asks to be let in."""

    identity: Identity
    applicant: Applicant
    registration: Registration
    address: str
    replaces: int | None = None  # an incarnation of this very process, which serves no more


def check_identity(identity: Identity, applicant: Applicant, lease_s: float) -> None:
    """Raise SetupError unless the cluster is the one that the node was made for."""
    if applicant.cluster and applicant.cluster != identity.cluster:
        raise SetupError(
            f"brick of {applicant.name} belongs to cluster {applicant.cluster}, "
            f"but this is cluster {identity.cluster}: check the key 'cluster'"
        )
    if lease_s != identity.lease_s:
        raise SetupError(
            f"lease_s is {lease_s:g} here, but the cluster was founded with {identity.lease_s:g}: "
            "all nodes must have the same"
        )


def admit(
    application: Application, snapshot: Snapshot, heartbeats: Heartbeats, now_s: float
) -> Admission | None:
    """Return the next view with the newcomer in it, or None: ask again with a later snapshot.

    Raises:
        SetupError: it can never be let in like this.
    """
    applicant, node = application.applicant, application.registration.node
    view = snapshot.view
    if view is None:
        view = membership.founded(
            application.identity.cluster, applicant.groups, applicant.replicas
        )
    _check_view(view, applicant)
    _check_store_unused(view, node, applicant)
    old = view.member(node)
    over = {
        m.incarnation
        for m in view.members
        if m.incarnation in snapshot.caches_dropped or heartbeats.expired(m.incarnation, now_s)
    }
    if old is not None and not _replaceable(application, old, over, heartbeats):
        return None
    rivals = membership.rivals(view, node)
    if any(not heartbeats.alive(rival) for rival in rivals - over):
        return None
    if any(m.incarnation == application.registration.incarnation for m in view.members):
        raise SetupError(f"node {applicant.name} was refused by the others while it joined: retry")
    keep = applicant.keeps_places
    proposal = membership.joined(view, _newcomer(application), over, keep=keep)
    _check_same_store(proposal, application)
    if old is not None and (old.incarnation == application.replaces or _same_brick(old, applicant)):
        over.discard(old.incarnation)
    return Admission(proposal, frozenset(over - snapshot.caches_dropped))


def _check_view(view: View, applicant: Applicant) -> None:
    if view.epoch < applicant.store_epoch:
        raise SetupError(
            f"cluster is at epoch {view.epoch}, but the brick of {applicant.name} has seen "
            f"{applicant.store_epoch}: the cluster's file is an old copy; restore the newest"
        )
    if applicant.groups != len(view.in_sync):
        raise SetupError(
            f"groups is {applicant.groups} here, but the cluster was founded with "
            f"{len(view.in_sync)}: make them equal"
        )


def _check_store_unused(view: View, node: int, applicant: Applicant) -> None:
    for member in view.members:
        if applicant.store_id and member.store_id == applicant.store_id and member.node != node:
            raise SetupError(
                f"brick of {applicant.name} is in use as that of node {member.name}: "
                "give each node its own brick"
            )


def _replaceable(
    application: Application, old: Member, over: Collection[int], heartbeats: Heartbeats
) -> bool:
    """Tell whether the node's former incarnation is over; False: not known yet."""
    if old.incarnation == application.replaces:
        return True
    if heartbeats.alive(old.incarnation):
        raise SetupError(
            f"node name {old.name} is in use by a running daemon at {old.address}: "
            "stop that one, or choose another name"
        )
    return old.incarnation in over or _same_brick(old, application.applicant)


def _same_brick(old: Member, applicant: Applicant) -> bool:
    """Tell whether both have one brick: its lock file proves that the former daemon has ended."""
    return bool(applicant.store_id) and old.store_id == applicant.store_id


def _newcomer(application: Application) -> Member:
    return Member(
        node=application.registration.node,
        incarnation=application.registration.incarnation,
        name=application.applicant.name,
        address=application.address,
        state=State.UP,
        store_id=application.applicant.store_id,
        weight=application.applicant.weight,
    )


def _check_same_store(proposal: View, application: Application) -> None:
    former, store_id = application.registration.store_id, application.applicant.store_id
    if not former or not store_id or former == store_id:
        return
    waiting = membership.last_copies(proposal, application.registration.node)
    if waiting:
        raise SetupError(
            f"brick of {application.applicant.name} is not the one it had ({former}), which holds "
            f"the last copy of {waiting} groups: bring that brick back"
        )
