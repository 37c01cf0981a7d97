"""A cluster on hosts of its own: etcd on the first three, a clusterfs daemon and a mount on each.

Everything talks inside TLS, over the bridge. The mounts are visible to this process. Whatever was
started is ended by `close`, and dies with this process where it can (etcd, the namespaces); the
daemons, which are made to outlive the command that started them, are ended by scripts/sweep.
"""

import contextlib
import datetime as dt
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clusterfs import certificates
from clusterfs.cli import dev, processes
from clusterfs.cli.dev import Cluster, Node
from tests.faults.hosts import DIES_WITH_US, Network
from tests.watchdog import abort_mounts

PATIENCE_S = 300.0  # many clusters may share a slow machine
DAEMON = Path(__file__).with_name("daemon.py")
_RESYNC_NS = 15 * 10**9
_CLIENTS, _PEERS, _HEALTH, _NODES = 2379, 2380, 2381, 7400
_ASK_HEALTH = """
import json, sys, time, urllib.request
away = True
while away:
    try:
        with urllib.request.urlopen(sys.argv[1], timeout=60) as answer:
            away = json.load(answer)["health"] != "true"
    except OSError:
        time.sleep(0.05)
"""
_CONFIG = """\
name = "{name}"
brick = "../bricks/{name}"
provider = "etcd:{endpoints}"
listen = "{address}:7400"
replicas = {replicas}
groups = 32
lease_s = {lease_s}
segment_mib = 4
after_crash = "unmount"

[etcd]
ca = "../tls/ca.pem"
certificate = "../tls/{name}.pem"
key = "../tls/{name}.key"

[tls]
ca = "../tls/ca.pem"
certificate = "../tls/{name}.pem"
key = "../tls/{name}.key"
"""


