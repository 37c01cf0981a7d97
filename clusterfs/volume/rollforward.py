"""How replicas agree on what clients that are gone have done. PURE.

Each replica reports what it remembers (traces). The union takes, object by object, the highest
version; why that equals the union of the transactions is told in
docs/decisions/0001-roll-forward-by-object.md. What hangs together by a transaction over several
objects is brought forward in one step, so that a failure meanwhile never shows half of it.

A transaction over several replica sets is committed if anyone committed it, or if all replicas of
all its groups have it prepared; else it is aborted. Before all its groups are present it stays
undecided.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from clusterfs.store.objects import ObjectId, Version
from clusterfs.volume.merge import reached
from clusterfs.volume.messages import Known, Touched, Trace


class Newest(NamedTuple):
    """The highest version anybody reports of an object, and who does."""

    touched: Touched
    node: int


def union(
    reports: Mapping[int, Iterable[Trace]], serves: Callable[[int, int], bool]
) -> dict[ObjectId, Newest]:
    """Return the newest state of each object among replicas that serve its group.

    `serves(node, group)` tells whether the node's copy of the group counts.
    """
    newest: dict[ObjectId, Newest] = {}
    for node in sorted(reports):
        for trace in reports[node]:
            for touched in trace.objects:
                if not serves(node, touched.group):
                    continue
                known = newest.get(touched.object_id)
                if known is None or touched.version > known.touched.version:
                    newest[touched.object_id] = Newest(touched, node)
    return newest


def took_place(
    reports: Mapping[int, Iterable[Trace]], serves: Callable[[int, int], bool]
) -> dict[int, set[int]]:
    """Return, by client, which transactions are in a replica that serves one of their groups."""
    found: dict[int, set[int]] = {}
    for node, traces in reports.items():
        for trace in traces:
            if any(serves(node, touched.group) for touched in trace.objects):
                found.setdefault(trace.client, set()).add(trace.sequence)
    return found


def lacks(newest: Touched, version: Version, tombstone: Version | None) -> bool:
    """Tell whether a replica whose object is at `version` misses the newest state."""
    if newest.deleted:
        return bool(version.counter) and version < newest.version
    return reached(version, tombstone) < newest.version


def components(traces: Iterable[Trace], lacking: Collection[ObjectId]) -> list[list[ObjectId]]:
    """Return the lacking objects, those that share a transaction together, in order of id."""
    parent: dict[ObjectId, ObjectId] = {object_id: object_id for object_id in lacking}

    def root(object_id: ObjectId) -> ObjectId:
        while parent[object_id] != object_id:
            parent[object_id] = parent[parent[object_id]]
            object_id = parent[object_id]
        return object_id

    for trace in traces:
        ours = [touched.object_id for touched in trace.objects if touched.object_id in parent]
        for other in ours[1:]:
            parent[root(other)] = root(ours[0])
    found: dict[ObjectId, list[ObjectId]] = {}
    for object_id in sorted(parent):
        found.setdefault(root(object_id), []).append(object_id)
    return list(found.values())


def verdict(
    participants: Sequence[Collection[int]], known: Mapping[int, Known], *, all_present: bool
) -> Known:
    """Decide a prepared transaction whose client is gone.

    Args:
        participants: per group of the transaction its in-sync replicas.
        known: what each of them answered.
        all_present: no participating group is stopped, and everybody answered.

    Returns:
        COMMITTED, ABORTED, or PREPARED while it must stay undecided.
    """
    nodes = {node for group in participants for node in group}
    answers = {known.get(node, Known.UNKNOWN) for node in nodes}
    if Known.COMMITTED in answers:
        return Known.COMMITTED
    if Known.ABORTED in answers:
        return Known.ABORTED
    if not all_present:
        return Known.PREPARED
    return Known.COMMITTED if answers == {Known.PREPARED} else Known.ABORTED
