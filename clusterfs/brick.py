"""A node's brick: opened as it is, or set aside and begun anew when it lost what was durable.

What a damaged checkpoint or log once said, only the other replicas know. So the node moves the
content into a folder of the brick, deletes nothing, and synchronises all of it from its peers. It
waits until they have removed its former incarnation: from then on the view says who has what.

Invariants:
  * nothing is moved while the view counts on this brick: a node that has the last copy of a group,
    or whose peers are all down, refuses to start, and the operator decides;
  * of what was set aside, at most one lies there: a medium that fails again and again does not fill
    the disk, and is looked at by a person.
"""

import resource
from collections.abc import Callable
from pathlib import Path

import structlog
import trio

from clusterfs.cluster import membership
from clusterfs.cluster.node import insist
from clusterfs.cluster.providers import Identity, Provider
from clusterfs.config import Config
from clusterfs.errors import BrickDamaged, SetupError
from clusterfs.store.disk import DirectoryDisk
from clusterfs.store.opening import Options
from clusterfs.store.store import Store

_LOOK_S = 0.2
_PATIENCE_LEASES = 4  # one until its former incarnation is over, the rest for busy peers
_PATIENCE_S = 10.0


async def open_brick(
    config: Config,
    identity: Identity,
    provider: Provider,
    on_failed: Callable[[OSError], None],
) -> Store:
    """Open the node's store; if it is damaged and the others have everything, a new one.

    Raises SetupError.
    """
    try:
        try:
            return await _open(config, identity, on_failed)
        except BrickDamaged as damage:
            await _replace(config, identity, provider, damage)
        return await _open(config, identity, on_failed)
    except SetupError as refusal:
        raise SetupError(f"{config.brick}: {refusal}") from refusal


def health(config: Config) -> list[str]:
    """Return what an administrator should do about content that was set aside."""
    return [
        f"{folder} has what was in this brick before it was set aside; "
        "delete it once the node is in sync, or keep it to have the disk looked at"
        for folder in DirectoryDisk(Path(config.brick)).asides()
    ]


async def _open(config: Config, identity: Identity, on_failed: Callable[[OSError], None]) -> Store:
    return await Store.open(
        DirectoryDisk(Path(config.brick)),
        identity.secret,
        cluster_id=identity.cluster,
        options=Options(
            segment_bytes=config.segment_mib << 20,
            executors=config.flush_executors,
            compression=config.compression,
            hints=config.dedup_window_gib << 18,  # blocks of 4 KiB
            cache_bytes=config.chunk_cache_mib << 20,
            open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        ),
        on_failed=on_failed,
    )


async def _replace(
    config: Config, identity: Identity, provider: Provider, damage: BrickDamaged
) -> None:
    log = structlog.get_logger(package="brick")
    disk = DirectoryDisk(Path(config.brick))
    if earlier := disk.asides():
        raise SetupError(
            f"{damage}; not by itself: {earlier[0]} lies there from the last time; have the disk "
            "looked at, delete that, and start the node again"
        ) from damage
    log.warning("the brick is damaged; do others have all of it?", reason=str(damage))
    patience_s = _PATIENCE_S + _PATIENCE_LEASES * identity.lease_s
    if not await is_dispensable(provider, config.name, patience_s):
        raise SetupError(
            f"{damage}; not by itself: the cluster counts on this brick, or no other node runs"
        ) from damage
    disk.lock()
    try:
        folder = disk.set_aside()
    except OSError as failure:
        raise SetupError(f"cannot set the brick aside: {failure.strerror}") from failure
    finally:
        disk.close()
    log.error("the brick was damaged and is set aside; all is synchronised anew", folder=folder)


async def is_dispensable(provider: Provider, name: str, patience_s: float) -> bool:
    """Wait until the others have removed that node; tell whether they have all that it had."""
    with trio.move_on_after(patience_s):
        while True:
            view = (await insist(provider.read)).view
            names = await insist(provider.names)
            node = next((number for number, known in names.items() if known == name), None)
            if view is None or node is None:
                return False
            if view.member(node) is None:
                return not membership.last_copies(view, node)
            await trio.sleep(_LOOK_S)
    return False
