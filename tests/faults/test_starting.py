"""A daemon whose lease ends while it starts, as on a busy machine, comes back and mounts."""

import sys
from pathlib import Path

import pytest

from clusterfs.cli import dev
from clusterfs.cli.dev import Cluster
from tests.faults.cluster import DAEMON, PATIENCE_S, logged


@pytest.mark.timeout(1800)
def test_a_node_that_is_lost_before_it_serves_joins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev, "START_TIMEOUT_S", PATIENCE_S)
    program = [sys.executable, "-P", str(DAEMON), "lost_at_once"]
    cluster = Cluster(tmp_path / "c", lambda _node: program)
    try:
        cluster.up(nodes=1)
        (node,) = cluster.nodes
        (node.mount / "file").write_text("hello")
        assert (node.mount / "file").read_text() == "hello"
        events = [line["event"] for line in logged(node.log)]
        assert events.count("joined") == 1 + events.count("lost") >= 2
    finally:
        cluster.down()
