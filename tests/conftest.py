"""Real etcd clusters on loopback ports. Every member is a process that the test started."""

import contextlib
import json
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from clusterfs.cli.dev import free_ports

pytest_plugins = ["tests.leftovers"]

# A build server may start us with SIGINT ignored, and programs that we start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Examples are the same in every run, and no clock decides whether a test fails. New examples:
# pytest --hypothesis-profile search --hypothesis-seed N.
_ALIKE = settings(
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
        HealthCheck.large_base_example,
    ],
)
settings.register_profile("alike", _ALIKE)
settings.register_profile("search", _ALIKE, derandomize=False)
settings.load_profile("alike")

_START_ATTEMPTS = 6000
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


# These play for minutes and mostly wait: whoever starts last with them ends last.
_LONGEST = ("test_rounds.py", "test_rounds_of_five.py")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the files that take the longest begin."""
    items.sort(key=lambda item: item.path.name not in _LONGEST)


class EtcdServers:
    """`count` members; `close` ends them all."""

    def __init__(self, folder: Path, count: int = 1, *, extra: tuple[str, ...] = ()) -> None:
        program = shutil.which("etcd")
        assert program, "etcd is missing: apt install etcd-server"
        self._program = program
        self._folder = folder
        self._extra = extra
        self.scheme = "https" if extra else "http"
        ports = free_ports(3 * count, set())
        self._clients, self._peers = ports[:count], ports[count : 2 * count]
        self._health = ports[2 * count :]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        try:
            for n in range(count):
                self.start(n)
            for n in range(count):
                self.wait(n)
        except BaseException:
            self.close()
            raise

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(f"{self.scheme}://127.0.0.1:{port}" for port in self._clients)

    def start(self, n: int) -> None:
        cluster = ",".join(f"m{i}=http://127.0.0.1:{p}" for i, p in enumerate(self._peers))
        data = self._folder / f"m{n}"
        existing = data.exists()
        with (self._folder / f"m{n}.log").open("ab") as log:
            self._processes[n] = subprocess.Popen(
                [
                    self._program,
                    f"--name=m{n}",
                    f"--data-dir={data}",
                    f"--listen-client-urls={self.endpoints[n]}",
                    f"--advertise-client-urls={self.endpoints[n]}",
                    f"--listen-metrics-urls=http://127.0.0.1:{self._health[n]}",
                    f"--listen-peer-urls=http://127.0.0.1:{self._peers[n]}",
                    f"--initial-advertise-peer-urls=http://127.0.0.1:{self._peers[n]}",
                    f"--initial-cluster={cluster}",
                    f"--initial-cluster-state={'existing' if existing else 'new'}",
                    *self._extra,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait(self, n: int) -> None:
        """Wait until member n serves: it listens long before, and a slow disk delays the rest."""
        url = f"http://127.0.0.1:{self._health[n]}/health"
        for _ in range(_START_ATTEMPTS):
            with (
                contextlib.suppress(OSError),
                _DIRECTLY.open(url, timeout=60) as answer,
            ):
                if json.load(answer)["health"] == "true":
                    return
            time.sleep(0.05)
        raise AssertionError((self._folder / f"m{n}.log").read_text()[-2000:])

    def signal(self, n: int, number: signal.Signals) -> None:
        self._processes[n].send_signal(number)

    def stop(self, n: int) -> None:
        process = self._processes.pop(n)
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()

    def close(self) -> None:
        for n in list(self._processes):
            self.stop(n)


@pytest.fixture(scope="module")
def etcd_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., EtcdServers]]:
    """Make etcd clusters: `etcd_servers(members, extra=(FLAG, ...))`."""
    made: list[EtcdServers] = []

    def make(count: int = 1, *, extra: tuple[str, ...] = ()) -> EtcdServers:
        servers = EtcdServers(tmp_path_factory.mktemp("etcd"), count, extra=extra)
        made.append(servers)
        return servers

    yield make
    for servers in made:
        servers.close()


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServers]:
    """One etcd for all tests that need one and do not harm it."""
    servers = EtcdServers(tmp_path_factory.mktemp("etcd"))
    yield servers
    servers.close()


@pytest.fixture
def unused_port() -> int:
    return free_ports(1, set())[0]
