"""How one view becomes the next. PURE.

Every function takes a view and an event and returns the next view, or None when the event changes
nothing. What must follow from a change is not left to each event to remember: a draft is compared
with the view it came from, and epochs, generations and placement are derived from the difference.

Rules, applied at every change:
  * a group whose in-sync replicas all go at once, or whose last one goes, is stopped: its in_sync
    mask stays frozen until all of it is back and `restarted` is called;
  * each group that runs wants the `replicas` highest-scored stores of nodes that do not retire; a
    wanted store in neither mask starts syncing; stores not wanted stay until all wanted ones are in
    sync, then go;
  * who went a short while ago (`away`) keeps its place: nobody copies what it had, unless there is
    one copy left, until it is back or is `missed`;
  * a group's generation is the epoch in which its masks or its stopped bit changed, and the
    removal of any member raises all generations, for that member was also a client;
  * lock_epoch is the epoch in which the set of (node, incarnation, state) changed.

Rendezvous hashing after Thaler and Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996;
with weights by the logarithmic method (Schindelhauer and Schomaker, "Weighted Distributed Hash
Tables", 2005).
"""

import functools
import math
import struct
from collections.abc import Collection, Iterable

import msgspec
import xxhash

from clusterfs.cluster.views import Member, State, View, mask_of, nodes_of

_SCORE_INPUT = struct.Struct(">QQ")


Weighted = tuple[tuple[int, int], ...]  # (node, weight), by node


@functools.lru_cache(maxsize=1 << 14)
def replica_set(group: int, nodes: Weighted, replicas: int) -> tuple[int, ...]:
    """Return the nodes that should hold the group, best first; all of them if they are few.

    Of many groups a node gets a share like its weight, as far as there are others for the other
    copies; a change of one weight moves only what that node gains or loses.
    """
    ranked = sorted(nodes, key=lambda each: (-_score(group, each[0]) * each[1], each[0]))
    return tuple(node for node, _ in ranked[:replicas])


def candidates(view: View) -> Weighted:
    """Return the nodes that groups are placed on, with their weights: those away, too."""
    return tuple(sorted((*present_candidates(view), *view.away)))


def present_candidates(view: View) -> Weighted:
    """Return the nodes that may hold data now, with their weights."""
    return _weighted(view.members, view.dropped | view.retiring)


def founded(cluster: str, groups: int, replicas: int) -> View:
    """Return the view before the first: epoch 0, nobody in it, no group has a copy."""
    nothing = (0,) * groups
    return View(
        epoch=0,
        cluster=cluster,
        replicas=replicas,
        members=(),
        in_sync=nothing,
        syncing=nothing,
        stopped=(False,) * groups,
        generation=nothing,
        lock_epoch=0,
    )


def joined(view: View, newcomer: Member, dead: Collection[int] = (), *, keep: bool = False) -> View:
    """Let a new incarnation in; it replaces an older one of its node.

    `dead` are incarnations whose last possible lease has ended; they are removed in the same step,
    so that a group whose replicas were all cut off together keeps its whole in-sync set.
    """
    assert newcomer.state is State.UP
    assert all(m.incarnation != newcomer.incarnation for m in view.members), "incarnation reused"
    draft = _Draft(view, keep=keep)
    gone = {m.node for m in view.members if m.incarnation in dead or m.node == newcomer.node}
    draft.remove(gone)
    draft.members[newcomer.node] = newcomer
    return draft.finished()


def left(view: View, node: int, incarnation: int, *, keep: bool = False) -> View | None:
    """Remove a member that says good-bye: it serves and caches nothing any more."""
    return removed(view, {incarnation}, keep=keep) if _member(view, node, incarnation) else None


def missed(view: View, nodes: Collection[int]) -> View | None:
    """Wait no longer for nodes that are away: others shall copy what they had."""
    draft = _Draft(view)
    for node in nodes:
        draft.away.pop(node, None)
    return draft.finished() if len(draft.away) < len(view.away) else None


def leaving(view: View, incarnations: Collection[int], *, keep: bool = False) -> View | None:
    """Refuse these members from now on; their locks wait until their leases have ended."""
    nodes = {m.node for m in view.members if m.incarnation in incarnations and m.state is State.UP}
    if not nodes:
        return None
    draft = _Draft(view, keep=keep)
    draft.expel(nodes)
    return draft.finished()


def removed(view: View, incarnations: Collection[int], *, keep: bool = False) -> View | None:
    """Take out members whose last possible lease has ended: their locks may be purged.

    keep: their place in the sets for a while, here as in `leaving`, `left` and `joined`.
    """
    nodes = {m.node for m in view.members if m.incarnation in incarnations}
    if not nodes:
        return None
    draft = _Draft(view, keep=keep)
    draft.remove(nodes)
    return draft.finished()


