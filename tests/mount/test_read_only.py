"""A node that may only read: it says so itself, and the replicas do not believe it."""

import errno
import os
from collections.abc import Callable

import pytest

from clusterfs.cli.dev import Cluster

READ_ONLY = '[exports]\nread_only = ["n2"]\n'


@pytest.fixture(scope="module")
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    """A node with the data, and a client that may only read but says nothing of it."""
    cluster = make_cluster(0)
    cluster.configure(1, 1)
    first = cluster.node("n1").config
    first.write_text(first.read_text() + READ_ONLY)
    cluster.up()
    cluster.configure(2, 1)
    second = cluster.node("n2").config
    second.write_text("storage = false\n" + second.read_text())
    cluster.up()
    return cluster


def test_replicas_refuse_what_a_read_only_node_writes(cluster: Cluster) -> None:
    first, second = (node.mount for node in cluster.nodes)
    (first / "file").write_bytes(b"as it was")
    with pytest.raises(OSError, match="Read-only") as refused:
        (second / "new").touch()
    assert refused.value.errno == errno.EROFS
    with (second / "file").open("rb+", buffering=0) as file:
        file.write(b"changed??")
        with pytest.raises(OSError, match="Read-only"):
            os.fsync(file.fileno())
    assert (first / "file").read_bytes() == b"as it was"
    assert (second / "file").read_bytes() == b"as it was"
    assert os.listdir(first) == ["file"]


def test_a_node_that_knows_is_mounted_read_only(cluster: Cluster) -> None:
    first, second = cluster.nodes
    (first.mount / "more").write_bytes(b"to read")
    second.config.write_text(second.config.read_text() + READ_ONLY)
    cluster.kill("n2")
    cluster.start("n2")
    assert os.statvfs(second.mount).f_flag & os.ST_RDONLY
    assert (second.mount / "more").read_bytes() == b"to read"
    with pytest.raises(OSError, match="Read-only"):
        (second.mount / "new").touch()
    assert second.ask("status")["lost"] is False
