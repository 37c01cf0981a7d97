"""What cannot work is said in one clear line, with an exit code, and nothing is changed."""

import hashlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clusterfs import config
from clusterfs.cli import dev
from clusterfs.cli.dev import Cluster
from clusterfs.errors import SetupError

COMMANDS = Path(sys.executable).parent


def refused(*words: object, prefix: tuple[str, ...] = ()) -> str:
    """Run mount.clusterfs, which must fail with exactly one line; return it."""
    done = subprocess.run(
        [*prefix, str(COMMANDS / "mount.clusterfs"), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 1, done
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("mount.clusterfs: ")
    return lines[0]


def contents(folder: Path) -> dict[str, str]:
    """Everything there is under a folder, by content; not logs, nor what SQLite keeps in RAM."""
    found = {}
    for path in sorted(folder.rglob("*")):
        relative = str(path.relative_to(folder))
        if path.name.endswith((".log", "-wal", "-shm")):
            continue
        found[relative] = "folder" if path.is_dir() else "other"
        if path.is_file():
            found[relative] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture
def stopped(make_cluster: Callable[..., Cluster]) -> Cluster:
    """A cluster of one node with data in it, stopped."""
    cluster = make_cluster(nodes=1, replicas=1)
    (cluster.nodes[0].mount / "file").write_text("content")
    cluster.down()
    return cluster


def test_a_bad_config(stopped: Cluster) -> None:
    node = stopped.nodes[0]
    text = node.config.read_text()
    for wrong, named in [
        (text + "colour = 'red'\n", "colour"),
        (text.replace("replicas = 1", "replicas = 'one'"), "replicas"),
        (text.replace("brick", "brik"), "bri"),
        ("name = ", "TOML"),
    ]:
        node.config.write_text(wrong)
        before = contents(stopped.folder)
        line = refused(node.config, node.mount)
        assert named in line
        assert str(node.config) in line
        assert contents(stopped.folder) == before
    assert "No such file" in refused(stopped.folder / "none.toml", node.mount)


def test_an_unknown_mount_option(stopped: Cluster) -> None:
    node = stopped.nodes[0]
    assert "colour=red" in refused(node.config, node.mount, "-o", "rw,colour=red")
    assert "mmap" in refused(node.config, node.mount, "-o", "mmap=sometimes")


def test_a_busy_port(stopped: Cluster) -> None:
    node = stopped.nodes[0]
    host, _, port = config.load(node.config).listen.rpartition(":")
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, int(port)))
        taken.listen()
        before = contents(stopped.folder)
        line = refused(node.config, node.mount)
        assert port in line
        assert contents(stopped.folder) == before
    stopped.up()
    assert (node.mount / "file").read_text() == "content"


def test_a_brick_of_another_cluster(stopped: Cluster, make_cluster: Callable[..., Cluster]) -> None:
    other = make_cluster(nodes=1, replicas=1)
    other.down()
    node = other.nodes[0]
    shutil.copytree(node.brick, node.brick.with_name("own"))
    shutil.rmtree(node.brick)
    shutil.copytree(stopped.nodes[0].brick, node.brick)
    before = contents(other.folder)
    line = refused(node.config, node.mount)
    assert "the brick belongs to cluster" in line
    assert contents(other.folder) == before


def test_a_brick_that_is_none(stopped: Cluster, tmp_path: Path) -> None:
    node = stopped.nodes[0]
    text = node.config.read_text()
    (tmp_path / "file").touch()
    before = contents(stopped.folder)
    for brick, said in [("none", "No such file"), ("file", "not a directory")]:
        (tmp_path / "n1.toml").write_text(
            text.replace(f"../bricks/{node.name}", str(tmp_path / brick)).replace(
                "local:..", f"local:{stopped.folder}"
            )
        )
        assert said in refused(tmp_path / "n1.toml", node.mount)
    assert not (tmp_path / "none").exists()
    assert contents(stopped.folder) == before


def test_a_brick_under_another_name(stopped: Cluster) -> None:
    node = stopped.nodes[0]
    text = node.config.read_text()
    node.config.write_text(text.replace('name = "n1"', 'name = "other"'))
    assert "name this node n1" in refused(node.config, node.mount)
    node.config.write_text(text)
    stopped.up()
    assert (node.mount / "file").read_text() == "content"


def test_a_mount_point_that_is_none(stopped: Cluster, tmp_path: Path) -> None:
    node = stopped.nodes[0]
    (tmp_path / "file").touch()
    before = contents(stopped.folder)
    assert "not a directory" in refused(node.config, tmp_path / "file")
    assert "No such file" in refused(node.config, tmp_path / "none")
    assert contents(stopped.folder) == before


def test_a_mount_point_in_use(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    assert "mounted there already" in refused(node.config, node.mount)
    assert node.mount.is_dir()


def test_a_mount_point_whose_daemon_stands_still(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    cluster.pause(node.name)
    try:
        assert "mounted there already" in refused(node.config, node.mount)
    finally:
        cluster.resume(node.name)


def test_a_node_that_runs_already(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.nodes[0]
    (node.mount / "still").write_text("here")
    refused(node.config, tmp_path)
    assert (node.mount / "still").read_text() == "here"
    assert cluster.status()["nodes"][0]["daemon"]["synced"]


def test_no_fuse_device(stopped: Cluster) -> None:
    node = stopped.nodes[0]
    before = contents(stopped.folder)
    hidden = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev && exec "$@"', "sh")
    assert "/dev/fuse is missing" in refused(node.config, node.mount, prefix=hidden)
    assert contents(stopped.folder) == before


@pytest.mark.timeout(900)
def test_a_node_that_the_others_cannot_reach(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must neither be a member nor keep the members waiting for what it would master."""
    monkeypatch.setattr(dev, "START_TIMEOUT_S", 300.0)
    cluster = make_cluster(nodes=2, replicas=2)
    cluster.configure(3, 2)
    one, two, three = cluster.nodes
    three.config.write_text('advertise = "127.0.0.1:9"\n' + three.config.read_text())
    with pytest.raises(SetupError, match=r"no connection between .* n1, n2 .* reach 127\.0"):
        cluster.start("n3")
    for number in range(100):
        (one.mount / f"file{number}").write_text("content")
    for number in range(100):
        assert (two.mount / f"file{number}").read_text() == "content"
    assert {member["name"] for member in one.ask("status")["members"]} == {"n1", "n2"}
