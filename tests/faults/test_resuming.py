"""A node that was cut off for longer than its lease: what its programs see when it is back."""

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.cluster import HostCluster, wait

pytestmark = pytest.mark.timeout(1800)
BLOCK = 4096
LEASE_S = 12.0  # a busy machine keeps it: only who is cut off loses it


@pytest.fixture(scope="module")
def hosts(make_hosts: Callable[..., HostCluster]) -> HostCluster:
    return make_hosts(3, lease_s=LEASE_S)


@pytest.fixture
def mounts(hosts: HostCluster) -> Iterator[list[Path]]:
    hosts.wait_synced()
    yield [node.mount for node in hosts.nodes]
    hosts.heal()


def cut_off(hosts: HostCluster, number: int) -> None:
    """Return when the node's lease is over, and the others have removed it."""
    hosts.network.set_cut(hosts.network.around(number))
    name = hosts.node(number).name
    wait(lambda: hosts.node(number).ask("status", timeout_s=30)["lease_left_s"] == 0, "it is out")
    others = [node for node in hosts.nodes if node.number != number]
    wait(
        lambda: all(
            name not in {member["name"] for member in node.ask("status", timeout_s=30)["members"]}
            for node in others
        ),
        "the others have removed it",
    )


def test_of_two_writers_that_both_think_they_own_an_image_one_is_dead(
    hosts: HostCluster, mounts: list[Path]
) -> None:
    here, there = mounts[0] / "image", mounts[1] / "image"
    there.write_bytes(bytes(16 * BLOCK))
    away = os.open(there, os.O_RDWR)
    os.pwrite(away, b"a" * BLOCK, 0)
    os.fsync(away)
    os.pwrite(away, b"dirty" * 100, 8 * BLOCK)  # not synced: held back on the node that goes
    with ThreadPoolExecutor(1) as pool:
        cut_off(hosts, 2)
        late: Future[int] = pool.submit(os.pwrite, away, b"late" * 1024, BLOCK)
        owner = os.open(here, os.O_RDWR)
        os.pwrite(owner, b"b" * BLOCK, 0)
        os.fsync(owner)
        assert not late.done(), "it stalls"
        hosts.network.set_cut(())
        with pytest.raises(OSError, match="Input/output error") as refused:
            late.result()
    assert refused.value.errno == errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        os.fsync(away)
    os.pwrite(owner, b"c" * BLOCK, 2 * BLOCK)
    os.fsync(owner)
    os.close(owner)
    os.close(away)
    content = b"b" * BLOCK + bytes(BLOCK) + b"c" * BLOCK
    for mount in mounts:
        found = (mount / "image").read_bytes()
        assert found[: 3 * BLOCK] == content
        assert found[8 * BLOCK : 9 * BLOCK] in (bytes(BLOCK), b"dirty" * 100 + bytes(BLOCK - 500))
    again = os.open(there, os.O_RDWR)
    os.pwrite(again, b"d", 0)
    os.close(again)
    assert here.read_bytes()[:1] == b"d"


def test_no_page_name_or_attribute_is_old_after_a_cut(
    hosts: HostCluster, mounts: list[Path]
) -> None:
    here, there = mounts[0] / "f", mounts[1] / "f"
    here.mkdir()
    (here / "data").write_bytes(b"1" * BLOCK)
    (here / "moved").write_bytes(b"old name")
    with (there / "data").open("rb", buffering=0) as cached, ThreadPoolExecutor(4) as pool:
        assert cached.read() == b"1" * BLOCK
        assert (there / "moved").exists()
        assert (there / "data").stat().st_size == BLOCK
        cut_off(hosts, 2)
        asked = [
            pool.submit(os.pread, cached.fileno(), 3 * BLOCK, 0),
            pool.submit(lambda: (there / "data").stat().st_size),
            pool.submit((there / "moved").exists),
            pool.submit(lambda: sorted(os.listdir(there))),
        ]
        (here / "data").write_bytes(b"2" * 2 * BLOCK)
        (here / "moved").rename(here / "new")
        for descriptor in (os.open(here, os.O_RDONLY), os.open(here / "data", os.O_RDONLY)):
            os.fsync(descriptor)
            os.close(descriptor)
        assert not any(one.done() for one in asked), "they stall"
        hosts.network.set_cut(())
        content, size, there_still, names = [one.result() for one in asked]
        # The kernel may have looked at the length before it dropped the page, but not served it.
        assert content in (b"2" * BLOCK, b"2" * 2 * BLOCK)
        assert os.pread(cached.fileno(), 3 * BLOCK, 0) == b"2" * 2 * BLOCK
    assert size == 2 * BLOCK
    assert not there_still
    assert names == ["data", "new"]
