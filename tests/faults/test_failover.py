"""The loss of a host, and a partition longer than the lease, as writers see them."""

from collections.abc import Callable

import pytest

from bench import failover
from tests.faults.cluster import HostCluster

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def hosts(make_hosts: Callable[..., HostCluster]) -> HostCluster:
    return make_hosts(3, lease_s=12.0)  # who goes on must keep its lease, however busy


def test_others_go_on_after_a_host_died(hosts: HostCluster) -> None:
    death = failover.die(hosts, "death")
    assert death.its_file_s > 0


def test_a_writer_that_is_cut_off_stalls_and_resumes_without_a_trace(hosts: HostCluster) -> None:
    partition = failover.cut_off(hosts, "cut", cut_s=hosts.lease_s)
    assert partition.lines > 40