class Etcd:
    """One member on each of some hosts, with certificates of the cluster's authority."""

    def __init__(self, network: Network, folder: Path, members: range) -> None:
        self._network, self._folder, self.members = network, folder, members
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def endpoints(self) -> str:
        return ",".join(f"https://{Network.address(n)}:{_CLIENTS}" for n in self.members)

    def start(self, n: int) -> None:
        address, data = Network.address(n), self._folder / "etcd" / f"m{n}"
        state = "existing" if data.exists() else "new"
        data.parent.mkdir(exist_ok=True)
        tls = self._folder / "tls"
        files = {"cert-file": f"m{n}.pem", "key-file": f"m{n}.key", "trusted-ca-file": "ca.pem"}
        with (self._folder / "log" / f"m{n}.log").open("ab") as log:
            self._processes[n] = subprocess.Popen(
                [
                    *DIES_WITH_US,
                    *self._network.hosts[n].enter,
                    "etcd",
                    f"--name=m{n}",
                    f"--data-dir={data}",
                    f"--listen-client-urls=https://{address}:{_CLIENTS}",
                    f"--advertise-client-urls=https://{address}:{_CLIENTS}",
                    f"--listen-metrics-urls=http://{address}:{_HEALTH}",
                    f"--listen-peer-urls=https://{address}:{_PEERS}",
                    f"--initial-advertise-peer-urls=https://{address}:{_PEERS}",
                    "--initial-cluster="
                    + ",".join(f"m{i}=https://{Network.address(i)}:{_PEERS}" for i in self.members),
                    f"--initial-cluster-state={state}",
                    "--client-cert-auth",
                    "--peer-client-cert-auth",
                    *(f"--{name}={tls / file}" for name, file in files.items()),
                    *(f"--peer-{name}={tls / file}" for name, file in files.items()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait(self, n: int) -> None:
        """Wait until a member serves."""
        health = f"http://{Network.address(n)}:{_HEALTH}/health"
        ask = [*self._network.hosts[n].enter, sys.executable, "-c", _ASK_HEALTH, health]
        subprocess.run(ask, check=True, timeout=PATIENCE_S, env={**os.environ, "no_proxy": "*"})

    def signal(self, n: int, number: signal.Signals) -> None:
        self._processes[n].send_signal(number)

    def stop(self, n: int) -> None:
        process = self._processes.pop(n)
        process.kill()
        process.wait()

    def heal(self) -> None:
        """Let every member run."""
        for n in self.members:
            if n not in self._processes:
                self.start(n)
            self.signal(n, signal.SIGCONT)

    def close(self) -> None:
        for n in list(self._processes):
            self.stop(n)


class HostCluster:
    """Hosts, etcd, daemons and mounts under one folder."""

    def __init__(
        self,
        folder: Path,
        hosts: int = 3,
        *,
        replicas: int = 3,
        lease_s: float = 2.0,
        plants: Mapping[int, str] | None = None,
        small_brick_mib: int = 0,
    ) -> None:
        """`plants` are bugs by node. With two hosts a third one is a witness: it has etcd only.

        With `small_brick_mib` the last node's brick is a filesystem of that size.
        """
        dev.START_TIMEOUT_S = PATIENCE_S
        self.folder, self.lease_s = folder, lease_s
        self._plants = plants or {}
        self.cluster = Cluster(folder, self._on_its_host)
        self.small_brick: Path | None = None
        self.killed: list[tuple[int, int]] = []  # (node, CLOCK_MONOTONIC ns after its end)
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        for name in ("etc", "log", "tls"):
            (folder / name).mkdir(parents=True)
        self._certify(hosts)
        self.network = Network(folder, max(hosts, 3))
        self.etcd = Etcd(self.network, folder, range(1, 4))
        try:
            for n in self.etcd.members:
                self.etcd.start(n)
            for n in self.etcd.members:
                self.etcd.wait(n)
            self._configure(hosts, replicas)
            if small_brick_mib:
                self._make_small(self.node(hosts), small_brick_mib)
            self.cluster.up()
        except BaseException:
            self.close()
            raise

    def _certify(self, hosts: int) -> None:
        tls, now = self.folder / "tls", dt.datetime.now(dt.UTC)
        certificates.make_authority(tls, now)
        for n in range(1, hosts + 1):
            certificates.issue(tls, f"n{n}", tls, now)
        for n in range(1, 4):
            certificates.issue(tls, f"m{n}", tls, now, addresses=[Network.address(n)])

    def _configure(self, hosts: int, replicas: int) -> None:
        for number in range(1, hosts + 1):
            node = Node(number, self.folder)
            node.config.write_text(
                _CONFIG.format(
                    name=node.name,
                    endpoints=self.etcd.endpoints,
                    address=Network.node_address(number),
                    replicas=replicas,
                    lease_s=self.lease_s,
                )
            )

    def _make_small(self, node: Node, size_mib: int) -> None:
        node.brick.mkdir(parents=True)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "clusterfs-test", node.brick],
            check=True,
        )
        self.small_brick = node.brick

    def _on_its_host(self, node: Node) -> list[str]:
        program = [sys.executable, "-P", str(DAEMON), self._plants.get(node.number, "none")]
        return [*self.network.hosts[node.number].enter, *program]

    @property
    def nodes(self) -> list[Node]:
        return self.cluster.nodes

    def node(self, number: int) -> Node:
        return Node(number, self.folder)

    # --- faults

    def kill(self, number: int, *, host: bool = False) -> None:
        """Kill a daemon; with its supervisor, as when a host dies."""
        node = self.node(number)
        family = [node.process, node.supervisor if host else None]
        for process in family:
            if process:
                processes.send(process, signal.SIGKILL)
        for process in family:
            assert process is None or processes.wait_gone(process, PATIENCE_S)
        self.killed.append((number, time.monotonic_ns()))

    def signal(self, number: int, signum: signal.Signals) -> None:
        process = self.node(number).process
        assert process
        assert processes.send(process, signum), f"n{number} does not run"

    def heal(self) -> None:
        """Undo every fault, and wait until all nodes are members in sync."""
        self.network.set_cut(())
        self.etcd.heal()
        for node in self.nodes:
            if node.state() == "paused":
                self.signal(node.number, signal.SIGCONT)
        self.restart_dead()
        self.wait_synced()

    def restart_dead(self) -> None:
        """Start the daemons that do not run; returns when they are mounted."""
        dead = [node for node in self.nodes if node.state() == "gone"]
        if dead:
            self.cluster._start(dead)

    def wait_synced(self) -> None:
        wait(lambda: all(self._settled(node) for node in self.nodes), "all nodes are in sync")

    def _settled(self, node: Node) -> bool:
        with contextlib.suppress(Exception):
            status = node.ask("status", timeout_s=10.0)
            return bool(status["synced"]) and len(status["members"]) == len(self.nodes)
        return False

    # --- what happened

    def explain(self) -> str:
        """Let each running daemon log what its tasks wait for; returns the ends of the logs."""
        for node in self.nodes:
            if node.state() == "running" and (process := node.process):
                processes.send(process, signal.Signals(signal.SIGRTMIN))
        time.sleep(1)  # nobody waits for what they say
        ends = []
        for node in self.nodes:
            with contextlib.suppress(OSError):
                lines = node.log.read_text("utf-8", "replace").splitlines()
                ends.append("\n".join([f"--- {node.name}, {node.state()}", *lines[-120:]]))
        return "\n".join(ends)

    def losses(self) -> list[tuple[int, int]]:
        """Return (node, CLOCK_MONOTONIC ns) of every end of an incarnation, as the nodes saw it."""
        found = list(self.killed)
        for node in self.nodes:
            for line in logged(node.log):
                if line.get("event") == "lost":
                    moment = dt.datetime.fromisoformat(line["time"]).timestamp()
                    found.append((node.number, int(moment * 1e9) - self._offset_ns + 100_000_000))
        return sorted(found, key=lambda loss: loss[1])

    def blackouts(self) -> list[int]:
        """Return when a daemon was killed that may have been the only one in sync."""
        losses = self.losses()
        return [
            at
            for number, at in self.killed
            if any(other != number and at - _RESYNC_NS < lost <= at for other, lost in losses)
        ]

    # --- the end

    def close(self) -> None:
        """End everything, hung or not, without asking it."""
        for node in self.nodes:
            for process in (node.process, node.supervisor):
                if process and processes.send(process, signal.SIGKILL):
                    processes.wait_gone(process, 10)
        abort_mounts(self.folder)
        if hasattr(self, "etcd"):
            self.etcd.close()
            self.network.close()
        if self.small_brick:
            subprocess.run(["umount", "-l", self.small_brick], check=False)


def logged(path: Path) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text("utf-8", "replace").splitlines():
            with contextlib.suppress(ValueError):
                parsed = json.loads(line)
                if isinstance(parsed, dict):
                    yield parsed


def wait(so: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not so():
        assert time.monotonic() < deadline_s, f"it is not so after {timeout_s:g} s: {what}"
        time.sleep(0.05)
