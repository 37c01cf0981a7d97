"""Two nodes and a witness, a third host that only has a member of etcd: any one may be lost."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.failover import Writer
from tests.faults.cluster import HostCluster, wait

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def hosts(make_hosts: Callable[..., HostCluster]) -> HostCluster:
    return make_hosts(2, replicas=2, lease_s=12.0)  # who is left must keep its lease, however busy


@pytest.fixture
def mounts(hosts: HostCluster) -> Iterator[dict[int, Path]]:
    hosts.wait_synced()
    yield {node.number: node.mount for node in hosts.nodes}
    hosts.heal()


def keep(path: Path, content: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())


def same_on_both(mounts: dict[int, Path], name: str, content: bytes) -> None:
    for mount in mounts.values():
        assert (mount / name).read_bytes() == content


@pytest.mark.parametrize(("lost", "left"), [(1, 2), (2, 1)])
def test_the_loss_of_either_host_loses_nothing_and_the_other_goes_on(
    hosts: HostCluster, mounts: dict[int, Path], lost: int, left: int
) -> None:
    kept, name = os.urandom(300_000), f"died-{lost}"
    keep(mounts[lost] / f"{name}-kept", kept)
    writer = Writer(mounts[left] / name)
    writer.wait(20)
    hosts.kill(lost, host=True)
    hosts.etcd.stop(lost)
    writer.wait(20)
    assert (mounts[left] / f"{name}-kept").read_bytes() == kept
    keep(mounts[left] / f"{name}-kept", kept[::-1])
    hosts.heal()
    writer.wait(5)
    content = writer.stop()
    assert writer.failure is None
    same_on_both(mounts, name, content)
    same_on_both(mounts, f"{name}-kept", kept[::-1])


@pytest.mark.parametrize(("lost", "left"), [(1, 2), (2, 1)])
def test_either_host_may_be_cut_off_and_comes_back(
    hosts: HostCluster, mounts: dict[int, Path], lost: int, left: int
) -> None:
    name = f"cut-{lost}"
    stalled, going_on = Writer(mounts[lost] / f"{name}-its"), Writer(mounts[left] / name)
    stalled.wait(20)
    going_on.wait(20)
    hosts.network.set_cut(hosts.network.around(lost))
    wait(lambda: hosts.node(lost).ask("status", timeout_s=30)["lease_left_s"] == 0, "it is out")
    lines = stalled.lines
    going_on.wait(20)
    assert stalled.lines <= lines + 1, "it stalls, but for a line that was done"
    hosts.network.set_cut(())
    stalled.wait(20)
    for writer, written in ((stalled, f"{name}-its"), (going_on, name)):
        content = writer.stop()
        assert writer.failure is None
        same_on_both(mounts, written, content)


def test_two_that_do_not_reach_each_other_let_one_go_on(
    hosts: HostCluster, mounts: dict[int, Path]
) -> None:
    writers = [Writer(mounts[number] / f"pair-{number}") for number in (1, 2)]
    for writer in writers:
        writer.wait(20)
    hosts.network.set_cut({(1, 2), (2, 1)})
    before = [writer.lines for writer in writers]
    wait(
        lambda: any(w.lines > n + 20 for w, n in zip(writers, before, strict=True)),
        "one goes on, for both reach the witness",
    )
    hosts.network.set_cut(())
    for number, writer in enumerate(writers, 1):
        writer.wait(20)
        content = writer.stop()
        assert writer.failure is None
        same_on_both(mounts, f"pair-{number}", content)


def test_without_the_witness_both_go_on(hosts: HostCluster, mounts: dict[int, Path]) -> None:
    hosts.etcd.stop(3)
    writer = Writer(mounts[1] / "alone")
    renewals = hosts.node(1).ask("statistics")["statistics"]["membership"]["renewals"]

    def renewed() -> bool:
        now = hosts.node(1).ask("statistics", timeout_s=30)["statistics"]["membership"]
        return bool(now["renewals"] > renewals + 5)  # for a lease

    wait(renewed, "leases are renewed without the witness")
    writer.wait(5)
    content = writer.stop()
    assert writer.failure is None
    same_on_both(mounts, "alone", content)
