"""An etcd mutex, measured as our locks are: Debian's etcd-server, one member, v3 lock service.

The lock service is asked through etcd's JSON gateway, each client over one connection that stays
open, with a lease that all its locks use. A mutex of etcd is a key that is written through raft to
the disk; so it is measured twice, with its data on disk and in memory (/dev/shm).
"""

import base64
import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.dlm.sockets import latency
from clusterfs.cli.dev import free_ports

CLIENTS = 64
START_S = 30.0


class Client:
    """One connection to the gateway, and a lease."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._connection.connect()
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lease = self.post("/v3/lease/grant", {"TTL": 300})["ID"]

    def post(self, path: str, value: Any) -> Any:
        """Ask; return the answer."""
        self._connection.request("POST", path, json.dumps(value))
        answer = self._connection.getresponse()
        body = answer.read()
        assert answer.status == 200, (path, answer.status, body)
        return json.loads(body)

    def lock(self, name: str) -> str:
        """Wait for the mutex; return its key."""
        encoded = base64.b64encode(name.encode()).decode()
        answer = self.post("/v3/lock/lock", {"name": encoded, "lease": self._lease})
        key: str = answer["key"]
        return key

    def unlock(self, key: str) -> None:
        """Give it back."""
        self.post("/v3/lock/unlock", {"key": key})

    def repeat(self, name: str, end_s: float) -> list[tuple[float, float]]:
        """Lock and unlock until then, but once at least; return the microseconds of each."""
        times: list[tuple[float, float]] = []
        while (start_s := time.perf_counter()) < end_s or not times:
            key = self.lock(name)
            locked_s = time.perf_counter()
            self.unlock(key)
            unlocked_s = time.perf_counter()
            times.append(((locked_s - start_s) * 1e6, (unlocked_s - start_s) * 1e6))
        return times

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


@contextlib.contextmanager
def running(folder: Path) -> Iterator[int]:
    """Run etcd with its data there; yield the port of its clients."""
    ports = free_ports(2, set())
    own, peers = (f"http://127.0.0.1:{port}" for port in ports)
    command = [
        *("etcd", "--name", "bench", "--data-dir", str(folder), "--log-level", "error"),
        *("--listen-client-urls", own, "--advertise-client-urls", own),
        *("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers),
        *("--initial-cluster", f"bench={peers}"),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as etcd:
        try:
            _wait_ready(ports[0], etcd)
            yield ports[0]
        finally:
            etcd.terminate()


def measure(seconds: float) -> dict[str, dict[str, Any]]:
    """Return the rows, with data on disk and in memory."""
    rows = {}
    for where, parent in (("disk", None), ("memory", "/dev/shm")):  # noqa: S108
        folder = Path(tempfile.mkdtemp(prefix="bench-etcd-", dir=parent))
        try:
            with running(folder) as port:
                rows |= {f"{row}, {where}": numbers for row, numbers in
                         _rows(port, seconds).items()}  # fmt: skip
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return rows


def _rows(port: int, seconds: float) -> dict[str, dict[str, Any]]:
    alone = _together(port, ["mutex"], seconds)
    many = _together(port, [f"mutex {number}" for number in range(CLIENTS)], seconds)
    rows = {"etcd": latency(alone) | {"per_s": len(many) / seconds, "tasks": CLIENTS}}
    for count in (2, 4):
        times = _together(port, ["fought for"] * count, seconds)
        rows[f"etcd, contended by {count} clients"] = latency(times) | {
            "per_s": len(times) / seconds
        }
    return rows


def _together(port: int, names: list[str], seconds: float) -> list[tuple[float, float]]:
    """Let a client for each name lock and unlock it; return the times of all locks."""
    clients = [Client(port) for _ in names]
    times: list[tuple[float, float]] = []
    end_s = time.perf_counter() + seconds

    def work(client: Client, name: str) -> None:
        times.extend(client.repeat(name, end_s))

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(clients, names, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    return times


def _wait_ready(port: int, etcd: subprocess.Popen[bytes]) -> None:
    end_s = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException, AssertionError):
            Client(port).close()
            return
        assert etcd.poll() is None, "etcd ended; is etcd-server installed?"
        assert time.monotonic() < end_s, "etcd does not answer"
        time.sleep(0.1)
