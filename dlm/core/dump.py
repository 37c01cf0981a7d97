"""A lockspace described for people and tools, in plain dicts, lists and numbers. PURE."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TypeVar

from dlm.core import range_dump
from dlm.core.lockspace import LockspaceCore
from dlm.core.master_copy import Copy
from dlm.core.resource import Resource
from dlm.core.tree import Tree
from dlm.events import Lock
from dlm.modes import Mode

PAGE = 100  # locks, or things that may have some, looked at without a pause

Description = dict[str, object]
Pages = Iterator[list[Description]]
Thing = TypeVar("Thing")


def summary(core: LockspaceCore) -> Description:
    """Return what is short, however many locks there are.

    Keys: node, incarnation, epoch, frozen, lost, members {node: incarnation}, awaited (whose pages
    a recovery waits for), counts (of trees, locks and names in the directory), holding (the
    smoothed round trip, BASTs that waited for the minimum hold time, claims not acknowledged),
    migration (trees that left, were taken, or stayed after all; the longest time that one was
    frozen; those that are leaving and those that are to leave, with the node they go to),
    deadlocks (searches begun here, waits of ours that gave way, the last of their stories),
    misdirected.
    """
    here, mastery = core.here, core.mastery
    return {
        "node": here.me,
        "incarnation": here.incarnation,
        "epoch": here.epoch,
        "frozen": here.frozen,
        "lost": core.lost,
        "members": {str(node): number for node, number in here.members.items()},
        "awaited": core.recovery.awaited() if core.recovery.busy else {},
        "counts": {
            "trees": len(mastery.trees),
            "locks": len(core.ownership.locks),
            "directory": len(core.directory.entries),
            "ranges": len(core.ranges.parties),
            "range_tables": len(core.keeper.tables),
        },
        "holding": {
            "round_trip_s": round(core.ownership.holding.round_trip_s, 6),
            "postponed": core.ownership.holding.postponed,
            "claims_pending": len(mastery.claims.pending_roots()),
        },
        "migration": {
            "left": core.migration.left,
            "taken": core.migration.taken,
            "called_off": core.migration.called_off,
            "longest_s": round(core.migration.longest_s, 6),
            "leaving": _targets({r: d.target[0] for r, d in mastery.departures.items()}),
            "wished": _targets(core.affinity.wishes),
        },
        "deadlocks": {
            "searches": core.detector.searches,
            "victims": core.detector.victims,
            "stories": list(core.detector.stories),
        },
        "misdirected": here.misdirected,
    }


def pages(core: LockspaceCore, now_s: float, *, only_busy: bool = False) -> dict[str, Pages]:
    """Return the long lists in pages, each described when it is taken; some may be empty.

    Keys: resources (mastered here), locks (our own), directory (our share; not with `only_busy`),
    ranges (that our users have), kept_ranges (that we keep for all).
    """
    user, keeper = core.ranges, core.keeper
    used, kept = list(user.used.values()), list(keeper.tables.values())
    mastery, owned = core.mastery, core.ownership
    known = core.directory.entries
    trees = [tree for tree in mastery.trees.values() if tree.resources]
    locks = list(owned.locks.values())
    roots = [] if only_busy else list(known)
    return {
        "ranges": (
            [
                range_dump.used(user, entry, now_s)
                for entry in page
                if not only_busy or entry.sent or entry.table.waiting
            ]
            for page in _cut(used)
        ),
        "kept_ranges": (
            [
                range_dump.kept(keeper, entry, now_s)
                for entry in page
                if not only_busy or entry.table.waiting or entry.pending
            ]
            for page in _cut(kept)
        ),
        "resources": _resources(trees, now_s, only_busy=only_busy),
        "locks": (
            [
                _lock(core, lock)
                for lock in page
                if not only_busy or lock.requested is not None or lock.blocked_for is not None
            ]
            for page in _cut(locks)
        ),
        "directory": (
            [{"root": root, "master": known[root].master[0]} for root in page if root in known]
            for page in _cut(roots)
        ),
    }


def _targets(trees: Mapping[bytes, int]) -> list[Description]:
    return [{"root": root, "to": node} for root, node in islice(trees.items(), PAGE)]


def _cut(things: list[Thing]) -> Iterator[list[Thing]]:
    for first in range(0, len(things), PAGE):
        yield things[first : first + PAGE]


def _resources(trees: list[Tree], now_s: float, *, only_busy: bool) -> Pages:
    """Yield pages of resources; one ends with the resource whose locks fill it."""
    page: list[Description] = []
    room = PAGE
    for tree in trees:
        for resource in tuple(tree.resources.values()):
            room -= 1
            if not only_busy or resource.converting or resource.waiting:
                page.append(_resource(tree, resource, now_s))
                room -= len(resource.granted) + len(resource.converting) + len(resource.waiting)
            if room <= 0:
                yield page
                page, room = [], PAGE
    yield page


def _resource(tree: Tree, resource: Resource, now_s: float) -> Description:
    return {
        "root": resource.root,
        "leaf": resource.leaf,
        "removing": tree.removing,
        "pinned": tree.pinned,
        "lvb": resource.lvb,
        "lvb_sequence": resource.lvb_sequence,
        "lvb_valid": resource.lvb_valid,
        "granted": [_copy(copy, now_s) for copy in resource.granted],
        "converting": [_copy(copy, now_s) for copy in resource.converting],
        "waiting": [_copy(copy, now_s) for copy in resource.waiting],
    }


def _copy(copy: Copy, now_s: float) -> Description:
    waits = copy.requested is not None
    return {
        "node": abs(copy.node),
        "id": copy.lock,
        "owner": copy.owner,
        "granted": _mode(copy.granted),
        "requested": _mode(copy.requested),
        "flags": copy.flags,
        "sequence": copy.sequence if waits else 0,
        "told": _mode(copy.highbast or None),
        "wait_s": max(0.0, round(now_s - copy.since_s, 6)) if waits else 0.0,
    }


def _lock(core: LockspaceCore, lock: Lock) -> Description:
    root = core.ownership.roots.get(lock.name.root)
    return {
        "id": lock.id,
        "root": lock.name.root,
        "leaf": lock.name.leaf,
        "owner": lock.owner,
        "master": None if root is None else root.master,
        "mode": _mode(lock.mode),
        "requested": _mode(lock.requested),
        "flags": lock.flags,
        "blocked_for": _mode(lock.blocked_for),
        "cancelling": lock.cancelling,
        "acknowledged": lock.requested is None or lock.sequence != 0,
        "lvb": lock.lvb,
        "lvb_sequence": lock.lvb_sequence,
        "lvb_valid": lock.lvb_valid,
    }


def _mode(mode: Mode | None) -> str | None:
    return None if mode is None else mode.name
