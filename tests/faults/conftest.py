"""Clusters on hosts of their own for the tests in this folder; they end with the module."""

import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.cluster import HostCluster
from tests.watchdog import watched

_clusters: list[HostCluster] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.mount)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put what the daemons wait for, and the ends of their logs, under a failure."""
    report = yield
    if report.failed:
        for cluster in _clusters:
            report.sections.append((str(cluster.folder), cluster.explain()))
    return report


@pytest.fixture(scope="session", autouse=True)
def _able() -> None:
    """Fail, never skip, where these tests cannot run."""
    assert os.getuid() == 0, "tests/faults needs root"
    os.close(os.open("/dev/fuse", os.O_RDWR))


@pytest.fixture(scope="module")
def make_hosts() -> Iterator[Callable[..., HostCluster]]:
    """Start clusters as HostCluster does: `make_hosts(hosts, replicas=..., lease_s=...)`."""
    folders: list[Path] = []

    def make(hosts: int = 3, **options: Any) -> HostCluster:
        folder = Path(tempfile.mkdtemp(prefix="clusterfs-faults-"))
        folders.append(folder)
        cluster = HostCluster(folder, hosts, **options)
        _clusters.append(cluster)
        return cluster

    yield make
    for cluster in _clusters:
        cluster.close()
    _clusters.clear()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _watchdog(request: pytest.FixtureRequest) -> Iterator[None]:
    with watched(request, lambda: [hosts.cluster for hosts in _clusters]):
        yield
