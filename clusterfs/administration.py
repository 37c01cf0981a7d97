"""What administrators see of a running node, and may tell it: the handlers of its admin socket.

A status reply and a statistics reply are consistent pictures: nothing here waits while it looks.
"""

import datetime as dt
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from clusterfs import brick, control, health, transport
from clusterfs.admin import Description, LockReports, with_lockers, with_processes
from clusterfs.cluster import consent, report
from clusterfs.cluster.membership import given_up, reinstated, retired
from clusterfs.cluster.node import Membership
from clusterfs.config import Config
from clusterfs.errors import FilesystemError, InvalidArgument, Unavailable
from clusterfs.fs.filesystem import Filesystem
from clusterfs.handover import Handover
from clusterfs.store.opening import Tuning
from clusterfs.store.store import Store
from clusterfs.tree_orders import TreeOrders
from clusterfs.volume.volume import Volume
from dlm.net import Mesh
from dlm.node import Lockspace

_NO_STORE = {"ok": False, "error": "this node has no storage"}


class Node(Protocol):
    """A running node: `clusterfs.daemon.Daemon`."""

    config: Config
    source: Path  # of the config
    handover: Handover
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
        self._reports = LockReports(node.mesh, self.describe_locks, self._others)

    def handlers(self) -> dict[str, control.Handler]:
        """Return who answers which request."""
        orders = TreeOrders(
            self._node.mesh,
            lambda: self._node.locks.trees,
            lambda: self._node.membership.node,
            self._everybody,
        )
        return {
            "status": lambda _: self.status(),
            "members": self._members,
            "retire": self._retire,
            "forget": self._forget,
            "force": self._force,
            "locks": self._reports.own,
            "cluster_locks": self._reports.all,
            "lock_tree": orders.take,
            "statistics": lambda _: {"statistics": self.statistics()},
            "tune": self._tune,
            "df": lambda _: _NO_STORE if self._node.store is None else self._node.store.usage(),
            "scrub": self._scrub,
            "clone": self._clone,
            "quotas": self._quotas,
            "compare": self._compare,
        }

    def status(self) -> dict[str, Any]:
        """Return this node's state as JSON-able values, with what is wrong as `codes`."""
        status = self._status()
        return status | {"codes": self._findings(status, self.statistics())}

    def snapshot(self) -> dict[str, Any]:
        """Return all that the metrics are made of."""
        status, statistics = self._status(), self.statistics()
        codes = self._findings(status, statistics)
        return {"status": status, "statistics": statistics, "codes": codes}

    def _findings(self, status: dict[str, Any], statistics: dict[str, Any]) -> list[dict[str, str]]:
        config, store = self._node.config, self._node.store
        failed = None if store is None else store.failed
        facts = health.Facts(
            status,
            statistics,
            config.lease_s,
            brick_failure=None if failed is None else str(failed),
            disk_full=store is not None and failed is None and bool(store.health()),
            set_aside=0 if store is None else len(brick.health(config)),
            certificate_days=transport.certificate_days(config, dt.datetime.now(dt.UTC)),
        )
        return [msgspec.to_builtins(finding) for finding in health.judge(facts)]

    def _status(self) -> dict[str, Any]:
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
            "config": str(self._node.source),
            "serving": self._node.handover.serving,
            "takeovers": self._node.handover.takeovers,
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
        lockers = with_lockers(long["ranges"], self._node.mountpoint)
        return short | {"name": self._node.config.name}, {**long, "uses": named, "ranges": lockers}

    async def awaiting_locks(self, inodes: set[int]) -> list[str]:
        """Return the other nodes whose programs wait for file locks in any of these inodes."""
        return await self._reports.awaiting(inodes) if inodes else []

    async def _members(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return every node that ever joined, with what each holds."""
        del request
        try:
            names = await self._node.membership.names()
        except Unavailable as failure:
            return {"ok": False, "error": str(failure)}
        reports = await self._node.volume.resync_reports()
        found = report.nodes(self._node.membership.view, names)
        for node in found["nodes"]:
            known = reports.get(node["node"])
            node["resync"] = None if known is None else msgspec.structs.asdict(known)
        return found

    async def _retire(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Let the node `name` hold nothing any more; with `cancel`, let it hold data again."""
        membership = self._node.membership
        cancel, fewer = bool(request.get("cancel")), bool(request.get("fewer"))
        try:
            names = await membership.names()
            node = consent.number_of(str(request.get("name")), names)
            if node is None:
                return _no_such_node(request, names)
            if cancel:
                await membership.propose(lambda view: reinstated(view, node))
                return {}
            refusal = consent.against_retiring(membership.view, node, names, fewer=fewer)
            if refusal is None:
                await membership.propose(lambda view: retired(view, node))
        except Unavailable as failure:
            return {"ok": False, "error": str(failure)}
        return {"ok": False, "error": refusal} if refusal else {}

    async def _forget(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Forget the node `name`, which is away and holds nothing."""
        membership = self._node.membership
        try:
            names = await membership.names()
            node = consent.number_of(str(request.get("name")), names)
            if node is None:
                return _no_such_node(request, names)
            refusal = consent.against_forgetting(membership.view, node, names)
            if refusal is None:
                await membership.forget(node, dt.datetime.now(dt.UTC).timestamp())
        except Unavailable as failure:
            return {"ok": False, "error": str(failure)}
        return {"ok": False, "error": refusal} if refusal else {}

    async def _force(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Say what is lost if absent nodes are not waited for; with `sure`, wait no more."""
        membership = self._node.membership
        truth, chosen = request.get("truth"), None
        try:
            names = await membership.names()
            view = membership.view
            if truth is not None:
                chosen = consent.number_of(str(truth), names)
                if chosen is None:
                    return _no_such_node({"name": truth}, names)
                if refusal := consent.against_truth(view, chosen, names):
                    return {"ok": False, "error": refusal}
            loss = consent.loss(view, names)
            if request.get("sure"):
                await membership.propose(lambda view: given_up(view, chosen))
        except Unavailable as failure:
            return {"ok": False, "error": str(failure)}
        text = loss.text(len(view.in_sync), str(truth) if truth is not None else None)
        return {**loss.as_dict(), "text": text}

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
            "failed": None if store.failed is None else str(store.failed),
        }

    async def _clone(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Fill an empty directory (file) with a clone of a tree (file); each an inode number."""
        source, target = request.get("source"), request.get("target")
        if not isinstance(source, int) or not isinstance(target, int):
            return {"ok": False, "error": "source and target are inode numbers"}
        try:
            done = await self._node.filesystem.trees.clone(source, target)
        except FilesystemError as failure:
            reason = str(failure) or os.strerror(failure.errno)
            return {"ok": False, "error": reason}
        return msgspec.structs.asdict(done)

    async def _quotas(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return all quotas of the volume, with what is used of each."""
        del request
        try:
            found = await self._node.filesystem.list_quotas()
        except FilesystemError as failure:
            return {"ok": False, "error": str(failure) or os.strerror(failure.errno)}
        return {"quotas": [msgspec.structs.asdict(quota) for quota in found]}

    def _compare(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Start or stop the comparison of replicas, or none of both; return where it is."""
        comparer = self._node.volume.comparer
        if comparer is None:
            return _NO_STORE
        if request.get("action") == "start":
            comparer.start()
        elif request.get("action") == "stop":
            comparer.stop()
        syncing = report.count(self._node.membership.view.syncing, self._node.membership.node)
        return comparer.progress() | {"syncing": syncing}

    def _tune(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self._node.store is None:
            return _NO_STORE
        rate_mib = request.get("resync_mib_s")
        if isinstance(rate_mib, int) and rate_mib >= 0:
            self._node.volume.set_resync_rate(rate_mib << 20)
        try:
            tuned = self._node.store.tune(msgspec.convert(request, Tuning))
            return tuned | {"resync_mib_s": self._node.volume.resync_rate() >> 20}
        except (InvalidArgument, msgspec.ValidationError) as refusal:
            return {"ok": False, "error": str(refusal)}

    def _others(self) -> dict[int, str]:
        me = self._node.membership.node
        return {node: name for node, name in self._everybody().items() if node != me}

    def _everybody(self) -> dict[int, str]:
        return {m.node: m.name for m in self._node.membership.view.members}


def _no_such_node(request: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    known = ", ".join(sorted(names.values()))
    return {"ok": False, "error": f"no node is called {request.get('name')!r}; there are: {known}"}