def in_sync(view: View, node: int, incarnation: int, groups: Iterable[int]) -> View | None:
    """Count a syncing replica as in sync in these groups: it misses nothing any more."""
    bit = 1 << node
    groups = [g for g in groups if view.syncing[g] & bit and not view.stopped[g]]
    if not groups or not view.has(node, incarnation):
        return None
    draft = _Draft(view)
    for group in groups:
        draft.syncing[group] &= ~bit
        draft.in_sync[group] |= bit
    return draft.finished()


def replica_dropped(
    view: View, node: int, incarnation: int, groups: Iterable[int] | None
) -> View | None:
    """Take a replica out of its sets while its client stays.

    With groups: it must sync these again from the start. With None: its store is broken, and it is
    no replica until the node's next start. The only in-sync replica of a group stays in its set.
    """
    if not view.has(node, incarnation):
        return None
    draft = _Draft(view)
    if groups is None:
        if not (view.up_replicas() & ~view.dropped) & 1 << node:
            return None
        draft.dropped |= 1 << node
        groups = range(len(view.in_sync))
    touched = [draft.drop_bit(group, 1 << node) for group in groups]
    return draft.finished() if any(touched) or draft.dropped != view.dropped else None


def replica_returned(view: View, node: int, incarnation: int) -> View | None:
    """Let a replica sync again that was taken out of all its sets."""
    if not view.has(node, incarnation) or not view.dropped & 1 << node:
        return None
    draft = _Draft(view)
    draft.dropped &= ~(1 << node)
    return draft.finished()


def restarted(view: View, groups: Iterable[int]) -> View | None:
    """Open stopped groups again after the union of what their replicas have was rolled forward.

    Groups whose last in-sync set is not all present stay stopped.
    """
    draft = _Draft(view)
    opened = False
    for group in groups:
        if view.stopped[group] and view.present(group):
            draft.syncing[group] &= ~view.in_sync[group]
            draft.stopped[group] = False
            opened = True
    return draft.finished() if opened else None


def retired(view: View, node: int) -> View | None:
    """Let a node hold nothing any more, as soon as others have what it has."""
    if view.retiring & 1 << node:
        return None
    draft = _Draft(view)
    draft.retiring |= 1 << node
    return draft.finished()


def reinstated(view: View, node: int) -> View | None:
    """Let a node that was to be removed hold data again; or forget one that is gone for good."""
    if not view.retiring & 1 << node:
        return None
    draft = _Draft(view)
    draft.retiring &= ~(1 << node)
    return draft.finished()


def held(view: View, node: int) -> int:
    """Return in how many groups' masks a node is."""
    masks = zip(view.in_sync, view.syncing, strict=True)
    return sum(bool((in_sync | syncing) & 1 << node) for in_sync, syncing in masks)


def surplus(view: View, node: int) -> frozenset[int]:
    """Return the groups of which a copy at this node is of no use: all wanted replicas have it.

    A node that is out for now, or retires, keeps what it has until it comes back or is emptied.
    """
    bit = 1 << node
    nodes = candidates(view)
    if (view.dropped | view.retiring) & bit or not nodes:
        return frozenset()
    return frozenset(
        group
        for group, in_sync in enumerate(view.in_sync)
        if not (in_sync | view.syncing[group]) & bit
        and not view.stopped[group]
        and in_sync == mask_of(replica_set(group, nodes, view.replicas))
    )


def given_up(view: View, truth: int | None = None) -> View | None:
    """Wait no more for the absent in-sync replicas of stopped groups: an operator's word.

    Where some of the last in-sync set are up, they are the set now, and roll forward before the
    group is opened. Where none is, the copy of `truth` becomes the truth, however old it is.
    """
    up = view.up_replicas()
    draft = _Draft(view)
    for group, stopped in enumerate(view.stopped):
        if stopped and not view.present(group):
            present = view.in_sync[group] & up or (0 if truth is None else 1 << truth & up)
            draft.in_sync[group] = present or view.in_sync[group]
            draft.syncing[group] &= ~present
    return draft.finished() if draft.in_sync != list(view.in_sync) else None


def rivals(view: View, node: int) -> set[int]:
    """Return the incarnations that share a running group's in-sync set with this node.

    A node that starts again must know which of them live before it joins: it resyncs from the
    living, and with none living its own copy belongs to the truth that the group restarts from.
    """
    mask = 0
    for group, bits in enumerate(view.in_sync):
        if bits & 1 << node and not view.stopped[group]:
            mask |= bits
    return {m.incarnation for m in view.members if m.node != node and mask & 1 << m.node}


def last_copies(view: View, node: int) -> int:
    """Return how many stopped groups wait for this node's store."""
    return sum(
        stopped and bool(bits & 1 << node)
        for stopped, bits in zip(view.stopped, view.in_sync, strict=True)
    )


