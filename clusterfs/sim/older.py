"""A brick's checkpoint as an older clusterfs would have written it: what upgrades start from."""

import struct

from clusterfs.sim.disk import SimulatedDisk
from clusterfs.store.format import open_value, seal_value
from clusterfs.store.table import TOTAL, damage_in
from clusterfs.store.whole_maps import owner_of


def as_older(disk: SimulatedDisk, version: int) -> None:
    """Make a checkpoint without clones what a clusterfs of format 2 or 3 would have written."""
    table = disk.open_table()
    changes: list[tuple[bytes, bytes | None]] = []
    owners = {}
    for key in [key for key in disk.medium.table if key.startswith(b"O")]:
        value = open_value(key, table.get(key) or b"")
        assert value is not None
        owners[owner_of(key[1:], struct.unpack_from("<Q", value, 18)[0])] = key[1:]
        changes.append((key, seal_value(key, value[:18])))
    for key in [key for key in disk.medium.table if key.startswith(b"M")]:
        older = b"M" + owners[key[1:17]] + key[17:]
        value = open_value(key, table.get(key) or b"")
        assert value is not None
        changes += [(key, None), (older, seal_value(older, value))]
    value = open_value(b"L", table.get(b"L") or b"")
    assert value is not None
    changes.append((b"L", seal_value(b"L", value[: {2: 16, 3: 32}[version]])))
    table.commit(changes)
    total = struct.pack("<IQQ", version, 0, 0)  # looked at for its format only
    assert damage_in([], {TOTAL: seal_value(TOTAL, total)}.get) is None
