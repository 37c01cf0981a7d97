"""Real clusters for the tests in this folder: three daemons, three mounts, shared by a module.

Each test has a watchdog (tests/watchdog.py).
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from clusterfs.cli.dev import Cluster, Node
from tests.watchdog import watched, wreck

LOG_LINES = 25
LEASE_S = 15.0  # a disk or a scheduler may stall for seconds; who is out meanwhile loses its locks
_clusters: list[Cluster] = []


class Configured(Cluster):
    """A cluster with the same settings of the tests' own in each node's configuration file."""

    def __init__(
        self,
        folder: Path,
        program: Callable[[Node], list[str]] | None,
        settings: dict[str, str],
    ) -> None:
        super().__init__(folder, program)
        self._settings = settings

    def configure(
        self,
        nodes: int | None,
        replicas: int | None,
        provider: str | None = None,
        *,
        tls: bool = False,
    ) -> None:
        known = self.nodes
        super().configure(nodes, replicas, provider, tls=tls)
        for node in self.nodes:
            if node not in known:
                _set(node.config, self._settings)


def _set(config: Path, settings: dict[str, str]) -> None:
    lines = config.read_text().splitlines()
    kept = [line for line in lines if line.partition(" = ")[0] not in settings]
    top = [f"{key} = {value}" for key, value in settings.items()]
    config.write_text("\n".join([*top, *kept]) + "\n")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.mount)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the ends of the daemons' logs under a failure."""
    report = yield
    if report.failed:
        for cluster in _clusters:
            for node in cluster.nodes:
                with contextlib.suppress(OSError):
                    lines = node.log.read_text("utf-8", "replace").splitlines()
                    report.sections.append((f"log of {node.name}", "\n".join(lines[-LOG_LINES:])))
    return report


@pytest.fixture(scope="session", autouse=True)
def _able() -> None:
    """Fail, never skip, where these tests cannot run."""
    assert os.getuid() == 0, "tests/mount needs root"
    os.close(os.open("/dev/fuse", os.O_RDWR))


@pytest.fixture(scope="module")
def make_cluster() -> Iterator[Callable[..., Cluster]]:
    """Start clusters that end with the module, whatever happens; with 0 nodes, just a folder."""
    made: list[Cluster] = []

    def make(
        nodes: int = 3,
        replicas: int = 3,
        provider: str | None = None,
        *,
        tls: bool = False,
        settings: dict[str, str] | None = None,
        program: Callable[[Node], list[str]] | None = None,
    ) -> Cluster:
        folder = Path(tempfile.mkdtemp(prefix="clusterfs-test-"))
        cluster = Configured(folder, program, {"lease_s": str(LEASE_S)} | (settings or {}))
        cluster.folder.chmod(0o755)  # some tests act as another user
        made.append(cluster)
        _clusters.append(cluster)
        if nodes:
            cluster.up(nodes, replicas, provider, tls=tls)
        return cluster

    yield make
    for cluster in made:
        wreck(cluster)
        shutil.rmtree(cluster.folder, ignore_errors=True)
        _clusters.remove(cluster)


@pytest.fixture(scope="module")
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    """Three nodes, three copies of everything."""
    return make_cluster()


@pytest.fixture
def folders(
    cluster: Cluster, request: pytest.FixtureRequest, _watchdog: None
) -> Iterator[list[Path]]:
    """One directory of this test's own, as nodes 1, 2 and 3 see it."""
    name = f"{request.node.originalname}-{abs(hash(request.node.name)) % 10**6}"
    paths = [node.mount / name for node in cluster.nodes]
    paths[0].mkdir()
    yield paths
    gone = [node.name for node in cluster.nodes if node.state() != "running"]
    assert not gone, f"daemons ended by themselves: {gone}"


@pytest.fixture(autouse=True)
def _watchdog(request: pytest.FixtureRequest) -> Iterator[None]:
    with watched(request, lambda: _clusters):
        yield
