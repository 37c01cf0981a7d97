"""What a view says, for administrators and for whoever must know its part in it. PURE."""

from collections.abc import Mapping
from typing import Any

from clusterfs.cluster.membership import candidates, held, replica_set
from clusterfs.cluster.views import State, View, mask_of, nodes_of


def describe(view: View) -> dict[str, Any]:
    """Return a view as JSON-able values: members, and how many groups each has."""
    names = {m.node for m in view.members}
    return {
        "cluster": view.cluster,
        "epoch": view.epoch,
        "replicas": view.replicas,
        "groups": len(view.in_sync),
        "members": [
            {
                "node": m.node,
                "name": m.name,
                "incarnation": m.incarnation,
                "state": m.state.name.lower(),
                "address": m.address,
                "wanted": wanted(view, m.node),
                "in_sync": count(view.in_sync, m.node),
                "syncing": count(view.syncing, m.node),
            }
            for m in view.members
        ],
        "absent": sorted({n for mask in view.in_sync for n in nodes_of(mask)} - names),
        "away": [node for node, _ in view.away],  # their copies are not made anew yet
        "stopped_groups": sum(view.stopped),
    }


def nodes(view: View, names: Mapping[int, str]) -> dict[str, Any]:
    """Return every node that ever joined, up or away, with the groups that it holds."""
    found = []
    for node in sorted(names.keys() | {m.node for m in view.members}):
        member = view.member(node)
        found.append(
            {
                "node": node,
                "name": member.name if member else names[node],
                "state": member.state.name.lower() if member else "away",
                "address": member.address if member else "",
                "storage": bool(member.store_id) if member else None,
                "weight": member.weight if member else None,
                "retiring": bool(view.retiring >> node & 1),
                "dropped": bool(view.dropped >> node & 1),
                "held": held(view, node),
                "wanted": wanted(view, node),
                "in_sync": count(view.in_sync, node),
                "syncing": count(view.syncing, node),
            }
        )
    return {
        "cluster": view.cluster,
        "epoch": view.epoch,
        "replicas": view.replicas,
        "groups": len(view.in_sync),
        "stopped_groups": sum(view.stopped),
        "nodes": found,
    }


def awaited(view: View) -> list[int]:
    """Return the nodes that stopped groups wait for: all of the last in-sync sets that are away."""
    masks = [mask for mask, stopped in zip(view.in_sync, view.stopped, strict=True) if stopped]
    up = mask_of(m.node for m in view.members if m.state is State.UP)
    return sorted({node for mask in masks for node in nodes_of(mask & ~up)})


def is_synced(view: View, node: int) -> bool:
    """Tell whether every group is served and the node has all that it should have."""
    return (
        not any(view.stopped)
        and not view.dropped >> node & 1
        and not count(view.syncing, node)
        and count(view.in_sync, node) >= wanted(view, node)
    )


def wanted(view: View, node: int) -> int:
    """Return how many groups are to have a copy at a node."""
    nodes = candidates(view)
    groups = range(len(view.in_sync))
    return sum(node in replica_set(group, nodes, view.replicas) for group in groups)


def led_groups(view: View, node: int) -> list[int]:
    """Return the groups whose first in-sync replica that is up is at a node."""
    up = mask_of(m.node for m in view.members if m.state is State.UP)
    return [g for g, mask in enumerate(view.in_sync) if _lowest(mask & up) == 1 << node]


def count(masks: tuple[int, ...], node: int) -> int:
    """Return in how many masks a node is."""
    return sum(1 for mask in masks if mask >> node & 1)


def _lowest(mask: int) -> int:
    return mask & -mask
