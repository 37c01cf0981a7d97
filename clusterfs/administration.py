"""What administrators see of a running node, and may tell it: the handlers of its admin socket.

A status reply and a statistics reply are consistent pictures: nothing here waits while it looks.
"""

import os
import time
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from clusterfs import brick, control
from clusterfs.admin import Description, LockReports, with_processes
from clusterfs.cluster import report
from clusterfs.cluster.node import Membership
from clusterfs.config import Config
from clusterfs.errors import InvalidArgument, Unavailable
from clusterfs.fs.filesystem import Filesystem
from clusterfs.store.opening import Tuning
from clusterfs.store.store import Store
from clusterfs.volume.volume import Volume
from dlm.net import Mesh
from dlm.node import Lockspace

_NO_STORE = {"ok": False, "error": "this node has no storage"}


class Node(Protocol):
    """A running node: `clusterfs.daemon.Daemon`."""

    config: Config
    mountpoint: str  # "" for a node that only serves its brick
    membership: Membership
    store: Store | None
    mesh: Mesh
    volume: Volume
    locks: Lockspace
    filesystem: Filesystem


class Administration:
    """One node's answers."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._started_s = time.clock_gettime(time.CLOCK_BOOTTIME)

    def handlers(self) -> dict[str, control.Handler]:
        """Return who answers which request."""
        reports = LockReports(self._node.mesh, self.describe_locks, self._others)
        return {
            "status": lambda _: self.status(),
            "members": self._members,
            "locks": reports.own,
            "cluster_locks": reports.all,
            "statistics": lambda _: {"statistics": self.statistics()},
            "tune": self._tune,
            "df": lambda _: _NO_STORE if self._node.store is None else self._node.store.usage(),
            "scrub": self._scrub,
        }

    def status(self) -> dict[str, Any]:
        """Return this node's state as JSON-able values."""
        membership, store = self._node.membership, self._node.store
        view, node = membership.view, membership.node
        lost = membership.lost.is_set()
        return report.describe(view) | {
            "name": self._node.config.name,
            "node": node,
            "incarnation": membership.incarnation,
            "lost": lost,
            "lease_left_s": max(0.0, membership.lease_left_s()),
            "mount": self._node.mountpoint,
            "pid": os.getpid(),
            "synced": not lost and report.is_synced(view, node),
            "space": self._space(),
            "health": [] if store is None else store.health() + brick.health(self._node.config),
            "resync": self._node.volume.statistics(),
            "store": {} if store is None else store.statistics(),
            "uptime_s": time.clock_gettime(time.CLOCK_BOOTTIME) - self._started_s,
        }

    def _space(self) -> dict[str, int] | None:
        if self._node.store is None:
            return None
        space = self._node.store.space()
        return {"total": space.total, "free": space.free}

    def statistics(self) -> dict[str, Any]:
        """Return every counter there is."""
        store = self._node.store
        return {
            "store": {} if store is None else store.statistics(),
            "volume": self._node.volume.statistics(),
            "mesh": self._node.mesh.statistics(),
            "membership": self._node.membership.statistics(),
            "filesystem": self._node.filesystem.statistics(),
        }

    def describe_locks(self, only_busy: bool) -> Description:  # noqa: FBT001  of a callback
        """Return what clusterfs-lockdump shows of this node; or only what somebody waits for."""
        short, long = self._node.locks.dump_in_pages(only_busy=only_busy)
        uses = self._node.filesystem.describe_locks(only_busy=only_busy)
        named = with_processes(uses, self._node.mountpoint)
        return short | {"name": self._node.config.name}, {**long, "uses": named}

    async def _members(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return every node that ever joined, with what each holds."""
        del request
        try:
            names = await self._node.membership.names()
        except Unavailable as failure:
            return {"ok": False, "error": str(failure)}
        return report.nodes(self._node.membership.view, names)

    def _scrub(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Start or stop the scrub, or none of both; return where it is."""
        store = self._node.store
        action, rate = request.get("action"), request.get("rate_bytes")
        if store is None:
            return _NO_STORE
        if action == "start" and isinstance(rate, int) and rate > 0:
            store.start_scrub(rate)
        elif action == "stop":
            store.stop_scrub()
        elif action is not None:
            return {"ok": False, "error": "action is start, with a rate_bytes, or stop"}
        numbers = store.statistics()
        return store.scrub_progress() | {
            "repairing": self._node.volume.mending,
            "damage_left": numbers["damaged_chunks"],
            "damage_healed": numbers["damage_healed"],
        }

    def _tune(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self._node.store is None:
            return _NO_STORE
        try:
            return dict(self._node.store.tune(msgspec.convert(request, Tuning)))
        except (InvalidArgument, msgspec.ValidationError) as refusal:
            return {"ok": False, "error": str(refusal)}

    def _others(self) -> dict[int, str]:
        membership = self._node.membership
        return {m.node: m.name for m in membership.view.members if m.node != membership.node}
