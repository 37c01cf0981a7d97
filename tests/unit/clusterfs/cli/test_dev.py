import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from clusterfs import config
from clusterfs.cli import dev, processes
from clusterfs.cli.dev import Cluster, Node, free_ports
from clusterfs.errors import SetupError


def test_a_cluster_that_is_not_there_is_said(tmp_path: Path) -> None:
    for verb in (Cluster(tmp_path).status, Cluster(tmp_path).down):
        with pytest.raises(SetupError, match="no cluster here"):
            verb()
    with pytest.raises(SetupError, match="no node 'n1'"):
        Cluster(tmp_path).kill("n1")
    assert list(tmp_path.iterdir()) == []


def test_configurations_are_written_once_and_can_be_read(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.configure(3, 2)
    texts = [node.config.read_text() for node in cluster.nodes]
    loaded = [config.load(node.config) for node in cluster.nodes]
    assert [one.name for one in loaded] == ["n1", "n2", "n3"]
    assert {one.replicas for one in loaded} == {2}
    assert {one.provider_path.resolve() for one in loaded} == {tmp_path / "cluster.db"}
    assert [Path(one.brick).resolve() for one in loaded] == [node.brick for node in cluster.nodes]
    assert len({one.listen for one in loaded}) == 3
    cluster.configure(None, None)
    assert [node.config.read_text() for node in cluster.nodes] == texts
    cluster.configure(4, 2)
    assert [node.name for node in cluster.nodes] == ["n1", "n2", "n3", "n4"]
    assert [node.config.read_text() for node in cluster.nodes][:3] == texts
    with pytest.raises(SetupError, match="4 nodes already"):
        cluster.configure(2, None)


def test_the_tenth_node_comes_after_the_ninth(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.configure(11, 3)
    assert [node.number for node in cluster.nodes] == list(range(1, 12))


def test_one_command_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dev, "OTHERS_TIMEOUT_S", 0.1)
    cluster = Cluster(tmp_path)
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(SetupError, match="at work"):
            cluster.down()


def test_a_node_that_never_ran_is_gone(tmp_path: Path) -> None:
    assert Node(1, tmp_path).state() == "gone"


def test_a_daemon_that_does_not_end_is_waited_for_and_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev, "PATIENCE_S", 0.0)
    monkeypatch.setattr(dev, "STOP_TIMEOUT_S", 0.5)
    said: list[str] = []
    cluster = Cluster(tmp_path, say=said.append)
    cluster.configure(1, 1)
    (tmp_path / "run").mkdir()
    deaf = "import signal as s; s.pthread_sigmask(0, {15}); print(flush=True); s.pause()"
    with subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            process = processes.identify(child.pid)
            assert process is not None
            processes.record(cluster.nodes[0].pidfile, processes.Family(process, process))
            with pytest.raises(
                SetupError, match=rf"n1: process {child.pid} has not ended .*\(1 [RS]"
            ):
                cluster.down()
        finally:
            child.kill()
    assert said[0].startswith(f"n1: waiting for the end of process {child.pid} (1 ")
    assert processes.doing(process) == "gone"
    cluster.down()


def test_ports_are_free_distinct_and_not_the_taken_ones() -> None:
    ports = free_ports(20, {20000})
    assert len(set(ports)) == 20
    assert 20000 not in ports
