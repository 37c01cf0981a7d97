"""Comparing two replicas' objects. PURE.

A listing is a map from object to (group, version). Versions identify contents: each object has one
writer at a time, a version is written once, and it carries the epoch of the view it was written in.
"""

from collections.abc import Mapping

from clusterfs.store.objects import ABSENT, ObjectId, Version

Listed = tuple[int, Version]


def differing(mine: Mapping[ObjectId, Listed], theirs: Mapping[ObjectId, Listed]) -> list[ObjectId]:
    """Return what a syncing replica must pull, or delete, to equal the source; in order."""
    every = mine.keys() | theirs.keys()
    return sorted(o for o in every if mine.get(o) != theirs.get(o))


def newer(
    mine: Mapping[ObjectId, Listed],
    theirs: Mapping[ObjectId, Listed],
    tombstones: Mapping[ObjectId, Version],
) -> list[ObjectId]:
    """Return what the other replica has at a higher version than this one ever had; in order.

    Both are equals: neither has all, and the union is wanted.
    """
    found = []
    for object_id, (_, version) in theirs.items():
        known = mine.get(object_id)
        if reached(known[1] if known else ABSENT, tombstones.get(object_id)) < version:
            found.append(object_id)
    return sorted(found)


def reached(version: Version, tombstone: Version | None) -> Version:
    """Return the version up to which this replica has an object's changes, its deletion counted.

    A tombstone is on disk before its deletion. So it says nothing while the object is there: the
    deletion is lost then, or the object was made anew since, at a later version.
    """
    return version if version != ABSENT else tombstone or ABSENT