def _weighted(members: Iterable[Member], barred: int) -> Weighted:
    return tuple(
        (m.node, m.weight)
        for m in members
        if m.store_id and m.state is State.UP and not barred & 1 << m.node
    )


def _member(view: View, node: int, incarnation: int) -> Member | None:
    member = view.member(node)
    return member if member is not None and member.incarnation == incarnation else None


@functools.lru_cache(maxsize=1 << 16)
def _score(group: int, node: int) -> float:
    """Return -1/ln(u) for u = hash/2**64: to be multiplied by the weight."""
    digest = xxhash.xxh3_64_intdigest(_SCORE_INPUT.pack(group, node))
    return -1 / math.log((digest + 0.5) / 2**64)


class _Draft:
    """A view being changed; `finished` derives what the changes entail."""

    def __init__(self, view: View, *, keep: bool = False) -> None:
        self._view = view
        self._keep = keep
        self.away = dict(view.away)
        self.members = {member.node: member for member in view.members}
        self.in_sync = list(view.in_sync)
        self.syncing = list(view.syncing)
        self.stopped = list(view.stopped)
        self.dropped = view.dropped
        self.retiring = view.retiring
        self._touched: set[int] = set()

    def expel(self, nodes: Collection[int]) -> None:
        """Take members' replicas out of all sets at one stroke, and let no renewal through."""
        bits = mask_of(nodes)
        for node in nodes:
            member = self.members[node]
            whole = member.store_id and not self._view.dropped & 1 << node
            if self._keep and whole and member.state is State.UP:
                self.away[node] = member.weight
            self.members[node] = msgspec.structs.replace(self.members[node], state=State.LEAVING)
        self.dropped &= ~bits
        for group, old in enumerate(self.in_sync):
            self.syncing[group] &= ~bits
            if self.stopped[group] or not old & bits:
                continue
            if old & ~bits:
                self.in_sync[group] = old & ~bits
            else:
                self.stopped[group] = True

    def remove(self, nodes: Collection[int]) -> None:
        """Expel members, then forget them."""
        self.expel(nodes)
        for node in nodes:
            del self.members[node]

    def drop_bit(self, group: int, bit: int) -> bool:
        """Take one replica out of one group, unless only it has the data; tell whether it went."""
        if self.syncing[group] & bit:
            self.syncing[group] &= ~bit
        elif self.in_sync[group] & bit and self.in_sync[group] != bit and not self.stopped[group]:
            self.in_sync[group] &= ~bit
        else:
            return False
        self._touched.add(group)
        return True

    def finished(self) -> View:
        """Return the next view, with placement, generations and epochs as they must be."""
        here = {node for node, member in self.members.items() if member.state is State.UP}
        here.update(nodes_of(self.retiring))
        self.away = {node: weight for node, weight in self.away.items() if node not in here}
        self._place()
        old = self._view
        epoch = old.epoch + 1
        members = tuple(self.members[node] for node in sorted(self.members))
        now = {member.incarnation for member in members}
        before = {member.incarnation for member in old.members}
        moved = members != old.members
        touched = range(len(self.in_sync)) if before - now else self._touched | self._changed()
        generation = list(old.generation)
        for group in touched:
            generation[group] = epoch
        return View(
            epoch=epoch,
            cluster=old.cluster,
            replicas=old.replicas,
            members=members,
            in_sync=tuple(self.in_sync),
            syncing=tuple(self.syncing),
            stopped=tuple(self.stopped),
            generation=tuple(generation),
            lock_epoch=epoch if moved else old.lock_epoch,
            dropped=self.dropped,
            lock_epoch_before=old.lock_epoch if moved else old.lock_epoch_before,
            retiring=self.retiring,
            away=tuple(sorted(self.away.items())),
        )

    def _place(self) -> None:
        members = (member for _, member in sorted(self.members.items()))
        here = _weighted(members, self.dropped | self.retiring)
        if not here:
            return
        placed = tuple(sorted((*here, *self.away.items())))
        for group, stopped in enumerate(self.stopped):
            if not stopped:
                waits = self.in_sync[group].bit_count() > 1
                nodes = placed if waits else here
                wanted = mask_of(replica_set(group, nodes, self._view.replicas))
                self._place_group(group, wanted)

    def _place_group(self, group: int, wanted: int) -> None:
        if not self.in_sync[group]:
            self.in_sync[group] = wanted  # nothing was ever written: whoever comes first has it all
        elif not wanted & ~self.in_sync[group]:
            self.in_sync[group] = wanted
            self.syncing[group] = 0
        else:
            self.syncing[group] = wanted & ~self.in_sync[group] & ~mask_of(self.away)

    def _changed(self) -> set[int]:
        old = self._view
        return {
            group
            for group in range(len(self.in_sync))
            if (self.in_sync[group], self.syncing[group], self.stopped[group])
            != (old.in_sync[group], old.syncing[group], old.stopped[group])
        }
