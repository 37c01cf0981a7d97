"""What an administrator may ask of the membership, and what to say when data would be lost. PURE.

Names are of every node that ever joined, by number. Each refusal is one line that says why, and
what to do instead.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from clusterfs.cluster.membership import held, present_candidates
from clusterfs.cluster.views import View, mask_of, nodes_of

Names = Mapping[int, str]


def number_of(name: str, names: Names) -> int | None:
    """Return the number of the node called `name`."""
    return next((node for node, known in names.items() if known == name), None)


def against_retiring(view: View, node: int, names: Names, *, fewer: bool) -> str | None:
    """Say why a node should not be emptied; None: it may.

    fewer: also if too few nodes are left for as many copies as are wanted.
    """
    name = names[node]
    member = view.member(node)
    if member is None:
        return against_forgetting(view, node, names)
    if not member.store_id:
        return None
    left = [n for n, _ in present_candidates(view) if n != node]
    if not left:
        return f"{name} has the only copy of everything: let another node join first"
    if len(left) < view.replicas and not fewer:
        return (
            f"without {name} there would be {_nodes(len(left))} for {view.replicas} copies of "
            "everything: let another node join first, or say --fewer-copies"
        )
    return None


def against_forgetting(view: View, node: int, names: Names) -> str | None:
    """Say why a node should not be forgotten; None: nothing is lost with it."""
    name = names[node]
    waiting = sum(
        stopped and bool(bits >> node & 1)
        for stopped, bits in zip(view.stopped, view.in_sync, strict=True)
    )
    if waiting:
        return (
            f"{waiting} groups wait for {name}, which may have the newest data: start it; if it is "
            "lost for good, `clusterfs cluster force` goes on without that"
        )
    if view.member(node) is not None:
        return f"{name} is a member still: unmount it, or end its `clusterfs serve`"
    if held(view, node):
        return f"{name} holds data: it has to be emptied first"
    return None


class Loss(NamedTuple):
    """What may be lost if nobody waits for the absent nodes any more."""

    groups: int  # that are stopped
    absent: tuple[str, ...]  # who is waited for
    recent: int  # groups of which some of the last set are here: what nobody had fsynced
    old: int  # groups of which nobody is: everything since another copy was in sync

    def text(self, total: int, truth: str | None) -> str:
        """Return it for people, one fact a line."""
        lines = [f"{self.groups} of {total} groups wait for {', '.join(self.absent)}."]
        if self.recent:
            lines.append(
                f"Of {self.recent} groups other nodes of the last in-sync set are here. They have "
                "everything that was fsynced. What programs wrote within the last second or so "
                "before the stop, without fsync, may be lost."
            )
        if self.old and truth:
            lines.append(
                f"Of {self.old} groups only the copy of {truth} is to count. EVERYTHING written to "
                f"them since {truth} was last in sync is lost, fsynced or not; files that were "
                "being copied to it may be half old and half new."
            )
        elif self.old:
            lines.append(
                f"Of {self.old} groups no node of the last in-sync set is here: they stay stopped. "
                "With --truth NODE the older copy of that node counts instead."
            )
        lines.append(f"What {', '.join(self.absent)} had is replaced when they come back.")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return it for programs."""
        return self._asdict()


def loss(view: View, names: Names) -> Loss:
    """Return what is at stake in the stopped groups."""
    up = view.up_replicas()
    missing = [
        bits
        for bits, stopped in zip(view.in_sync, view.stopped, strict=True)
        if stopped and bits & ~up
    ]
    absent = mask_of(node for bits in missing for node in nodes_of(bits & ~up))
    recent = sum(bool(bits & up) for bits in missing)
    who = tuple(names.get(node, f"node {node}") for node in nodes_of(absent))
    return Loss(len(missing), who, recent, len(missing) - recent)


def against_truth(view: View, node: int, names: Names) -> str | None:
    """Say why a node's copy cannot be made the truth; None: it can."""
    if not view.up_replicas() >> node & 1:
        return f"{names[node]} has no brick that is here: choose one that runs"
    return None


def _nodes(count: int) -> str:
    return f"{count} node" if count == 1 else f"{count} nodes"
