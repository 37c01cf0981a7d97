"""What a brick holds, without opening it for service: fsck's view of it, as plain data.

`recovered` replays the log in memory, executes every check of fsck and reads every block. It writes
nothing and starts nothing, so that many thousand crashed bricks can be looked at.
"""

from typing import Any

from blake3 import blake3
from xxhash import xxh3_64_intdigest

from clusterfs.sim.disk import SimulatedDisk
from clusterfs.store.checking import Checker, Report, check_brick
from clusterfs.store.packing import read_chunk


def recovered(
    disk: SimulatedDisk, clients: range, sequences: range
) -> tuple[Report, dict[str, Any]]:
    """Return fsck's report, and the content in the form of `Model.dump`."""
    found: dict[str, Any] = {}

    def look(checker: Checker) -> None:
        found.update(_content(checker, disk, clients, sequences))

    return check_brick(disk, also=look), found


def _content(
    checker: Checker, disk: SimulatedDisk, clients: range, sequences: range
) -> dict[str, Any]:
    state, outcomes = checker.state, checker.contents.outcomes
    objects = {}
    for object_id in checker.objects():
        head = state.head(object_id)
        assert head is not None
        blocks = []
        for block, cid in state.placed(object_id, 0, 1 << 32):
            place = state.chunks.find(cid)
            assert place is not None, f"chunk {cid}"
            data = read_chunk(disk.read, place[0])
            is_right = xxh3_64_intdigest(data) == place[1]
            blocks.append((block, blake3(data).digest(8) if is_right else b"damaged"))
        keys = state.scan(object_id, b"", b"", 1 << 30)
        objects[object_id] = (head.version, head.group, keys, blocks)
    names = [(c, s) for c in clients for s in sequences]
    facts = checker.contents.facts
    return {
        "objects": objects,
        "applied": {name for name in names if outcomes.applied(*name)},
        "prepared": set(outcomes.prepared),
        "outcomes": {n: o for n in names if (o := outcomes.outcome(*n)) is not None},
        "facts": {name: facts[name] for name in ("epoch", "cluster") if name in facts},
    }
