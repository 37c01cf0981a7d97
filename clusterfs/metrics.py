"""A node's numbers for Prometheus: names, units, and the endpoint that serves them.

Every metric is a row of METRICS: where it is in the daemon's statistics, and what it is called by
Prometheus' conventions (base units, `_total` for what only grows). The endpoint runs on a thread of
the library; a scrape takes one snapshot on the daemon's own thread, and nothing else.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import trio
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from clusterfs.errors import SetupError

BLOCK_BYTES: Final = 4096

Snapshot = Mapping[str, Any]  # {"status": ..., "statistics": ..., "codes": [...]}


class Row(NamedTuple):
    """One number."""

    name: str
    path: str  # keys below the snapshot, with dots
    help: str
    factor: float = 1

    @property
    def is_counter(self) -> bool:
        """Whether it only grows."""
        return self.name.endswith("_total")


METRICS: Final = (
    Row("clusterfs_lease_left_seconds", "status.lease_left_s", "Rest of the lease."),
    Row("clusterfs_uptime_seconds", "status.uptime_s", "Time since the daemon started."),
    Row("clusterfs_epoch", "status.epoch", "Number of the view in force."),
    Row("clusterfs_stopped_groups", "status.stopped_groups", "Groups that wait for their nodes."),
    Row("clusterfs_takeovers_total", "status.takeovers", "Daemons that took this mount over."),
    Row("clusterfs_brick_size_bytes", "status.space.total", "What the brick can hold."),
    Row("clusterfs_brick_free_bytes", "status.space.free", "What the brick can still take."),
    Row("clusterfs_lease_renewals_total", "statistics.membership.renewals", "Lease renewals."),
    Row(
        "clusterfs_provider_failures_total",
        "statistics.membership.provider_failures",
        "Requests that the store of views did not answer.",
    ),
    Row("clusterfs_open_handles", "statistics.filesystem.handles", "Open files and directories."),
    Row("clusterfs_known_inodes", "statistics.filesystem.inodes", "Inodes in memory."),
    Row("clusterfs_held_locks", "statistics.filesystem.locks_held", "Cluster locks held here."),
    Row("clusterfs_lock_grants_total", "statistics.filesystem.lock_grants", "Locks granted."),
    Row("clusterfs_lock_revokes_total", "statistics.filesystem.lock_revokes", "Locks given up."),
    Row("clusterfs_transactions_total", "statistics.filesystem.transactions", "Transactions."),
    Row("clusterfs_fast_reads_total", "statistics.filesystem.reads_fast", "Reads that waited not."),
    Row("clusterfs_slow_reads_total", "statistics.filesystem.reads_slow", "Reads that waited."),
    Row("clusterfs_fast_writes_total", "statistics.filesystem.writes_fast", "Writes without wait."),
    Row("clusterfs_slow_writes_total", "statistics.filesystem.writes_slow", "Writes that waited."),
    Row("clusterfs_dirty_bytes", "statistics.filesystem.dirty_bytes", "Data not written back yet."),
    Row(
        "clusterfs_written_back_bytes_total",
        "statistics.filesystem.flushed_bytes",
        "Data written back to the replicas.",
    ),
    Row("clusterfs_stalled_requests", "statistics.filesystem.stalled", "Requests that stall."),
    Row("clusterfs_dead_handles_total", "statistics.filesystem.dead_handles", "Handles given up."),
    Row("clusterfs_commits_total", "statistics.volume.commits", "Transactions sent to replicas."),
    Row("clusterfs_local_reads_total", "statistics.volume.reads_local", "Reads of this brick."),
    Row("clusterfs_remote_reads_total", "statistics.volume.reads_remote", "Reads of other nodes'."),
    Row("clusterfs_rejected_connections_total", "statistics.mesh.rejected", "Strangers refused."),
    Row(
        "clusterfs_log_written_bytes_total",
        "statistics.store.log_bytes_written",
        "Bytes written to the brick's log.",
    ),
    Row("clusterfs_log_syncs_total", "statistics.store.syncs", "Syncs of the brick's log."),
    Row(
        "clusterfs_logical_bytes",
        "statistics.store.logical_blocks",
        "What the files in the brick hold.",
        BLOCK_BYTES,
    ),
    Row(
        "clusterfs_unique_bytes",
        "statistics.store.unique_blocks",
        "What of it is stored: each block once.",
        BLOCK_BYTES,
    ),
    Row(
        "clusterfs_cleaned_bytes_total",
        "statistics.store.relocated_blocks",
        "Data that the cleaner moved.",
        BLOCK_BYTES,
    ),
    Row("clusterfs_damaged_chunks", "statistics.store.damaged_chunks", "Damage that is left."),
    Row("clusterfs_healed_chunks_total", "statistics.store.damage_healed", "Damage repaired."),
    Row("clusterfs_chunk_cache_hits_total", "statistics.store.cache_hits", "Chunks found in RAM."),
    Row("clusterfs_chunk_cache_misses_total", "statistics.store.cache_misses", "Chunks not there."),
    Row("clusterfs_chunk_cache_bytes", "statistics.store.cached_bytes", "Size of that cache."),
)
HEALTH: Final = "clusterfs_health"
CONNECTED: Final = "clusterfs_peer_connected"


def families(snapshot: Snapshot) -> Iterator[Metric]:
    """Return the metrics of a snapshot; what this node has not (a brick, say) is left out."""
    for row in METRICS:
        value = _found(snapshot, row.path)
        if value is not None:
            family = CounterMetricFamily if row.is_counter else GaugeMetricFamily
            yield family(row.name, row.help, value=value * row.factor)
    health = GaugeMetricFamily(HEALTH, "1 for each health code.", labels=["code", "severity"])
    for finding in snapshot["codes"]:
        health.add_metric([finding["code"], finding["severity"]], 1)
    yield health
    connected = GaugeMetricFamily(CONNECTED, "1 for each peer with a link.", labels=["node"])
    for node, peer in snapshot["statistics"]["mesh"]["peers"].items():
        connected.add_metric([str(node)], float(peer["connected"]))
    yield connected


class _Snapshots(Collector):
    def __init__(self, take: Callable[[], Snapshot]) -> None:
        self._take = take
        self._token = trio.lowlevel.current_trio_token()

    def collect(self) -> Iterator[Metric]:
        return families(trio.from_thread.run_sync(self._take, trio_token=self._token))


@contextmanager
def serving(address: str, take: Callable[[], Snapshot]) -> Iterator[None]:
    """Serve GET /metrics at host:port while the block runs. Raises SetupError."""
    host, _, port = address.rpartition(":")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshots(take))
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as failure:
        raise SetupError(f"metrics: cannot listen on {address}: {failure.strerror}") from failure
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(1)  # a scrape that waits for this thread fails: its connection is closed


def _found(snapshot: Snapshot, path: str) -> float | None:
    value: Any = snapshot
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return float(value)
