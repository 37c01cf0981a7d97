"""A cluster whose nodes talk inside TLS: the same filesystem, and nothing for strangers."""

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from clusterfs.cli.dev import Cluster
from clusterfs.config import load


@pytest.fixture(scope="module")
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    return make_cluster(tls=True)


def test_data_passes_and_a_killed_node_comes_back(folders: list[Path], cluster: Cluster) -> None:
    data = os.urandom(10 << 20)
    (folders[0] / "file").write_bytes(data)
    assert (folders[1] / "file").read_bytes() == data
    cluster.kill("n2")
    (folders[0] / "later").write_bytes(data[:100])
    cluster.start("n2")
    assert (folders[1] / "later").read_bytes() == data[:100]
    assert (folders[1] / "file").read_bytes() == data


def test_strangers_get_nothing(folders: list[Path], cluster: Cluster) -> None:
    host, _, port = load(cluster.nodes[2].config).listen.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=120) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            answer = stranger.recv(1000)
    assert len(answer) < 50, "a TLS alert at most"
    (folders[0] / "file").write_text("still there")
    assert (folders[2] / "file").read_text() == "still there"
